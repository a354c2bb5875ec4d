"""What a client is told when a request fails: `{"error": REASON}`, never a path or a stack trace.

    app = FastAPI(responses=ERROR_ANSWERS)
    add_error_answers(app, failed=metrics.failed, rejected=service.rejected)

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
JSON_TYPE = "application/json"

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


def add_error_answers(
    app: FastAPI,
    failed: Callable[[], None] = lambda: None,
    rejected: Callable[[str, str], None] = lambda reason, said: None,
) -> None:
    """Puts the handlers in place. `failed` is told of each internal error, `rejected` of each body
    and each parameter of a wrong form: `form`, and what is said."""

    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        said = _reasons(request, error)
        rejected("form", said)
        return JSONResponse({"error": said}, 422)

    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        said = error.detail
        if error.status_code == 400:  # FastAPI's, which says no more than that it cannot read it
            said = _unreadable(request, error.__cause__)
            rejected("form", said)
        return JSONResponse({"error": said}, error.status_code, headers=error.headers)

    async def internal(request: Request, error: Exception) -> JSONResponse:
        failed()
        return await _failed(request, error)

    app.add_exception_handler(RequestValidationError, invalid)  # type: ignore[arg-type]
    app.add_exception_handler(StarletteHTTPException, refused)  # type: ignore[arg-type]
    app.add_exception_handler(StoreUnavailableError, _unavailable)
    app.add_exception_handler(Exception, internal)


def _reasons(request: Request, error: RequestValidationError) -> str:
    # FastAPI's own body repeats the input, which may be 2,000 candidates and more.
    problems = error.errors()[:MAX_PROBLEMS]
    if isinstance(error.body, bytes):  # FastAPI parses what says that it is JSON
        kind = request.headers.get("content-type", "")[:MAX_NAME]
        return f"body: the Content-Type is {kind!r}; send the header `Content-Type: {JSON_TYPE}`"
    if problems[0]["type"] == "json_invalid":
        (_, place), why = problems[0]["loc"], problems[0]["ctx"]["error"]
        return f"body: not JSON at character {place}: {why}"
    return "; ".join(
        f"{'.'.join(_name(part) for part in problem['loc'])}: {problem['msg']}"
        for problem in problems
    )


def _unreadable(request: Request, error: BaseException | None) -> str:
    coding = request.headers.get("content-encoding", "identity")[:MAX_NAME]
    if coding != "identity":
        return f"body: its Content-Encoding is {coding!r}; send it as it is"
    if isinstance(error, UnicodeDecodeError):
        return "body: it is not text in UTF-8"
    if isinstance(error, RecursionError):
        return "body: it is nested too deeply"
    return "body: it holds what cannot be read, such as a number of thousands of digits"


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
