"""Prometheus metrics of one serving process: GET /metrics.

    metrics = ServingMetrics()
    metrics.loaded(ranker)                  # every release, when it is loaded
    metrics.follows(releases.status, depth) # what is asked for at each scrape
    metrics.answered("rank", ...)           # methods are named by what happened
    app.include_router(metrics_router(metrics))

`deploy/prometheus/serving_alerts.yaml` and `deploy/grafana/serving.json` name these metrics.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import structlog
from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from feature_repo.errors import ArtifactError
from serving.drift import Baseline, DriftWatch
from serving.metrics_at_scrape import AtScrape

if TYPE_CHECKING:
    from serving.ranker import ReleaseRanker

STAGES = ("queue", "read", "score", "answer", "total")
"""Waiting for the store and the event loop; the user's row; the model; the rest; all of it."""
ROUTES = ("rank", "recommend")
DEGRADATIONS = ("user_unavailable", "user_stale", "fewer_candidates", "popularity")
REJECTIONS = ("queue_full", "deadline", "rate", "body", "access", "form")
"""Too many wait; it would come too late; above the token's rate; too large; no right to it; not of
the form that the route takes."""
EVENTS = ("accepted", "pending", "rejected", "refused")
"""Safe and online; safe, and online when the store answers; wrong in itself; not taken at all."""
# Around what is promised: p50 of 5 ms, p99 of 20 ms (500 candidates) and of 30 ms (1000).
LATENCY_BUCKETS_S = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0),
)
CANDIDATE_BUCKETS = (1, 10, 50, 100, 200, 500, 1000, 2000)
HOUR_S = 3600
AGE_BUCKETS_S = (1, 10, 60, 600, HOUR_S, 6 * HOUR_S, *(day * 24 * HOUR_S for day in (1, 2, 7, 28)))
LAG_EVERY_S = 0.25

log = structlog.get_logger()
Child = TypeVar("Child", Histogram, Counter)


