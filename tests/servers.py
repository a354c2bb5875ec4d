"""A real redis-server for the tests that need one: loopback only, a free port, stopped at the end.

Fixtures: `redis_server` (a connection string, the server empty at the start of every test) and
`restartable_redis` (a `RedisServer` of the test's own, to kill and start again). Tests that use
them carry the marker `redis` and are skipped, saying why, where the program is missing.
"""

import shutil
import socket
import subprocess
from pathlib import Path

import pytest


class RedisServer:
    """One redis-server process under a folder; `durable` keeps what was written over a kill."""

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        self._folder, self._durable = folder, durable
        self._process: subprocess.Popen[str] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.connection_string = f"127.0.0.1:{self.port}"

    def start(self) -> "RedisServer":
        """Returns when the server answers."""
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--save", ""]
        command += ["--dir", str(self._folder), "--appendonly", "yes" if self._durable else "no"]
        command += ["--appendfsync", "always", "--daemonize", "no"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        said = []
        for line in self._process.stdout:
            said.append(line)
            if "Ready to accept connections" in line:
                return self
        raise AssertionError("redis-server did not start:\n" + "".join(said))

    def kill(self) -> None:
        """SIGKILL: nothing is written on the way out."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None

    def send_signal(self, number: int) -> None:
        """SIGSTOP: connections stay open, and nobody answers; SIGCONT ends that."""
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        if self._process is not None:
            self.kill()

    def empty(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(b"FLUSHALL\r\n")
            assert connection.recv(64) == b"+OK\r\n"


def require_redis() -> None:
    """Skips the test, with the reason, where there is no redis-server."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (Debian: apt-get install redis-server)")


@pytest.fixture(scope="session")
def _shared_redis(tmp_path_factory):
    require_redis()
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(_shared_redis):
    """`host:port` of a Redis that is empty."""
    _shared_redis.empty()
    return _shared_redis.connection_string


@pytest.fixture
def restartable_redis(tmp_path):
    """A started RedisServer that keeps what it was given over a kill."""
    require_redis()
    server = RedisServer(tmp_path, durable=True).start()
    yield server
    server.stop()
