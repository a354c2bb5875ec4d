"""Refuses rankings that cannot be in time before anything is spent on them.

    app.add_middleware(Shedding, pressure=pressure, refusals=UnreadRefusals(metrics.rejected))

Under overload more requests are refused than answered. One that was read, parsed and checked first
costs half a millisecond; here it is bytes made once, 4 us beside what the HTTP server takes (under
uvicorn `serving.shedding_protocol` saves most of that too). The log gets one line a second with
their number.
"""

import time
from collections.abc import Callable

import structlog
from pydantic_core import to_json
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.pressure import RETRY_AFTER_S, Pressure

RANKED_PATHS = frozenset({"/v1/rank", "/v1/recommend"})
BODY = to_json({"error": "overloaded: the requests ahead of it fill its deadline; try again"})
HEADERS = (
    (b"content-type", b"application/json"),
    (b"content-length", b"%d" % len(BODY)),
    (b"retry-after", b"%d" % RETRY_AFTER_S),
)
START = {"type": "http.response.start", "status": 503, "headers": HEADERS}
LOG_EVERY_S = 1.0

log = structlog.get_logger("crescendo.requests")


class Shedding:
    """ASGI middleware. For one event loop."""

    def __init__(self, app: ASGIApp, pressure: Pressure, refusals: "UnreadRefusals") -> None:
        self._app, self._pressure, self._refusals = app, pressure, refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in RANKED_PATHS:
            await self._app(scope, receive, send)
        elif self._pressure.is_hopeless():
            self._refusals.one()
            await send(dict(START))  # what is outside of this adds its headers
            await send({"type": "http.response.body", "body": BODY})
        else:
            with self._pressure.arriving():
                await self._app(scope, receive, send)


class UnreadRefusals:
    """Counts them, and says in the log how many; `rejected` is told of each: `deadline`."""

    def __init__(self, rejected: Callable[[str], None]) -> None:
        self._rejected = rejected
        self._unsaid, self._said_s = 0, -LOG_EVERY_S

    def one(self) -> None:
        self._rejected("deadline")
        self._unsaid += 1
        now = time.monotonic()
        if now - self._said_s >= LOG_EVERY_S:
            log.warning("rejected unread", reason="deadline", requests=self._unsaid)
            self._unsaid, self._said_s = 0, now
