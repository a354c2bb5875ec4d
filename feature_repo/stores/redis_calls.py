"""The Redis commands of the packed store, each tried again when the connection is lost.

Commands are sent by redis-py's connections and parsed by hiredis; what is skipped is redis-py's
packing of commands key by key, which costs more than Redis itself for a thousand keys.
"""

import hashlib
import json
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection
from redis.retry import Retry

from feature_repo.errors import InputError, StoreUnavailableError

T = TypeVar("T")

READS_IN_FLIGHT = 64
"""MGETs sent ahead of their answers: bounds what Redis holds for a slow reader."""
SCRIPTS_IN_FLIGHT = 4
"""Scripts sent ahead of their answers: the next is packed while Redis runs the last."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.02, 0.5
"""Pause before the second try; it doubles up to the longest."""


class Script:
    """A Lua script, called by its hash; the server gets its text when it does not know it."""

    def __init__(self, text: str) -> None:
        self.text = text.encode()
        self.sha = hashlib.sha1(self.text).hexdigest().encode()  # Redis's own name of a script


class RedisCalls:
    """A pool of connections to one server; `address` is host:port."""

    def __init__(self, connection_string: str, timeout_s: float, retry_s: float) -> None:
        host, port, settings = parse_connection_string(connection_string)
        self.address = f"{host}:{port}"
        self._retry_s = retry_s
        self._pool = redis.Redis(
            host=host,
            port=port,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),  # retries are ours: bounded in time, over all errors
            **settings,
        ).connection_pool

    def mget(self, parts: Sequence[tuple[bytes, int]]) -> list[bytes | None]:
        """The values of all keys, None for no value.

        A part is the keys of one MGET, packed for the wire already, and their number.
        """
        commands = [b"*%d\r\n$4\r\nMGET\r\n%b" % (count + 1, keys) for keys, count in parts]

        def work(connection: Connection) -> list[bytes | None]:
            values: list[bytes | None] = []
            for start in range(0, len(commands), READS_IN_FLIGHT):
                together = commands[start : start + READS_IN_FLIGHT]
                connection.send_packed_command([b"".join(together)])
                for _ in together:
                    values += connection.read_response(disable_decoding=True)
            return values

        return self._try(work)

    def execute(self, *arguments: bytes | int) -> Any:
        """One command."""

        def work(connection: Connection) -> Any:
            connection.send_command(*arguments)
            return connection.read_response(disable_decoding=True)

        return self._try(work)

    def scripts(self, script: Script, calls: Iterable[Sequence[Any]]) -> list[Any]:
        """The script once for each call (number of keys, keys, arguments); their answers.

        After a lost connection all of them are called again.
        """
        todo = list(calls)

        def work(connection: Connection) -> list[Any]:
            answers: list[Any] = []
            waiting: deque[Sequence[Any]] = deque()

            def answer() -> None:
                waiting.popleft()
                answers.append(connection.read_response(disable_decoding=True))

            for arguments in todo:
                connection.send_command(b"EVALSHA", script.sha, *arguments)
                waiting.append(arguments)
                if len(waiting) >= SCRIPTS_IN_FLIGHT:
                    answer()
            while waiting:
                answer()
            return answers

        try:
            return self._try(work)
        except redis.exceptions.NoScriptError:
            self.execute(b"SCRIPT", b"LOAD", script.text)
            return self._try(work)

    def delete(self, names: list[bytes]) -> int:
        """Removes keys; returns how many there were."""
        return sum(
            self.execute(b"UNLINK", *names[start : start + 1000])
            for start in range(0, len(names), 1000)
        )

    def scan(self, pattern: bytes, step: int) -> Iterator[list[bytes]]:
        """Keys of string values that match, in portions; a key may come more than once."""
        cursor = b"0"
        while True:
            cursor, names = self.execute(
                b"SCAN", cursor, b"MATCH", pattern, b"COUNT", step, b"TYPE", b"string"
            )
            if names:
                yield names
            if cursor == b"0":
                return

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def _try(self, work: Callable[[Connection], T]) -> T:
        give_up = time.monotonic() + self._retry_s
        pause = FIRST_WAIT_S
        while True:
            connection = None
            try:
                connection = self._pool.get_connection()
                result = work(connection)
                self._pool.release(connection)
                return result
            except BaseException as error:
                if connection is not None:
                    connection.disconnect()  # answers may be on their way
                    self._pool.release(connection)
                lost = isinstance(error, (redis.ConnectionError, redis.TimeoutError, OSError))
                refused = isinstance(error, redis.AuthenticationError)
                if lost and not refused and time.monotonic() + pause < give_up:
                    time.sleep(pause * (0.5 + random.random()))
                    pause = min(2 * pause, LONGEST_WAIT_S)
                    continue
                if isinstance(error, redis.exceptions.NoScriptError):
                    raise
                if isinstance(error, (redis.RedisError, OSError)):
                    raise StoreUnavailableError(
                        f"online store at redis {self.address}: {error}"
                    ) from error
                raise


def parse_connection_string(text: str) -> tuple[str, int, dict[str, Any]]:
    """Host, port and redis-py settings of `host:port,name=value,...`, Feast's form."""
    address, *settings = text.split(",")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or any("=" not in setting for setting in settings):
        raise InputError(
            f"connection_string is {text!r}, expected host:port or host:port,name=value,..."
        )
    parsed: dict[str, Any] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            parsed[name] = json.loads(value)
        except json.JSONDecodeError:
            parsed[name] = value
    return host, int(port), parsed
