"""POST /v1/rank without a web framework between the socket and the service.

    app.add_middleware(StraightRank, service=service)    # first: the guards come before it

FastAPI's routing and its dependencies took a fifth of what a ranking of 500 candidates costs a
server, most of it for what a well-formed request does not need. So such a request is read, checked
by the same model and answered here; any other one, and whatever goes wrong, is handed on with what
was read of it, to FastAPI's route of the same path: errors are worded in one place.
"""

from collections import deque
from typing import Annotated

from fastapi import HTTPException
from pydantic import Field, TypeAdapter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.pressure import Overloaded
from serving.ranking_routes import DEADLINES_MS, MAX_TRACEPARENT, rank_body, refused
from serving.ranking_service import RankingService
from serving.schemas import RankRequest

PATH = "/v1/rank"
JSON = b"application/json"
DEADLINE = TypeAdapter(Annotated[float, Field(ge=DEADLINES_MS[0], le=DEADLINES_MS[1])])


class StraightRank:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, service: RankingService) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        read = Read(receive)
        try:
            headers = dict(scope["headers"])
            traceparent = headers.get(b"traceparent", b"")
            if headers.get(b"content-type") != JSON or len(traceparent) > MAX_TRACEPARENT:
                raise ValueError("not plain JSON")
            deadline_ms = None
            if (stated := headers.get(b"x-deadline-ms")) is not None:
                deadline_ms = DEADLINE.validate_python(stated.decode("latin-1"))
            request = RankRequest.model_validate_json(await read.body())
        except (ValueError, HTTPException):  # ValidationError is a ValueError
            await self._app(scope, read.again, send)
            return
        try:
            body = await rank_body(
                self._service, request, deadline_ms, traceparent.decode("latin-1")
            )
        except Overloaded as error:
            await refused(error)(scope, receive, send)
            return
        length = b"%d" % len(body)
        own = [(b"content-length", length), (b"content-type", JSON)]
        await send({"type": "http.response.start", "status": 200, "headers": own})
        await send({"type": "http.response.body", "body": body})


class Read:
    """The messages of one request, read here and given again."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: deque[Message] = deque()
        self._error: HTTPException | None = None

    async def body(self) -> bytes:
        """ValueError where the client is gone before its end."""
        parts, more = [], True
        while more:
            try:
                message = await self._receive()
            except HTTPException as error:  # too large
                self._error = error
                raise
            self._messages.append(message)
            if message["type"] != "http.request":
                raise ValueError("the client is gone")
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        return b"".join(parts)

    async def again(self) -> Message:
        """As `receive` from the first message on."""
        if self._messages:
            return self._messages.popleft()
        if self._error is not None:
            raise self._error
        return await self._receive()
