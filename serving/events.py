"""The HTTP route that takes live events.

POST /v1/events   {"events": [{"event_id": 1, "user_id": 7, "track_id": 3, "action": "play",
                               "event_timestamp": "2026-01-02T03:04:05Z"}]}

An event that the answer calls accepted is safe and in its user's row: the next ranking reads it.
A request of the wrong form is refused as a whole (422); what is wrong with a single event's time or
id is said in its receipt. The same request may be sent again until it is answered. A new user gets
a first row; a track that no generation knows yet is kept and has no IDs.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Literal

import structlog
from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, FailFast, Field
from pydantic_core import to_json

from feature_repo.live_events import LiveEvent, LiveEvents, Receipt
from serving.schemas import MAX_UNKNOWN, Body

log = structlog.get_logger()

MAX_EVENTS = 1000
RETRY_S = 1
MAX_TOGETHER = 5000
"""Events of one sync and one write."""
PACE_S = 0.02
"""While requests come side by side, a group begins so long after the last one: a group costs over a
millisecond of CPU whatever it holds, and at 200 requests a second four come meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """One request's events, and where its receipts are awaited."""

    events: list[LiveEvent]
    receipts: asyncio.Future[list[Receipt]]


class Together:
    """Requests that come while others are worked on go together into the next `take`.

    Sync to disk and write cost about as much for many events as for one, so the cost of an event
    falls as the load grows. A thread waits for them, so that rankings go on meanwhile. Who sends
    one request after the other never waits for company.
    """

    def __init__(self, live: LiveEvents) -> None:
        self._live = live
        self._waiting: deque[Waiting] = deque()
        self._working: asyncio.Task[None] | None = None
        self._next_at = 0.0
        """Of `time.monotonic()`: when the next group may begin."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="live-events")

    async def take(self, events: list[LiveEvent]) -> list[Receipt]:
        """As `LiveEvents.take`, and raises what it raises. Called in one event loop only."""
        receipts = asyncio.get_running_loop().create_future()
        self._waiting.append(Waiting(events=events, receipts=receipts))
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        return await receipts

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                began = time.monotonic()
                if began < self._next_at:
                    await asyncio.sleep(self._next_at - began)
                    began = time.monotonic()
                group = self._next_group()
                self._next_at = began + (PACE_S if len(group) > 1 else 0.0)
                events = [event for waiting in group for event in waiting.events]
                try:
                    taken = iter(await loop.run_in_executor(self._thread, self._live.take, events))
                    for waiting in group:
                        own = list(islice(taken, len(waiting.events)))
                        if not waiting.receipts.done():  # else the client is gone
                            waiting.receipts.set_result(own)
                except Exception as error:
                    for waiting in group:
                        if not waiting.receipts.done():
                            waiting.receipts.set_exception(error)
        finally:
            self._working = None

    def _next_group(self) -> list[Waiting]:
        group = [self._waiting.popleft()]
        size = len(group[0].events)
        while self._waiting and size + len(self._waiting[0].events) <= MAX_TOGETHER:
            group.append(self._waiting.popleft())
            size += len(group[-1].events)
        return group


def few_fields(data: Any) -> Any:
    """As `Body.few_fields`, of one event; `crescendo push` has no need of it."""
    known = len(LiveEvent.model_fields)
    if isinstance(data, dict) and len(data) > known + MAX_UNKNOWN:
        raise ValueError(f"{len(data)} fields, of which at most {known} are known")
    return data


class EventsRequest(Body):
    events: Annotated[list[Annotated[LiveEvent, BeforeValidator(few_fields)]], FailFast()] = Field(
        min_length=1, max_length=MAX_EVENTS
    )


class EventReceipt(BaseModel):
    event_id: int
    status: Literal["accepted", "pending", "rejected"]
    reason: str | None = None


class EventsResponse(BaseModel):
    accepted: int
    pending: int
    """Safe, and online as soon as the online store answers again."""
    rejected: int
    events: list[EventReceipt]
    """One receipt an event, in the order of the request."""


def refused(reason: str) -> JSONResponse:
    """503 without a path or a driver's words: those are for the log."""
    return JSONResponse({"error": reason}, 503, headers={"Retry-After": str(RETRY_S)})


def events_router(live: LiveEvents, counted: Callable[[str, int], None]) -> APIRouter:
    """The route around one process's LiveEvents.

    `counted` is told how many events of a request were accepted, pending, rejected, or refused
    with all others because the journal takes nothing.
    """
    router = APIRouter()
    together = Together(live)

    @router.post("/v1/events", response_model=EventsResponse)
    async def post_events(request: EventsRequest) -> Response:
        try:
            receipts = await together.take(request.events)
        except OSError as error:
            log.error("event journal", problem=str(error))
            counted("refused", len(request.events))
            return refused("the event journal takes nothing; send the same events again")
        counts = dict.fromkeys(("accepted", "pending", "rejected"), 0)
        for receipt in receipts:
            counts[receipt.status] += 1
        for status, count in counts.items():
            counted(status, count)
        # EventsResponse as a dictionary: its objects would cost a quarter of the route.
        told = [{"event_id": r.event_id, "status": r.status, "reason": r.reason} for r in receipts]
        return Response(to_json({**counts, "events": told}), media_type="application/json")

    return router


def refusing_router() -> APIRouter:
    """The route where no events can be taken; the log says why."""
    router = APIRouter()

    @router.post("/v1/events", response_model=EventsResponse)
    async def post_events(request: EventsRequest) -> JSONResponse:
        return refused("this server takes no live events")

    return router
