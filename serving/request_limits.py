"""Before any route: a cap on the body, and an id for the request.

    app.add_middleware(RequestLimits, rejected=service.rejected)    # last: it comes first

A body over the cap is answered 413, from its Content-Length before a byte is read, or as soon as
the bytes that came say so. `X-Request-Id` is taken from the client if it is short and plain, else
made, and returned; log lines of the request read it from `request_id`.
"""

import re
import secrets
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_BYTES = 128 * 1024
"""2,000 candidates of 20 digits, indented, are 64 KiB."""
EVENTS_BODY_BYTES = 512 * 1024
"""1,000 events with every field at its longest are 300 KiB."""
PATHS_WITH_LARGER_BODIES: Mapping[str, int] = {"/v1/events": EVENTS_BODY_BYTES}

SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
"""Nothing that could end a log line or a header, or be markup."""
HEADER = b"x-request-id"

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request that this task answers. It outlives the middleware on purpose: Starlette answers
an unexpected exception outside of it."""


arrived_s: ContextVar[float | None] = ContextVar("arrived_s", default=None)
"""When the request came, on `time.perf_counter()`: its deadline runs from there."""


class RequestLimits:
    """Pure ASGI: a `BaseHTTPMiddleware` would cost a task and a queue on every request.

    `rejected` is told of each body that is refused: `body`, and what is said. `named_outside`: what
    runs this application gives every request an id and returns it, so that ours would stand there
    twice; one that is not sane is returned beside ours, which the log has.
    """

    def __init__(
        self, app: ASGIApp, rejected: Callable[[str, str], None], named_outside: bool = False
    ) -> None:
        self._app, self._rejected, self._named_outside = app, rejected, named_outside

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(HEADER, b"")
        is_sane = SANE_ID.fullmatch(given) is not None
        own = given.decode() if is_sane else secrets.token_hex(16)
        request_id.set(own)
        arrived_s.set(time.perf_counter())
        most = PATHS_WITH_LARGER_BODIES.get(scope["path"], BODY_BYTES)
        came = 0

        async def receive_up_to_most() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > most:
                self._rejected("body", _too_large(most))
                raise HTTPException(413, _too_large(most), {"Connection": "close"})
            return message

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start" and not (self._named_outside and is_sane):
                message["headers"] = [*message.get("headers", ()), (HEADER, own.encode())]
            await send(message)

        stated = headers.get(b"content-length", b"0")
        # A server has checked that it is a number; of one that has not, the count above decides.
        if stated.isdigit() and (len(stated) > 18 or int(stated) > most):
            self._rejected("body", _too_large(most))
            refusal = JSONResponse(
                {"error": _too_large(most)}, 413, headers={"Connection": "close"}
            )
            await refusal(scope, receive, send_with_id)
            return
        await self._app(scope, receive_up_to_most, send_with_id)


def _too_large(most: int) -> str:
    return f"the body is larger than {most} bytes"
