"""Rankings in time: what stands between the HTTP routes and the release that scores.

    service = RankingService(live, ServingMetrics(), PressureOptions(), RequestLog(...))
    answer = await service.rank(RankRequest(user_id=7, candidates=[3, 1, 2]))

A request takes one release and keeps it, waits for its user's row no longer than the budget, and
is scored in the event loop's own thread: a pass takes a millisecond or two, a change of thread and
back a tenth of one. One deadline holds over all stages. What had to be given up is named in the
answer (`serving.schemas.Degradation`), and what cannot be answered in time is refused at once
(`serving.pressure`).
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from feature_repo import schema
from feature_repo.freshness import HOUR_US, MAX_USER_AGE_H
from serving.live_releases import LiveReleases
from serving.metrics import ServingMetrics
from serving.pressure import Overloaded, Pressure, PressureOptions
from serving.ranker import Ranking, ReleaseRanker
from serving.recommendation import (
    Shown,
    choose,
    expected_cost_s,
    has_stale_candidates,
    retrieve,
)
from serving.request_limits import arrived_s, request_id
from serving.request_log import RequestLog
from serving.retrieval.options import RetrievalOptions
from serving.schemas import Degradation, RankRequest, RecommendRequest
from serving.tracing import Tracing
from serving.turns import Turns
from serving.user_reader import UserReader
from serving.user_rows import UserRow, made_up_user

STALE_US = (MAX_USER_AGE_H[schema.USER_SEQUENCE] or math.inf) * HOUR_US
NOBODY = made_up_user([], 0)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A ranking, the release that made it, and what it lacks."""

    ranker: ReleaseRanker
    ranking: Ranking
    degraded: list[Degradation]


@dataclass(frozen=True, kw_only=True)
class Recommendation(Answer):
    shown: Shown


@dataclass(kw_only=True)
class Stages:
    """Where a request's time went, in seconds."""

    began: float = field(default_factory=lambda: arrived_s.get() or time.perf_counter())
    queue_s: float = 0.0
    """Waiting for its turn with the store and with the event loop."""
    read_s: float = 0.0
    score_s: float = 0.0

    def left(self, deadline_s: float) -> float:
        return deadline_s - (time.perf_counter() - self.began)


