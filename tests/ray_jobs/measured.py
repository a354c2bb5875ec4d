"""Semantic IDs whose quality was measured, for the tests of this folder.

Fixtures: `made` (one a session, not to be changed) and `fresh` (a copy of its workspace).
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from feature_repo.workspace import Workspace
from ray_jobs.embed import EmbedOptions, embed
from ray_jobs.quality import QualityOptions, quality
from ray_jobs.quantize import quantize
from ray_jobs.quantize_options import QuantizeOptions
from tests.embedded import write_track_table
from tests.event_logs import event, write_events

COUNT, CODES = 400, 12
OPTIONS = QuantizeOptions(modalities=("text", "audio"), codes=CODES)


def write_tracks(workspace: Workspace, tags: list[list[str] | None]) -> None:
    """Clustered vectors; track 1 has no audio."""
    random = np.random.default_rng(0)
    columns = {"tags": pa.array(tags, type=pa.list_(pa.string()))}
    for name, dims in (("text", 10), ("audio", 6)):
        centres = random.normal(size=(12, dims)) * 2
        rows = (centres[np.arange(COUNT) % 12] + random.normal(size=(COUNT, dims))).astype("f4")
        values = [None if name == "audio" and n == 0 else row for n, row in enumerate(rows)]
        columns[f"{name}_vector"] = pa.array(values, type=pa.list_(pa.float32(), dims))
    write_track_table(workspace, COUNT, columns)


def some_tags() -> list[list[str] | None]:
    """By cluster; `music` is on nearly all, `rare` on three, and every tenth track has none."""
    tags = [
        [f"genre {n % 12 // 3}", "music"] + (["rare"] if n in (1, 2, 3) else [])
        for n in range(COUNT)
    ]
    return [None if n % 10 == 9 else found for n, found in enumerate(tags)]


def some_listens(tracks: int) -> list[dict]:
    """Users who keep to one cluster mostly; every third listen is a skip of anything."""
    random = np.random.default_rng(1)
    events = []
    for n in range(1500):
        user = int(random.integers(0, 60))
        cluster = user % 12 if random.random() < 0.8 else int(random.integers(0, 12))
        track_id = 1 + cluster + 12 * int(random.integers(0, tracks // 12))
        events.append(event(n, user, track_id, n, "skip" if n % 3 == 0 else "play"))
    return events


@pytest.fixture(scope="session")
def made(tmp_path_factory, ray_local):
    """A quantized workspace, and what `quality` answered. Not to be changed."""
    workspace = Workspace(tmp_path_factory.mktemp("quality"))
    write_tracks(workspace, some_tags())
    write_events(workspace, some_listens(COUNT))
    for modality in OPTIONS.modalities:
        embed(workspace, EmbedOptions(modality=modality, encoder="vectors"))
    made = quantize(workspace, OPTIONS)
    answer, families = quality(workspace, QualityOptions())
    return workspace, made, answer, families


@pytest.fixture
def fresh(made, tmp_path):
    """A copy of the workspace, to write other pages in, and its generation's id."""
    shutil.copytree(made[0].root, tmp_path / "copy")
    return Workspace(tmp_path / "copy"), made[1]["generation_id"]


def stored(answer):
    return json.loads(Path(answer["json"]).read_text())["families"]


def genre_labels():
    """The rule of `tag_labels`, spelled out: `music` is too common, `rare` too rare."""
    return np.array([-1 if n % 10 == 9 else n % 12 // 3 for n in range(COUNT)])
