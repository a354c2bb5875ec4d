"""A small published world to study rankers on: vectors that form groups, listeners who like some.

A listener completes the tracks of two of the five groups that the vectors form, mostly, and skips
the others, so that IDs of content can be of use.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from feature_repo.workspace import Workspace
from ray_jobs.embed import EmbedOptions, embed
from ray_jobs.publish import publish
from ray_jobs.quantize import quantize
from ray_jobs.quantize_options import QuantizeOptions
from ray_jobs.sequences import SequenceOptions, sequences
from tests.embedded import write_track_table
from tests.event_logs import event, write_events

TRACK_COUNT, USERS, EVENTS, GROUPS = 90, 40, 2400, 5


def write_tracks(workspace: Workspace) -> None:
    random = np.random.default_rng(0)
    columns = {}
    for name, dims in (("text", 12), ("audio", 6)):
        centres = random.normal(size=(GROUPS, dims)) * 3
        rows = centres[np.arange(1, TRACK_COUNT + 1) % GROUPS]
        rows = rows + random.normal(size=rows.shape)
        vectors = pa.array(list(rows.astype("f4")), type=pa.list_(pa.float32(), dims))
        columns[f"{name}_vector"] = vectors
    write_track_table(workspace, TRACK_COUNT, columns)


def listening() -> list[dict]:
    random = np.random.default_rng(1)
    log = []
    for number in range(EVENTS):
        user, track = int(random.integers(1, USERS + 1)), int(random.integers(1, TRACK_COUNT + 1))
        liked = (track - user) % GROUPS < 2
        completes = random.random() < (0.9 if liked else 0.15)
        minute = float(random.integers(0, 60 * 24 * 20))
        log.append(event(number, user, track, minute, "complete" if completes else "skip"))
    return log


def published_world(folder: Path) -> Workspace:
    """With embeddings of two modalities and one PSRQ generation, the base of what is studied."""
    workspace = Workspace(folder)
    write_tracks(workspace)
    write_events(workspace, listening())
    for modality in ("text", "audio"):
        embed(workspace, EmbedOptions(modality=modality, encoder="vectors"))
    made = quantize(workspace, QuantizeOptions(levels=3, codes=8))
    sequences(workspace, SequenceOptions(length=10))
    publish(workspace, made["generation_id"])
    return workspace
