"""What a client is told when a request fails: `{"error": REASON}`, never a path or a stack trace.

    app = FastAPI(responses=ERROR_ANSWERS)
    add_error_answers(app)

Writes a log line for what is no client's fault, with the request's id, by which the answer's
`request_id` finds it. Our own errors name files and commands, for whoever runs the server: they go
to the log, and the client reads that something internal failed.
"""

import traceback
from collections.abc import Callable
from typing import Any

import structlog
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException

from feature_repo.errors import StoreUnavailableError
from serving.request_limits import HEADER, request_id

MAX_PROBLEMS = 5
MAX_NAME = 64
"""Characters of a field's name that are repeated: it may be a whole body long."""
RETRY_S = 1

log = structlog.get_logger()


class ErrorAnswer(BaseModel):
    """The body of every answer but 2xx."""

    error: str
    request_id: str | None = None
    """With 500: what to search the server's log for."""


ERROR_ANSWERS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": description}
    for status, description in {
        400: "The body could not be read",
        401: "No good token",
        403: "The token lacks the scope",
        404: "There is no such track, family or route",
        413: "The body is too large",
        422: "The request is not of this form",
        429: "More requests than the token or the queue allows; see Retry-After",
        500: "Internal error",
        503: "Not now; see Retry-After",
    }.items()
}
"""For FastAPI's `responses`, so that the OpenAPI document tells the truth."""


def add_error_answers(app: FastAPI, failed: Callable[[], None] = lambda: None) -> None:
    """Puts the handlers in place. `failed` is told of each internal error."""

    async def internal(request: Request, error: Exception) -> JSONResponse:
        failed()
        return await _failed(request, error)

    app.add_exception_handler(RequestValidationError, _invalid)  # type: ignore[arg-type]
    app.add_exception_handler(StarletteHTTPException, _refused)  # type: ignore[arg-type]
    app.add_exception_handler(StoreUnavailableError, _unavailable)
    app.add_exception_handler(Exception, internal)


async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    # FastAPI's own body repeats the input, which may be 2,000 candidates and more.
    reasons = [
        f"{'.'.join(_name(part) for part in problem['loc'])}: {problem['msg']}"
        for problem in error.errors()[:MAX_PROBLEMS]
    ]
    return JSONResponse({"error": "; ".join(reasons)}, 422)


async def _refused(_: Request, error: HTTPException) -> JSONResponse:
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


async def _unavailable(_: Request, error: Exception) -> JSONResponse:
    log.error("store unavailable", request_id=request_id.get(), problem=str(error))
    return JSONResponse(
        {"error": "a store does not answer; try again"}, 503, headers={"Retry-After": str(RETRY_S)}
    )


async def _failed(_: Request, error: Exception) -> JSONResponse:
    own = request_id.get()
    trace = "".join(traceback.format_exception(error))
    log.error("internal error", request_id=own, trace=trace)
    # The middleware that returns the id is passed by: Starlette raises the error through it.
    return JSONResponse(
        {"error": "internal error", "request_id": own}, 500, headers={HEADER.decode(): own}
    )


def _name(part: object) -> str:
    """One step to the field that is wrong. JSON may name it with half a surrogate pair."""
    return str(part)[:MAX_NAME].encode("utf-8", "replace").decode()
