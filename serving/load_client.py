"""HTTP/1.1 requests at a rate, cheap enough to share the cores with the server that it measures.

    client = HttpClient(Target(url="http://127.0.0.1:8000"))
    client.send(client.encoded(body), done)     # done("200", answer) is called later

Nothing raises: each request ends once, in a status or in one of `ERRORS`. Nothing is sent twice, so
an error is what a caller without retries would have seen. A whole client library costs as much as a
ranking; this is `httptools` on a transport of asyncio's.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httptools

from feature_repo.errors import InputError

ERRORS = ("timeout", "connect", "disconnected", "bad_answer")
"""Not answered in time; no connection; one lost before the answer's end; an answer not in HTTP."""
IDLE_S = 2.0
"""A connection unused for longer is closed: the server would soon, perhaps as it is used again."""

Done = Callable[[str, bytes], None]
"""Takes the status or the error, and the answer's body."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is measured, and how patiently."""

    url: str
    """`http://HOST:PORT` or `https://`; certificates are checked, with those of SSL_CERT_FILE."""
    route: str = "/v1/rank"
    token: str | None = field(default=None, repr=False)
    """Bearer token of every request."""
    timeout_s: float = 10.0
    """From the moment at which a request is due until its error is `timeout`."""
    connections: int = 256
    """Open at the same time; a request beyond them waits, and its time runs."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
            raise InputError(
                f"url must be http://HOST:PORT or https://HOST:PORT, got {self.url!r}; "
                "`crescendo serve` prints its own"
            )
        if not self.timeout_s > 0:
            raise InputError(f"timeout_s must be above 0, got {self.timeout_s}")
        if not 1 <= self.connections <= 900:  # select(), below, knows 1024 files
            raise InputError(f"connections must lie between 1 and 900, got {self.connections}")


@dataclass(eq=False, slots=True)
class _Call:
    """One request until it has ended."""

    request: bytes
    done: Done
    timer: asyncio.TimerHandle
    connection: "_Connection | None" = None
    ended: bool = False

    def end(self, outcome: str, body: bytes = b"") -> None:
        self.ended = True
        self.timer.cancel()
        self.done(outcome, body)


class HttpClient:
    """POST requests to one target. Made and used in one running event loop."""

    def __init__(self, target: Target) -> None:
        parts = urlsplit(target.url)
        self._target = target
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        assert parts.hostname  # checked by Target
        self._address = parts.hostname, parts.port or (443 if self._tls else 80)
        token = f"Authorization: Bearer {target.token}\r\n" if target.token else ""
        self._head = (
            f"POST {target.route} HTTP/1.1\r\nHost: {parts.netloc}\r\n{token}"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()
        self._loop = asyncio.get_running_loop()
        self._idle: list[_Connection] = []
        """Last used last: connections that the load no longer needs grow old and are closed."""
        self._open = 0
        self._waiting: deque[_Call] = deque()
        self._connecting: set[asyncio.Task[None]] = set()

    def encoded(self, body: bytes) -> bytes:
        """The whole request around a JSON body."""
        return b"%s%d\r\n\r\n%s" % (self._head, len(body), body)

    def send(self, request: bytes, done: Done) -> None:
        """Sends an encoded request now, or as soon as a connection is free."""
        call: _Call

        def too_late() -> None:
            call.end("timeout")
            if call.connection is not None:
                call.connection.abort()  # its answer would be taken for the next one's

        timer = self._loop.call_later(self._target.timeout_s, too_late)
        call = _Call(request=request, done=done, timer=timer)
        while self._idle:
            connection = self._idle.pop()
            if self._loop.time() - connection.idle_since < IDLE_S:
                connection.start(call)
                return
            connection.abort()
        self._start_elsewhere(call)

    def close(self) -> None:
        """Closes what is idle; called when every request has ended."""
        while self._idle:
            self._idle.pop().abort()

    def _start_elsewhere(self, call: _Call) -> None:
        if self._open >= self._target.connections:
            self._waiting.append(call)
            return
        self._open += 1
        task = self._loop.create_task(self._connect(call))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, call: _Call) -> None:
        try:
            _, connection = await asyncio.wait_for(
                self._loop.create_connection(
                    lambda: _Connection(self), *self._address, ssl=self._tls
                ),
                self._target.timeout_s,
            )
        except (OSError, TimeoutError):  # ssl.SSLError is an OSError
            if not call.ended:
                call.end("connect")
            self.closed()
            return
        if call.ended:
            self.free(connection)
        else:
            connection.start(call)

    def free(self, connection: "_Connection") -> None:
        """A connection whose answer is complete takes the next waiting request."""
        while self._waiting:
            call = self._waiting.popleft()
            if not call.ended:
                connection.start(call)
                return
        connection.idle_since = self._loop.time()
        self._idle.append(connection)

    def closed(self, connection: "_Connection | None" = None) -> None:
        """A connection is gone: a request that waits for one opens another."""
        if connection in self._idle:
            self._idle.remove(connection)
        self._open -= 1
        while self._waiting:
            call = self._waiting.popleft()
            if not call.ended:
                self._start_elsewhere(call)
                return


class _Connection(asyncio.Protocol):
    """One connection, with at most one request on its way."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._call: _Call | None = None
        self._body: list[bytes] = []
        self.idle_since = 0.0

    def start(self, call: _Call) -> None:
        self._call = call
        call.connection = self
        self._body.clear()
        self._transport.write(call.request)

    def abort(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._end("bad_answer")
            self.abort()

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._end(str(self._parser.get_status_code()), b"".join(self._body))
        if self._parser.should_keep_alive():
            self._client.free(self)
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._end("disconnected")
        self._client.closed(self)

    def _end(self, outcome: str, body: bytes = b"") -> None:
        call, self._call = self._call, None
        if call is not None and not call.ended:
            call.end(outcome, body)
