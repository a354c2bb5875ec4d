"""The Ray Data pipeline of the embedding job: tracks in, rows with a vector or a reason out.

A row that cannot be encoded is a row with a reason: Ray's own ways to survive an error drop the
whole block with it, and name no track.
"""

import logging
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from feature_repo.schema import TRACK_ID
from ray_jobs.encoders.spectral import SpectralEncoder
from ray_jobs.encoders.text import TextEncoder
from ray_jobs.encoders.vectors import VectorsEncoder

Encoder = TextEncoder | SpectralEncoder | VectorsEncoder
OK, ERROR = "ok", "error"
ACTOR_CPUS = 0.4
"""Logical CPUs of an actor: whole ones wait for each other for ever on a small machine."""
WAVE_TRACKS = 100_000
"""Rows handed to Ray at a time: bounds what the object store holds of a large catalogue."""


def embedding_schema(dim: int) -> pa.Schema:
    return pa.schema(
        [
            pa.field(TRACK_ID, pa.int64(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), dim)),
            pa.field("status", pa.string(), nullable=False),
            pa.field("error", pa.string()),
        ]
    )


def encoded_blocks(
    tracks: pyarrow.dataset.Dataset,
    todo: np.ndarray,
    encoder: Encoder,
    *,
    actors: int,
    batch_size: int,
) -> Iterator[pa.Table]:
    """Tables of `embedding_schema` for the tracks `todo`, in the order of their completion."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # importing it has set it to DEBUG
    ray.data.DataContext.get_current().enable_progress_bars = False
    for wave in _waves(tracks, todo, encoder):
        batches = range(0, wave.num_rows, batch_size)
        # From memory, not by read_parquet, whose tasks start a worker on every logical CPU and
        # take five seconds on two cores before the first row moves.
        dataset = ray.data.from_arrow([wave.slice(at, batch_size) for at in batches])
        yield from dataset.map_batches(
            EncoderActor,
            fn_constructor_args=(encoder,),
            batch_format="pyarrow",
            batch_size=batch_size,
            compute=ray.data.ActorPoolStrategy(size=min(actors, len(batches))),
            num_cpus=ACTOR_CPUS,
        ).iter_batches(batch_size=None, batch_format="pyarrow")


def _waves(
    tracks: pyarrow.dataset.Dataset, todo: np.ndarray, encoder: Encoder
) -> Iterator[pa.Table]:
    """The rows to do, `WAVE_TRACKS` at a time, with the columns that the encoder reads."""
    held: list[pa.RecordBatch] = []
    wanted = pc.field(TRACK_ID).isin(pa.array(todo))
    for batch in tracks.to_batches(columns=[TRACK_ID, *encoder.columns], filter=wanted):
        held.append(batch)
        if sum(map(len, held)) >= WAVE_TRACKS:
            yield pa.Table.from_batches(held)
            held = []
    if any(map(len, held)):
        yield pa.Table.from_batches(held)


class EncoderActor:
    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def __call__(self, tracks: pa.Table) -> pa.Table:
        dim = self.encoder.dim
        vectors = np.zeros((tracks.num_rows, dim), dtype=np.float32)
        errors: list[str | None] = [None] * tracks.num_rows
        for row, outcome in enumerate(self.encoder.encode(tracks)):
            if isinstance(outcome, str):
                errors[row] = outcome
            elif not np.isfinite(outcome).all():
                errors[row] = "not finite: the vector holds NaN or infinity"
            else:
                vectors[row] = outcome
        failed = np.array([error is not None for error in errors])
        values = pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.ravel()), dim, mask=pa.array(failed)
        )
        # An arrow table, as Ray writes numpy output in a type that only Ray can read.
        return pa.Table.from_arrays(
            [
                tracks[TRACK_ID],
                values,
                pa.array(np.where(failed, ERROR, OK), pa.string()),
                pa.array(errors, pa.string()),
            ],
            schema=embedding_schema(dim),
        )
