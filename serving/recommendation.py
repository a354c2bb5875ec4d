"""Recommendations: candidates from retrieval, ranked, and of the ranked ones those that are shown.

    found = retrieve(ranker, user, request)
    ranking = ranker.ranking(user, found.track_ids_C)
    shown = choose(ranker, found, ranking, request)

Shape suffixes: C candidates.
"""

from dataclasses import dataclass

import numpy as np

from serving.ranker import Ranking, ReleaseRanker
from serving.retrieval.options import RetrievalOptions
from serving.retrieval.retriever import Candidates, Retriever
from serving.schemas import RecommendRequest
from serving.user_rows import UserRow


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The tracks of an answer, best first."""

    places: list[int]
    """In the ranking, rising."""
    sources: list[list[str]]
    """Of each: which retrievals proposed it."""


def retrieval_options(request: RecommendRequest) -> RetrievalOptions:
    return RetrievalOptions(include_seen=request.include_seen)


def retrieve(ranker: ReleaseRanker, user: UserRow, request: RecommendRequest) -> Candidates:
    """Candidates for a user; the request's own user is the caller's to read."""
    return _retriever(ranker).candidates(user.track_ids_L, retrieval_options(request))


def choose(
    ranker: ReleaseRanker, found: Candidates, ranking: Ranking, request: RecommendRequest
) -> Shown:
    """Of the ranked candidates, the best ones within the request's limits of diversity."""
    places = (
        _retriever(ranker)
        .diversify(
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


def _retriever(ranker: ReleaseRanker) -> Retriever:
    if ranker.retriever is None:
        raise RuntimeError("ReleaseRanker.load_retriever must be called before a recommendation")
    return ranker.retriever.retriever
