"""The HTTP application: a plain FastAPI app, run by Ray Serve or by any ASGI server.

POST /v1/rank     {"user_id": 7, "candidates": [3, 1, 2]}
POST /v1/events   live events (serving/events.py)
GET  /healthz     the process answers
GET  /readyz      a release is loaded: its id
"""

from typing import Annotated

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from serving.rank_together import RankTogether
from serving.ranker import Ranking, ReleaseRanker
from serving.releases import Release

MAX_CANDIDATES = 2000
Int64 = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]


class RankRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    user_id: Int64
    candidates: list[Int64] = Field(min_length=1, max_length=MAX_CANDIDATES)


class RankedTrack(BaseModel):
    track_id: int
    score: float


class Missing(BaseModel):
    user: bool
    """True: the store knows no listen of this user; the ranking is not personal."""
    tracks: list[int]
    """Candidates that the release's generation does not hold; they are not ranked."""


class RankResponse(BaseModel):
    release_id: str
    user_id: int
    results: list[RankedTrack]
    missing: Missing


def rank(ranker: ReleaseRanker, request: RankRequest) -> RankResponse:
    """The answer of `POST /v1/rank`, also given by `crescendo rank`."""
    ranking = ranker.rank(request.user_id, request.candidates)
    return _response(ranker.release, request, ranking)


def _response(release: Release, request: RankRequest, ranking: Ranking) -> RankResponse:
    return RankResponse(
        release_id=release.release_id,
        user_id=request.user_id,
        results=[
            RankedTrack(track_id=track_id, score=score)
            for track_id, score in zip(ranking.track_ids, ranking.scores, strict=True)
        ],
        missing=Missing(user=not ranking.user_known, tracks=ranking.unknown_track_ids),
    )


def create_app(ranker: ReleaseRanker, events: APIRouter) -> FastAPI:
    """The application around a loaded release and the route that takes events."""
    app = FastAPI(title="Crescendo", docs_url=None, redoc_url=None)
    app.include_router(events)
    together = RankTogether(ranker)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        # FastAPI's own body repeats the input, which may be 2,000 candidates and more.
        reasons = [
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
            for problem in error.errors()[:5]
        ]
        return JSONResponse(status_code=422, content={"error": "; ".join(reasons)})

    # `async def` on purpose: scoring is CPU-bound, and one thread serves its requests in turn.
    @app.post("/v1/rank")
    async def post_rank(request: RankRequest) -> RankResponse:
        ranking = await together.rank(request.user_id, request.candidates)
        return _response(ranker.release, request, ranking)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        return {"release_id": ranker.release.release_id}

    return app
