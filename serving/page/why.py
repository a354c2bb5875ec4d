"""The route that explains a score.

GET /v1/explain?track_id=3&user_id=7
GET /v1/explain?track_id=3&history=11&history=12    a made-up user, oldest listen first
"""

import time
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query
from pydantic import BaseModel

from serving.live_releases import LiveReleases
from serving.page.browse import MAX_IDS, Int64, check_known
from serving.page.catalogue import Catalogue, Track
from serving.page.explain import explain
from serving.page.loaded_files import LoadedFiles
from serving.user_rows import made_up_user


class Reason(BaseModel):
    track: Track
    change: float
    """What this listen did to the score: the score less what it would be without the listen."""
    weights: dict[str, float]
    """Of the attention nets, by name."""
    shared: dict[str, int]
    """Codes that its ID shares with the candidate's from the front, by family."""


class Why(BaseModel):
    release_id: str
    model: str
    track: Track
    score: float
    attention: list[str]
    """Names of the model's attention nets: ID families, `track` or those that one net reads side by
    side (`track+text`), or a transformer's blocks (`block 1`). None: it has no attention."""
    listens: list[Reason]
    """Newest first."""


def why_router(live: LiveReleases, catalogue: LoadedFiles[Catalogue]) -> APIRouter:
    """The route around one process's releases."""
    router = APIRouter()

    @router.get("/v1/explain")
    def get_explain(
        track_id: Int64,
        user_id: Int64 | None = None,
        history: Annotated[list[Int64] | None, Query(max_length=MAX_IDS)] = None,
    ) -> Why:
        moment_us = time.time_ns() // 1000
        if user_id is not None and history is None:
            ranker = live.for_user(user_id)
            (user,) = ranker.user_rows.read([user_id])
        elif user_id is None and history is not None:
            ranker = live.current
            user = made_up_user(history, moment_us)
        else:
            raise HTTPException(422, "give either user_id or history")
        check_known(ranker.items, track_id)
        explained = explain(ranker, user, track_id, moment_us)
        track, *listened = catalogue.now().tracks([track_id, *explained.track_ids_H.tolist()])
        listens = [
            Reason(
                track=listen,
                change=float(explained.changes_H[place]),
                weights={name: float(of_H[place]) for name, of_H in explained.weights.items()},
                shared={family: int(of_H[place]) for family, of_H in explained.shared.items()},
            )
            for place, listen in enumerate(listened)
        ]
        return Why(
            release_id=ranker.release.release_id,
            model=ranker.config.model,
            track=track,
            score=explained.score,
            attention=list(explained.weights),
            listens=listens[::-1],
        )

    return router
