"""The HTTP routes that rank.

POST /v1/rank        {"user_id": 7, "candidates": [3, 1, 2]}  (see serving/straight_rank.py too)
POST /v1/recommend   {"user_id": 7, "count": 20}   or   {"history": [3, 1], "count": 20}

The header `X-Deadline-Ms` shortens the service's own deadline. 503 with Retry-After where the
answer would come too late.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Response
from fastapi.responses import JSONResponse
from pydantic_core import to_json

from serving.pressure import RETRY_AFTER_S, Overloaded
from serving.ranker import Ranking, ReleaseRanker
from serving.ranking_service import RankingService
from serving.recommendation import Shown
from serving.schemas import (
    Degradation,
    RankRequest,
    RankResponse,
    RecommendRequest,
    RecommendResponse,
)

MAX_TRACEPARENT = 128
DEADLINES_MS = (1, 60_000)
TraceParent = Annotated[str, Header(max_length=MAX_TRACEPARENT)]
DeadlineMs = Annotated[
    float | None, Header(alias="X-Deadline-Ms", ge=DEADLINES_MS[0], le=DEADLINES_MS[1])
]
RESULT = b'{"track_id":%b,"score":%b},'


def rank_response(
    release_id: str, user_id: int, ranking: Ranking, degraded: list[Degradation]
) -> bytes:
    """RankResponse as JSON. All numbers are written by one call and then put into their places:
    five hundred dictionaries take twice as long, as many pydantic objects as long as scoring."""
    numbers: list[float | None] = [None] * (2 * len(ranking.track_ids))
    numbers[::2], numbers[1::2] = ranking.track_ids, ranking.scores
    written = to_json(numbers)[1:-1].split(b",") if numbers else []
    results = (RESULT * len(ranking.track_ids))[:-1] % tuple(written)
    asked = {"release_id": release_id, "user_id": user_id}
    lacks = {
        "missing": {"user": not ranking.user_known, "tracks": ranking.unknown_track_ids},
        "degraded": degraded,
    }
    return b'%b,"results":[%b],%b' % (to_json(asked)[:-1], results, to_json(lacks)[1:])


async def rank_body(
    service: RankingService, request: RankRequest, deadline_ms: float | None, traceparent: str
) -> bytes:
    """What is answered to a request. Raises Overloaded."""
    answer = await service.rank(request, deadline_ms=deadline_ms, traceparent=traceparent)
    release_id = answer.ranker.release.release_id
    return rank_response(release_id, request.user_id, answer.ranking, answer.degraded)


def recommend_response(
    ranker: ReleaseRanker,
    user_id: int | None,
    ranking: Ranking,
    shown: Shown,
    degraded: list[Degradation],
) -> dict[str, Any]:
    """RecommendResponse as a dictionary."""
    return {
        "release_id": ranker.release.release_id,
        "user_id": user_id,
        "results": [
            {"track_id": ranking.track_ids[n], "score": ranking.scores[n], "sources": sources}
            for n, sources in zip(shown.places, shown.sources, strict=True)
        ],
        "missing": {"user": not ranking.user_known, "tracks": ranking.unknown_track_ids},
        "degraded": degraded,
    }


def refused(error: Overloaded) -> JSONResponse:
    return JSONResponse(
        status_code=503,
        content={"error": f"overloaded: {error}; try again"},
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )


def ranking_router(service: RankingService) -> APIRouter:
    """The routes around one process's service."""
    router = APIRouter()

    # `async def` on purpose: scoring is CPU-bound, and one thread serves its requests in turn.
    @router.post("/v1/rank", response_model=RankResponse)
    async def post_rank(
        request: RankRequest, deadline_ms: DeadlineMs = None, traceparent: TraceParent = ""
    ) -> Response:
        try:
            body = await rank_body(service, request, deadline_ms, traceparent)
        except Overloaded as error:
            return refused(error)
        return Response(body, media_type="application/json")

    @router.post("/v1/recommend", response_model=RecommendResponse)
    async def post_recommend(
        request: RecommendRequest, deadline_ms: DeadlineMs = None, traceparent: TraceParent = ""
    ) -> Response:
        try:
            answer = await service.recommend(
                request, deadline_ms=deadline_ms, traceparent=traceparent
            )
        except Overloaded as error:
            return refused(error)
        body = recommend_response(
            answer.ranker, request.user_id, answer.ranking, answer.shown, answer.degraded
        )
        return Response(to_json(body), media_type="application/json")

    return router
