"""A random training set for `benchmarks/training.py`, in the files that `crescendo train` reads."""

from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from feature_repo import schema

FAMILIES, LEVELS, CODES = ("text", "audio", "joint"), 3, 256
ROWS_PER_FILE = 65_536


def write_training_set(folder: Path, rows: int, tracks: int, history: int) -> None:
    """Random rows whose tracks' popularity falls as rank^-0.8."""
    sizes = [min(ROWS_PER_FILE, rows - start) for start in range(0, rows, ROWS_PER_FILE)]
    write = partial(write_file, folder, tracks, history)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for _ in pool.map(write, range(len(sizes)), sizes, chunksize=8):
            pass
    ids = np.arange(tracks)
    codes = np.random.default_rng(0).integers(0, CODES, (tracks, len(FAMILIES), LEVELS))
    tensors = {"track_ids": ids, "codes": codes, "vocabulary_track_ids": ids}
    save_file(
        tensors | {"vocabulary_train_counts": np.ones(tracks, np.int64)},
        folder / "items.safetensors",
    )


def write_file(folder: Path, tracks: int, history: int, number: int, rows: int) -> None:
    random = np.random.default_rng(number)
    cumulated = popularity(tracks)

    def draw(size: int) -> np.ndarray:
        return np.searchsorted(cumulated, random.random(size)).clip(max=tracks - 1)

    listens = pa.ListArray.from_arrays(
        np.arange(rows + 1, dtype=np.int32) * history, draw(rows * history)
    )
    columns = {
        schema.TRACK_ID: draw(rows),
        "label": random.integers(0, 2, rows).astype(np.int8),
        schema.SEQUENCE_TRACK_IDS: listens,
    }
    pq.write_table(pa.table(columns), folder / f"train-{number:05d}.parquet")


@cache
def popularity(tracks: int) -> np.ndarray:
    cumulated = np.cumsum(np.arange(1, tracks + 1) ** -0.8)
    return cumulated / cumulated[-1]