class RankingService:
    """One process's rankings. Used in one event loop only."""

    def __init__(
        self,
        live: LiveReleases,
        metrics: ServingMetrics,
        options: PressureOptions,
        log: RequestLog,
        tracing: Tracing | None = None,
    ) -> None:
        self.live, self.metrics, self.options = live, metrics, options
        self._log, self._tracing = log, tracing
        self.pressure = Pressure(options)
        self._users = UserReader()
        self._turns = Turns()

    @property
    def waiting(self) -> int:
        """Requests taken and not answered."""
        return self.pressure.waiting

    def rejected(self, reason: str, said: str) -> None:
        """A request was refused for what it is, not for load: counted, and a line in the log.

        `reason`: of `serving.metrics.REJECTIONS`; `said`: to the client.
        """
        self.metrics.rejected(reason)
        self._log.refused(reason, said)

    def close(self) -> None:
        """Ends the watching of releases and the reading of users, and sends the last traces."""
        self.live.stop()
        self._users.close()
        if self._tracing is not None:
            self._tracing.close()

    async def rank(
        self, request: RankRequest, *, deadline_ms: float | None = None, traceparent: str = ""
    ) -> Answer:
        """The candidates in order. Raises Overloaded; everything else is a degraded answer.

        `deadline_ms`: as asked by the client; never more than the service's own.
        `traceparent`: of the client's span, as in W3C's header of that name.
        """
        stages = Stages()
        deadline_s = self._deadline_s(deadline_ms)
        with self._admitted("rank", len(request.candidates), deadline_s) as scored:
            ranker = self.live.for_user(request.user_id)
            user, degraded = await self.read_user(ranker, request.user_id, stages, deadline_s)
            waiting_since = time.perf_counter()
            async with self._turns:
                stages.queue_s += time.perf_counter() - waiting_since
                ranking = self._ranking(
                    ranker, user, request.candidates, scored, degraded, stages, deadline_s
                )
            self.pressure.answered(self._turns.after_s, stages.score_s)
        self._answered("rank", ranker, user, ranking, degraded, stages, traceparent, user.newest_us)
        self.live.compare(request.user_id, ranker, ranking)
        return Answer(ranker=ranker, ranking=ranking, degraded=degraded)

    async def recommend(
        self, request: RecommendRequest, *, deadline_ms: float | None = None, traceparent: str = ""
    ) -> Recommendation:
        """Candidates from retrieval, ranked and made diverse. As `rank` otherwise."""
        stages = Stages()
        deadline_s = self._deadline_s(deadline_ms)
        user_id, degraded = request.user_id, list[Degradation]()
        ranker = self.live.current if user_id is None else self.live.for_user(user_id)
        wanted, beside_s = RetrievalOptions().total, expected_cost_s(ranker)
        with self._admitted("recommend", wanted, deadline_s, beside_s) as scored:
            if user_id is None:
                user = made_up_user(request.history or [], time.time_ns() // 1000)
            else:
                user, degraded = await self.read_user(ranker, user_id, stages, deadline_s)
                if has_stale_candidates(user) and "user_stale" not in degraded:
                    degraded.append("user_stale")
            waiting_since = time.perf_counter()
            async with self._turns:
                stages.queue_s += time.perf_counter() - waiting_since
                # Where even scoring has to be cut short, a pass of another model is not begun.
                left_s = stages.left(deadline_s) if scored == wanted else 0.0
                found = retrieve(ranker, user, request, left_s)
                if found.hurried:
                    degraded.append("fewer_candidates")
                candidates = found.track_ids_C.tolist()
                ranking = self._ranking(
                    ranker, user, candidates, scored, degraded, stages, deadline_s
                )
                shown = choose(ranker, found, ranking, request)
            if not beside_s:  # else a pass of another model is in it
                self.pressure.answered(self._turns.after_s, stages.score_s)
        # A made-up user's listens say nothing of how fresh the store is.
        newest_us = None if user_id is None else user.newest_us
        self._answered("recommend", ranker, user, ranking, degraded, stages, traceparent, newest_us)
        return Recommendation(ranker=ranker, ranking=ranking, degraded=degraded, shown=shown)

    async def read_user(
        self, ranker: ReleaseRanker, user_id: int, stages: Stages, deadline_s: float
    ) -> tuple[UserRow, list[Degradation]]:
        """The user's row, or NOBODY's where the store does not answer in time."""
        budget_s = min(self.options.read_budget_ms / 1e3, stages.left(deadline_s) / 2)
        began = time.perf_counter()
        user, stages.read_s = await self._users.read(ranker, user_id, budget_s)
        stages.queue_s = max(time.perf_counter() - began - stages.read_s, 0.0)
        if user is None:
            return NOBODY, ["user_unavailable"]
        age_us = time.time_ns() // 1000 - user.newest_us
        if user.newest_us and age_us > STALE_US:
            return user, ["user_stale"]
        return user, []

    def _ranking(
        self,
        ranker: ReleaseRanker,
        user: UserRow,
        candidates: Sequence[int],
        scored: int,
        degraded: list[Degradation],
        stages: Stages,
        deadline_s: float,
    ) -> Ranking:
        """Scores what there is time for, and adds to `degraded` what was given up."""
        affordable = self.pressure.affordable(scored, stages.left(deadline_s))
        if affordable == 0:
            degraded.append("popularity")
        elif affordable < len(candidates) and "fewer_candidates" not in degraded:
            degraded.append("fewer_candidates")
        began = time.perf_counter()
        ranking = ranker.ranking(user, candidates, scored=affordable)
        stages.score_s = time.perf_counter() - began
        if affordable:
            self.pressure.measured(affordable, stages.score_s)
        return ranking

    def _answered(
        self,
        route: str,
        ranker: ReleaseRanker,
        user: UserRow,
        ranking: Ranking,
        degraded: Sequence[Degradation],
        stages: Stages,
        traceparent: str,
        newest_listen_us: int | None,
    ) -> None:
        total_s = time.perf_counter() - stages.began
        candidates = len(ranking.track_ids) + len(ranking.unknown_track_ids)
        self.metrics.answered(
            route,
            queue_s=stages.queue_s,
            read_s=stages.read_s,
            score_s=stages.score_s,
            total_s=total_s,
            candidates=candidates,
            unknown_candidates=len(ranking.unknown_track_ids),
            newest_listen_us=newest_listen_us,
            degraded=degraded,
        )
        self.metrics.served(ranker, ranking.track_ids, ranking.scores, user.track_ids_L)
        release_id = ranker.release.release_id
        self._log.answered(
            route,
            release_id=release_id,
            candidates=candidates,
            total_s=total_s,
            degraded=degraded,
        )
        if self._tracing is not None:
            self._tracing.answered(
                route,
                release_id=release_id,
                request_id=request_id.get(),
                candidates=candidates,
                queue_s=stages.queue_s,
                read_s=stages.read_s,
                score_s=stages.score_s,
                total_s=total_s,
                degraded=degraded,
                traceparent=traceparent,
            )

    def _deadline_s(self, asked_ms: float | None) -> float:
        own = self.options.deadline_ms
        return (own if asked_ms is None else min(asked_ms, own)) / 1e3

    @contextmanager
    def _admitted(
        self, route: str, candidates: int, deadline_s: float, beside_s: float = 0.0
    ) -> Iterator[int]:
        try:
            with self.pressure.taken(candidates, deadline_s, beside_s) as scored:
                yield scored
        except Overloaded as error:
            self.metrics.rejected(error.counted)
            self._log.rejected(route, error.counted)
            raise
