"""Recommendations: candidates from retrieval, ranked, and of the ranked ones those that are shown.

    found = retrieve(ranker, user, request)
    ranking = ranker.ranking(user, found.track_ids_C)
    shown = choose(ranker, found, ranking, request)

What the release's retriever model expects of the user is one source more: run here for the user's
listens, or read with the user's row (`retriever_choice`). Where it has nothing to say, as for users
without listens, the other sources have their usual shares.

Shape suffixes: C candidates, N tracks that a retriever model proposes.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from feature_repo.freshness import HOUR_US
from serving.ranker import Ranking, ReleaseRanker
from serving.retrieval.options import WITH_MME_SID, RetrievalOptions
from serving.retrieval.release_retriever import ReleaseRetriever
from serving.retrieval.retriever import Candidates
from serving.retriever_choice import LEAST_SHARED
from serving.schemas import RecommendRequest
from serving.user_rows import UserRow

STALE_US = 50 * HOUR_US
"""Candidates are scored every night: a day, the night, and one night that failed."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The tracks of an answer, best first."""

    places: list[int]
    """In the ranking, rising."""
    sources: list[list[str]]
    """Of each: which retrievals proposed it."""


def retrieve(
    ranker: ReleaseRanker,
    user: UserRow,
    request: RecommendRequest,
    left_s: float = math.inf,
) -> Candidates:
    """Candidates for a user; the request's own user is the caller's to read.

    `left_s`: seconds to the request's deadline. The retriever model may take half of it, and is
    not asked where it is expected to take more: then the candidates are `hurried`.
    """
    retriever = _loaded(ranker).retriever
    expected_N, hurried = _expected(ranker, user, left_s / 2)
    shares = WITH_MME_SID if len(expected_N) else {}
    options = RetrievalOptions(include_seen=request.include_seen, **shares)
    found = retriever.candidates(user.track_ids_L, options, expected_N)
    return replace(found, hurried=hurried)


def expected_cost_s(ranker: ReleaseRanker) -> float:
    """Seconds of a recommendation beside reading and scoring: of the retriever model's pass."""
    source = _loaded(ranker).mme_sid
    return 0.0 if source is None else source.cost_s


def has_stale_candidates(user: UserRow) -> bool:
    """Whether the user has listened on for too long since the candidates were scored.

    A user who has not listened since would be proposed the same tracks today.
    """
    return bool(user.expected_us) and user.newest_us - user.expected_us > STALE_US


def choose(
    ranker: ReleaseRanker, found: Candidates, ranking: Ranking, request: RecommendRequest
) -> Shown:
    """Of the ranked candidates, the best ones within the request's limits of diversity."""
    places = (
        _loaded(ranker)
        .retriever.diversify(
            np.array(ranking.track_ids, dtype=np.int64),
            request.count,
            max_per_artist=request.max_per_artist,
            max_per_prefix=request.max_per_prefix,
        )
        .tolist()
    )
    found_at = {track_id: place for place, track_id in enumerate(found.track_ids_C.tolist())}
    sources = [found.sources(found_at[ranking.track_ids[place]]) for place in places]
    return Shown(places=places, sources=sources)


def _expected(ranker: ReleaseRanker, user: UserRow, budget_s: float) -> tuple[np.ndarray, bool]:
    """Track ids (N,) of the retriever model, best first, and whether there was no time for it."""
    loaded = _loaded(ranker)
    source = loaded.mme_sid
    if source is None or not len(user.track_ids_L):
        return user.expected_N, False
    if not source.fits(budget_s):
        return user.expected_N, True
    wanted = WITH_MME_SID["mme_sid"] + len(user.track_ids_L)
    share = max(loaded.proposed_share, LEAST_SHARED)
    return source.nearest(user.track_ids_L, math.ceil(wanted / share)), False


def _loaded(ranker: ReleaseRanker) -> ReleaseRetriever:
    if ranker.retriever is None:
        raise RuntimeError("ReleaseRanker.load_retriever must be called before a recommendation")
    return ranker.retriever
