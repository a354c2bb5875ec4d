"""A training set's files without a feature store, and what a worker is told to train on them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from feature_repo import schema
from models.ranker_config import RankerConfig
from ray_jobs.run_folder import OWNER_FILE

TRACKS, CODES, LEVELS, HISTORY = 40, 4, 2, 6
FAMILIES = ("text", "joint")


def write_rows(path: Path, rows: int, seed: int) -> None:
    """Users like the tracks of their own parity."""
    random = np.random.default_rng(seed)
    users, tracks = random.integers(0, 30, rows), random.integers(1, TRACKS + 1, rows)
    likes = random.random(rows) < np.where(users % 2 == tracks % 2, 0.85, 0.2)
    histories = [
        random.integers(1, TRACKS // 2, random.integers(0, HISTORY + 1)) * 2 - user % 2
        for user in users
    ]
    table = pa.table(
        {
            schema.USER_ID: users,
            schema.TRACK_ID: tracks,
            "label": likes.astype(np.int8),
            schema.SEQUENCE_TRACK_IDS: pa.array(histories, type=pa.list_(pa.int64())),
        }
    )
    pq.write_table(table, path, row_group_size=100)


def write_training_set(folder: Path, *, files: int = 3, rows: int = 900) -> Path:
    folder.mkdir(parents=True)
    for number in range(files):
        write_rows(folder / f"train-{number:05d}.parquet", rows, seed=number)
    write_rows(folder / "validation.parquet", 350, seed=100)
    write_rows(folder / "test.parquet", 350, seed=101)
    track_ids = np.arange(1, TRACKS + 1)
    codes = np.random.default_rng(0).integers(0, CODES, (TRACKS, len(FAMILIES), LEVELS))
    counts = np.full(TRACKS, files * rows // TRACKS)
    tensors = {
        "track_ids": track_ids,
        "codes": codes,
        "vocabulary_track_ids": track_ids,
        "vocabulary_train_counts": counts,
    }
    save_file(tensors, folder / "items.safetensors")
    return folder


def worker_settings(training_set: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """What `ray_jobs.train` tells a worker, for a tiny MCCA."""
    folder.mkdir()
    (folder / OWNER_FILE).write_text("me")
    config = RankerConfig(
        model="mcca",
        id_rows=TRACKS + 1,
        families=FAMILIES,
        levels=LEVELS,
        codes=CODES,
        history_length=HISTORY,
        embedding_width=8,
        attention_hidden=8,
        tower_hidden=(16,),
    )
    settings = {
        "folder": str(folder),
        "owner": "me",
        "training_set": str(training_set),
        "ranker": asdict(config),
        "start_weights": None,
        "warm": False,
        "epochs": 3,
        "patience": 3,
        "batch_size": 16,
        "learning_rate": 5e-3,
        "bf16": False,
        "checkpoint_every_s": 0.0,
        "seed": 1,
    }
    return settings | changes