class ServingMetrics:
    """What happened in this process. The event loop records; any thread may read."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._stage_s = _each(
            STAGES,
            Histogram(
                "crescendo_request_seconds",
                "Time of answered requests by stage",
                ["stage"],
                buckets=LATENCY_BUCKETS_S,
                registry=registry,
            ),
        )
        answers = Counter(
            "crescendo_answers", "Answered requests", ["route", "outcome"], registry=registry
        )
        self._full = {route: answers.labels(route, "full") for route in ROUTES}
        self._degraded = {route: answers.labels(route, "degraded") for route in ROUTES}
        self._degradations = _each(
            DEGRADATIONS,
            Counter(
                "crescendo_degradations",
                "Answers that were degraded, by reason; one may have several",
                ["reason"],
                registry=registry,
            ),
        )
        self._rejections = _each(
            REJECTIONS,
            Counter(
                "crescendo_rejections", "Refused requests, by reason", ["reason"], registry=registry
            ),
        )
        self._events = _each(
            EVENTS,
            Counter(
                "crescendo_events",
                "Live events that were sent, by what became of them",
                ["status"],
                registry=registry,
            ),
        )
        self._failures = Counter(
            "crescendo_failures", "Requests that ended in an internal error", registry=registry
        )
        self._candidates = Histogram(
            "crescendo_candidates",
            "Candidates of an answered request",
            buckets=CANDIDATE_BUCKETS,
            registry=registry,
        )
        self._unknown_candidates = Counter(
            "crescendo_unknown_candidates",
            "Candidates that the release's generation does not hold",
            registry=registry,
        )
        self._unknown_users = Counter(
            "crescendo_unknown_users",
            "Answers for users whose row is there and shows no listen, or is not there",
            registry=registry,
        )
        self._row_age_s = Histogram(
            "crescendo_user_row_age_seconds",
            "Now less the newest listen in the row of the user who asked",
            buckets=AGE_BUCKETS_S,
            registry=registry,
        )
        self._queue_depth = Gauge(
            "crescendo_queue_depth", "Requests taken and not answered", registry=registry
        )
        self._loop_lag_s = Histogram(
            "crescendo_event_loop_lag_seconds",
            "By how much a timer of the event loop is late: what a request waits to be taken up",
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self._at_scrape = AtScrape()
        registry.register(self._at_scrape)
        ProcessCollector(registry=registry)

    # --- requests --------------------------------------------------------------------------

    def answered(
        self,
        route: str,
        *,
        queue_s: float,
        read_s: float,
        score_s: float,
        total_s: float,
        candidates: int,
        unknown_candidates: int,
        newest_listen_us: int | None,
        degraded: Sequence[str] = (),
    ) -> None:
        """A request of `ROUTES` got its answer. Times in seconds, as `STAGES` says.

        `newest_listen_us`: `UserRow.newest_us`, 0 where no listen of the user is known; None where
        no row was wanted, because the request brought its own history.
        """
        stages = self._stage_s
        stages["queue"].observe(queue_s)
        stages["read"].observe(read_s)
        stages["score"].observe(score_s)
        stages["answer"].observe(max(0.0, total_s - queue_s - read_s - score_s))
        stages["total"].observe(total_s)
        (self._degraded if degraded else self._full)[route].inc()
        for reason in degraded:
            self._degradations[reason].inc()
        self._candidates.observe(candidates)
        if unknown_candidates:
            self._unknown_candidates.inc(unknown_candidates)
        if newest_listen_us:
            self._row_age_s.observe(max(0.0, time.time() - newest_listen_us / 1e6))
            scrape = self._at_scrape
            scrape.newest_listen_us = max(scrape.newest_listen_us, newest_listen_us)
        elif newest_listen_us is not None and "user_unavailable" not in degraded:
            self._unknown_users.inc()

    def served(
        self,
        ranker: "ReleaseRanker",
        track_ids: Sequence[int],
        scores: Sequence[float | None],
        history_L: np.ndarray,
    ) -> None:
        """What a loaded release ranked: tracks, their scores, the listens (L,) it went by."""
        watch = self._at_scrape.watches.get(ranker)
        if watch is not None:
            watch.served(ranker.items, track_ids, scores, history_L)

    def rejected(self, reason: str) -> None:
        """A request was refused, before or instead of being ranked. `reason`: of `REJECTIONS`."""
        self._rejections[reason].inc()

    def took_events(self, status: str, count: int) -> None:
        """So many events of a request ended so. `status`: of `EVENTS`."""
        self._events[status].inc(count)

    def failed(self) -> None:
        """A request ended in an internal error."""
        self._failures.inc()

    async def watch_loop(self) -> None:
        """Measures the running event loop's lag until it is cancelled."""
        while True:
            due = time.perf_counter() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            self._loop_lag_s.observe(max(0.0, time.perf_counter() - due))

    # --- releases --------------------------------------------------------------------------

    def loaded(self, ranker: "ReleaseRanker") -> None:
        """A release was loaded. It is forgotten when nobody holds its ranker any more."""
        folder = ranker.workspace.models / ranker.release.model_id
        try:
            baseline = Baseline.read(folder, ranker.config)
        except ArtifactError as error:
            # Ranks as well as ever: it only has no drift gauges.
            log.warning("drift is not watched", reason=str(error))
            self._at_scrape.watches[ranker] = None
        else:
            self._at_scrape.watches[ranker] = DriftWatch(baseline, ranker.config.families)

    def follows(
        self, releases: Callable[[], Mapping[str, Any]], queue_depth: Callable[[], int]
    ) -> None:
        """What every scrape asks: `LiveReleases.status`, and how many requests wait."""
        self._at_scrape.release_status = releases
        self._queue_depth.set_function(queue_depth)

    # --- reading ---------------------------------------------------------------------------

    def text(self) -> bytes:
        """Everything, in the Prometheus text format."""
        return generate_latest(self.registry)


def metrics_router(metrics: ServingMetrics) -> APIRouter:
    """The route that Prometheus scrapes."""
    router = APIRouter()

    # A plain `def`: it runs in a thread, so that requests do not wait for some milliseconds.
    @router.get("/metrics", include_in_schema=False)
    def get_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router


def _each(values: Sequence[str], family: Child) -> dict[str, Child]:
    """The family's child of each value of its one label: 0 from the start, so that rates work."""
    return {value: family.labels(value) for value in values}
