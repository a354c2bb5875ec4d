"""Rankings that wait at the same time are scored in one forward pass.

Half and more of a pass over thirty candidates is overhead, so under load the cost of a ranking
falls; a request that is alone waits for nothing.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from serving.ranker import Ranking, ReleaseRanker

MAX_CANDIDATES_TOGETHER = 2000
"""Candidates of one pass, unless one request has more: nobody waits long for others' rows."""


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    user_id: int
    candidates: Sequence[int]
    ranking: asyncio.Future[Ranking]


class RankTogether:
    """Ranks in the event loop's own thread: scoring is CPU-bound."""

    def __init__(self, ranker: ReleaseRanker) -> None:
        self._ranker = ranker
        self._waiting: deque[_Waiting] = deque()

    async def rank(self, user_id: int, candidates: Sequence[int]) -> Ranking:
        """As `ReleaseRanker.rank`, and raises what it raises. Called in one event loop only."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(user_id=user_id, candidates=candidates, ranking=loop.create_future())
        self._waiting.append(waiting)
        if len(self._waiting) == 1:
            loop.call_soon(self._rank)  # after the requests that were read in the same turn
        return await waiting.ranking

    def _rank(self) -> None:
        group = [self._waiting.popleft()]
        rows = len(group[0].candidates)
        while self._waiting and rows + len(self._waiting[0].candidates) <= MAX_CANDIDATES_TOGETHER:
            group.append(self._waiting.popleft())
            rows += len(group[-1].candidates)
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._rank)
        try:
            requests = [(waiting.user_id, waiting.candidates) for waiting in group]
            for waiting, ranking in zip(group, self._ranker.rank_together(requests), strict=True):
                if not waiting.ranking.done():  # else the client is gone
                    waiting.ranking.set_result(ranking)
        except Exception as error:
            for waiting in group:
                if not waiting.ranking.done():
                    waiting.ranking.set_exception(error)
