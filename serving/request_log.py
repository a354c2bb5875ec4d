"""Log lines of a serving process: JSON on standard error, one a line, with the request's id.

    json_logs()                                   # once, before anything is logged
    requests = RequestLog(RequestLogOptions(share=0.01))
    requests.answered("rank", release_id=..., candidates=500, total_s=0.004)

Of answered requests a share is logged; degraded and rejected ones (of load) and refused ones (of
what they are) all are, up to a bound: a server that is overloaded must not spend its time on it.
No line holds a user, a track or a token: `crescendo forget` does not reach logs.
"""

import logging
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from feature_repo.errors import InputError
from serving.request_limits import request_id

CHATTY = ("feast.infra.registry.registry", "faiss.loader")
"""A line a minute that nothing happened; four lines of a search for faster code, as of errors."""

log = structlog.get_logger("crescendo.requests")


@dataclass(frozen=True, kw_only=True)
class RequestLogOptions:
    share: float = 0.01
    """Of the requests that were answered in full: a line costs as much as reading a user's row."""
    most_per_s: int = 100
    """Lines; how many were left out is said in the next one."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise InputError(f"share is {self.share}; expected a share, 0 to 1")
        if self.most_per_s < 1:
            raise InputError(f"most_per_s is {self.most_per_s}; expected at least 1")


def json_logs(stream: TextIO = sys.stderr) -> None:
    """Sends what structlog and `logging` (uvicorn, Feast) log to `stream` as JSON lines."""
    shared: list[Processor] = [
        _with_request_id,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(stream),
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _with_request_id(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    if own := request_id.get():
        event.setdefault("request_id", own)
    return event


class RequestLog:
    """Lines about requests. Used in one event loop only."""

    def __init__(self, options: RequestLogOptions) -> None:
        self._options = options
        self._second = 0
        self._lines = self._left_out = 0

    def answered(
        self,
        route: str,
        *,
        release_id: str,
        candidates: int,
        total_s: float,
        degraded: Sequence[str] = (),
    ) -> None:
        """A request was answered. Logged always if it was degraded."""
        if not degraded and random.random() >= self._options.share:
            return
        facts = {
            "route": route,
            "release_id": release_id,
            "candidates": candidates,
            "total_ms": round(total_s * 1e3, 3),
        }
        if degraded:
            self._line(logging.WARNING, "degraded", **facts, reasons=list(degraded))
        else:
            self._line(logging.INFO, "answered", **facts)

    def rejected(self, route: str, reason: str) -> None:
        """A request was refused because of load."""
        self._line(logging.WARNING, "rejected", route=route, reason=reason)

    def refused(self, reason: str, said: str) -> None:
        """A request was refused for what it is. `said` to the client, who will ask why."""
        self._line(logging.WARNING, "refused", reason=reason, said=said)

    def _line(self, level: int, event: str, **facts: object) -> None:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._lines = second, 0
        if self._lines >= self._options.most_per_s:
            self._left_out += 1
            return
        self._lines += 1
        if self._left_out:
            facts["left_out"], self._left_out = self._left_out, 0
        log.log(level, event, **facts)
