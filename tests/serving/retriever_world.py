"""Retriever models for the releases' world: one that a replica runs, one whose candidates lie in
the online store, one of another catalogue."""

import contextlib

import pytest

from feature_repo.workspace import Workspace
from ray_jobs import score_users, user_scoring
from ray_jobs.score_users import ScoreUsersOptions
from serving.pressure import PressureOptions
from tests.retrievers import write_retriever
from tests.trained import TRACKS

PATIENT = PressureOptions(deadline_ms=60_000, read_budget_ms=30_000)
UNKNOWN_TRACKS = (5, 17)
"""Of the generations, to the retrievers that fit."""
OLD_TRACKS = (900, 901)
"""Of the retrievers, to the generations: they have left the catalogue."""
KNOWN = [*(track for track in range(1, TRACKS + 1) if track not in UNKNOWN_TRACKS), *OLD_TRACKS]


def write_retrievers(workspace: Workspace) -> tuple[str, str, str]:
    """Their ids: live, batch, foreign."""
    live, batch = (write_retriever(workspace, KNOWN, seed=seed) for seed in (0, 1))
    foreign = write_retriever(workspace, range(1000, 1100), seed=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score_users, "scored_blocks", scored_here)
        patch.setattr(score_users, "ray_session", contextlib.nullcontext)
        score_users.score_users(workspace, ScoreUsersOptions(model_id=batch, top=30))
    return live, batch, foreign


def scored_here(histories, scoring, *, actors, batch_size):
    """Without Ray, in one block a table."""
    actor = user_scoring.ScoreActor(scoring)
    for table in histories:
        yield actor(table)
