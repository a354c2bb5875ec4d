"""A generation artifact with made-up codes, for tests that need IDs but no quantizer."""

import numpy as np
import pyarrow.parquet as pq
import torch

from feature_repo.artifacts import Manifest, write_artifact
from feature_repo.workspace import Workspace
from ray_jobs.generation_table import IDS_FILE, ids_table

FAMILIES = ("text", "audio", "joint")
LEVELS = 2
CODES = 5


def write_generation(workspace: Workspace, generation_id: str, tracks: int, seed: int = 0) -> None:
    """Random codes for tracks 1..tracks; the first track lacks audio."""
    random = np.random.default_rng(seed)
    track_ids = np.arange(1, tracks + 1)
    codes = {}
    for family in FAMILIES:
        owners = track_ids[1:] if family == "audio" else track_ids
        drawn = random.integers(0, CODES, size=(len(owners), LEVELS))
        codes[family] = (owners, torch.from_numpy(drawn))
    manifest = Manifest(
        kind="generation",
        id=generation_id,
        parents={"codebooks": {}},
        info={"families": list(FAMILIES), "levels": LEVELS, "codes": CODES},
    )
    with write_artifact(workspace.generations / generation_id, manifest) as partial:
        pq.write_table(ids_table(track_ids, codes), partial / IDS_FILE)
