"""A small workspace as the page shows one: titles, tags, audio files, a release with IDs.

Its ranker has random weights. Track 1 has a title with markup in it and no audio IDs; tracks up to
`AUDIBLE` have a file of half a second.
"""

import wave
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from fastapi import FastAPI

from feature_repo import schema
from feature_repo.store_settings import PACKED_SQLITE, STORE_SETTINGS
from feature_repo.workspace import Workspace
from ray_jobs.publish import publish
from ray_jobs.sequences import SequenceOptions, sequences
from ray_jobs.training_set import TrainingSetOptions, training_set
from serving.deployment import load_app
from serving.pressure import PressureOptions
from serving.releases import make_release
from tests.event_logs import START, write_events
from tests.generations import write_generation
from tests.trained import TRACKS, learnable_log
from tests.untrained import write_model

GENERATION = "gen-dddddddddddd"
LENGTH = 6
AUDIBLE = 5
MARKUP = "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"


def page_world(folder: Path, model: str) -> Workspace:
    folder.mkdir()
    settings = STORE_SETTINGS | {"online_store": {"type": PACKED_SQLITE, "path": "online.db"}}
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    workspace = Workspace(folder)
    write_events(workspace, learnable_log(events=1000))
    write_tracks(workspace)
    sequences(workspace, SequenceOptions(length=LENGTH))
    write_generation(workspace, GENERATION, TRACKS)
    publish(workspace)
    write_model(workspace, training_set(workspace, TrainingSetOptions()), model)
    make_release(workspace)
    return workspace


def load_patient_app(workspace: Workspace) -> FastAPI:
    """The application with time enough on a busy machine: none of its answers is degraded."""
    pressure = PressureOptions(deadline_ms=60_000.0, read_budget_ms=30_000.0)
    return load_app(workspace, pressure=pressure)


def write_tracks(workspace: Workspace) -> None:
    workspace.tracks.mkdir(parents=True)
    (workspace.root / "audio").mkdir()
    rows = []
    for track_id in range(1, TRACKS + 1):
        audio = workspace.root / "audio" / f"{track_id}.wav"
        if track_id <= AUDIBLE:
            write_tone(audio, 200.0 + 50 * track_id)
        rows.append(
            {
                "track_id": track_id,
                "title": MARKUP if track_id == 1 else f"Song number {track_id}",
                "artist": f"Artist {track_id % 7}",
                "tags": ["even" if track_id % 2 == 0 else "odd", f"seventh {track_id % 7}"],
                "audio_uri": str(audio),
                "released_at": START - timedelta(days=track_id),
            }
        )
    table = pa.Table.from_pylist(rows, schema=schema.TRACKS)
    pq.write_table(table, workspace.tracks / "part-0.parquet")


def write_tone(path: Path, hertz: float) -> None:
    """Half a second of a sine, 16 bits, mono."""
    seconds = np.arange(4000) / 8000
    samples = (8000 * np.sin(2 * np.pi * hertz * seconds)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, len(samples), "NONE", ""))
        file.writeframes(samples.tobytes())
