"""The requests of a load test: users and candidates, drawn evenly at random.

Ids come from a workspace (users with listens, tracks of the live release's generation), from a
range, or from a file: a service in another place can be tested without its workspace.

Shape suffixes: U users, I tracks.
"""

import json
import re
from pathlib import Path

import numpy as np

from feature_repo import schema
from feature_repo.artifacts import parquet_files, read_manifest
from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from serving.releases import live_release


def rank_bodies(
    user_ids_U: np.ndarray,
    track_ids_I: np.ndarray,
    candidates: int,
    count: int,
    random: np.random.Generator,
) -> list[bytes]:
    """`count` bodies of `POST /v1/rank`; no candidate twice in one."""
    if not 1 <= candidates <= len(track_ids_I):
        raise InputError(
            f"candidates must lie between 1 and the {len(track_ids_I)} tracks there are, "
            f"got {candidates}"
        )
    bodies = []
    for user_id in random.choice(user_ids_U, count).tolist():
        drawn = random.choice(track_ids_I, candidates, replace=False).tolist()
        bodies.append(json.dumps({"user_id": user_id, "candidates": drawn}).encode())
    return bodies


def workspace_users(workspace: Workspace) -> np.ndarray:
    """Ids of the users that have a sequence."""
    import pyarrow.parquet as pq

    source = workspace.require(workspace.feature_source(schema.USER_SEQUENCE), "sequences")
    table = pq.read_table(parquet_files(source), columns=[schema.USER_ID])
    return np.unique(table[schema.USER_ID].to_numpy())


def workspace_tracks(workspace: Workspace) -> np.ndarray:
    """Ids of the tracks of the live release's generation."""
    import pyarrow.parquet as pq

    folder = workspace.generations / live_release(workspace).generation_id
    read_manifest(folder, kind="generation", made_by="quantize")
    table = pq.read_table(folder / "ids.parquet", columns=[schema.TRACK_ID])
    return table[schema.TRACK_ID].to_numpy()


def read_ids(name: str, text: str) -> np.ndarray:
    """The ids of `A-B`, both included, or of a file with one on each line."""
    between = re.fullmatch(r"(\d+)-(\d+)", text)
    if between and int(between[1]) <= int(between[2]):
        return np.arange(int(between[1]), int(between[2]) + 1)
    path = Path(text)
    if between or not path.is_file():
        raise InputError(f"{name} must be FIRST-LAST or a file with an id a line, got {text!r}")
    try:
        ids = np.array([int(line) for line in path.read_text().split()], dtype=np.int64)
    except (ValueError, OverflowError):
        raise InputError(f"{name}: {path} must hold one int64 id on each line") from None
    if len(ids) == 0:
        raise InputError(f"{name}: {path} is empty; expected one id on each line")
    return ids
