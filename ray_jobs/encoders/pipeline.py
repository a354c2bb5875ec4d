"""The stages of the embedding job, as Ray Data's workers run them (`ray_jobs/embed_run.py`).

    chunk of the list -> Preparer (CPU) -> EncoderActor (model) -> write_part

The tracks to do are a parquet file with a chunk in each row group; a stage is given the number of
a chunk. Workers read the list and write the parts themselves, so no text and no vector passes
through the driver, and every row is one track from end to end.

A row that cannot be encoded is a row with a reason: Ray's own ways to survive an error drop the
whole block with it, and name no track.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.artifacts import write_json
from feature_repo.errors import InputError, StoreUnavailableError
from feature_repo.schema import TRACK_ID
from ray_jobs.encoders.attempts import Attempts
from ray_jobs.encoders.failing_rows import (
    Outcomes,
    outcomes_of,
    prepared_rows,
    refuse_dead_store,
)
from ray_jobs.encoders.inputs import INPUT_HASH
from ray_jobs.encoders.turns import Turns

OK, ERROR = "ok", "error"
CHUNK, INPUT = "chunk", "input"
FAILURE, STORE, GIVEN = "failure.json", "store", "given"
VISIBLE = "CUDA_VISIBLE_DEVICES"


class Encoder(Protocol):
    """What `ray_jobs.encoders` describes; `prepare` and `begin` are optional."""

    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def dim(self) -> int: ...
    @property
    def settings(self) -> dict[str, object]: ...
    @property
    def encoder_id(self) -> str: ...
    def encode(self, tracks: pa.Table, /) -> Outcomes: ...


def has_cpu_stage(encoder: Encoder) -> bool:
    return hasattr(encoder, "prepare")


def embedding_schema(dim: int) -> pa.Schema:
    return pa.schema(
        [
            pa.field(TRACK_ID, pa.int64(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), dim)),
            pa.field("status", pa.string(), nullable=False),
            pa.field("error", pa.string()),
        ]
    )


def read_chunk(todo: Path, chunks: pa.Table) -> pa.Table:
    """The tracks of a chunk, with the columns that the encoder reads and their input's hash."""
    if not todo.is_file():
        raise InputError(
            f"a worker finds no {todo}: another run has taken over; or, on a cluster, the "
            "workspace does not lie on storage that all nodes mount under the same path"
        )
    return pq.ParquetFile(todo).read_row_groups(chunks[CHUNK].to_pylist())


class Preparer:
    """The CPU stage: tracks to `track_id`, `input`, `error`, facts about them, the input's hash."""

    def __init__(self, encoder: Any, todo: Path | None = None) -> None:
        self.encoder, self.todo = encoder, todo

    def __call__(self, rows: pa.Table) -> pa.Table:
        with _told_to_the_driver(self.todo):
            tracks = rows if self.todo is None else read_chunk(self.todo, rows)
            with _attempts(self.todo, rows, CHUNK, "decoding") as attempts:
                prepared = prepared_rows(self.encoder, tracks, attempts)
            refuse_dead_store(prepared["error"].to_pylist())
        if INPUT_HASH not in tracks.column_names:
            return prepared
        return prepared.append_column(tracks.schema.field(INPUT_HASH), tracks[INPUT_HASH])


class EncoderActor:
    """The model stage: `embedding_schema` of each row, its input's hash, and what facts came.

    Two threads may call it: one begins while the other waits for the device.
    """

    def __init__(self, encoder: Encoder, todo: Path | None = None, gpu: bool = False) -> None:
        self.encoder, self.todo, self.gpu = encoder, todo, gpu
        self._turns = Turns()

    def __call__(self, rows: pa.Table) -> pa.Table:
        with _told_to_the_driver(self.todo):
            return self._encoded(rows)

    def _encoded(self, rows: pa.Table) -> pa.Table:
        alone = not has_cpu_stage(self.encoder)
        chunk = rows
        if alone and self.todo is not None:
            rows = read_chunk(self.todo, chunk)
        errors: list[str | None] = [None] * len(rows) if alone else rows["error"].to_pylist()
        good = [row for row, error in enumerate(errors) if error is None]
        named_by = CHUNK if alone else TRACK_ID
        outcomes: Outcomes = []
        with _attempts(self.todo, chunk, named_by, "the encoder") as attempts:
            if good:
                outcomes = outcomes_of(self._begin, _taken(rows, good), self._turns, attempts)
        if alone:
            refuse_dead_store([out if isinstance(out, str) else None for out in outcomes])
        vectors = np.zeros((rows.num_rows, self.encoder.dim), dtype=np.float32)
        for row, outcome in zip(good, outcomes, strict=True):
            if isinstance(outcome, str):
                errors[row] = outcome
            elif not np.isfinite(outcome).all():
                errors[row] = "not finite: the vector holds NaN or infinity"
            else:
                vectors[row] = outcome
        return self._table(rows, vectors, errors)

    def _begin(self, rows: pa.Table) -> Callable[[], Outcomes]:
        """Starts the encoder on the rows; the call that comes back waits for it."""
        with _hidden_gpus(hide=not self.gpu):
            return started(self.encoder, rows)

    def _table(self, rows: pa.Table, vectors: np.ndarray, errors: list[str | None]) -> pa.Table:
        failed = np.array([error is not None for error in errors], bool)
        values = pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.ravel()), self.encoder.dim, mask=pa.array(failed)
        )
        # An arrow table, as Ray writes numpy output in a type that only Ray can read.
        table = pa.Table.from_arrays(
            [
                rows[TRACK_ID],
                values,
                pa.array(np.where(failed, ERROR, OK), pa.string()),
                pa.array(errors, pa.string()),
            ],
            schema=embedding_schema(self.encoder.dim),
        )
        facts = {INPUT, "error", *self.encoder.columns, *table.column_names}
        for name in rows.column_names:
            if name not in facts:
                table = table.append_column(rows.schema.field(name), rows[name])
        return table


def started(encoder: Any, rows: pa.Table) -> Callable[[], Outcomes]:
    """`begin` of the encoder, or all of `encode` where it has none."""
    if hasattr(encoder, "begin"):
        return encoder.begin(rows)
    outcomes = encoder.encode(rows)
    return lambda: outcomes


def _taken(rows: pa.Table, wanted: list[int]) -> pa.Table:
    """Rows by rising number. Not by `take`, which copies all their samples."""
    runs = np.split(np.array(wanted), np.flatnonzero(np.diff(wanted) != 1) + 1)
    return pa.concat_tables([rows.slice(run[0], len(run)) for run in runs])


FACTS = pa.schema(
    [
        ("part", pa.string()),
        ("tracks", pa.int64()),
        ("errors", pa.int64()),
        ("tokens", pa.int64()),
        ("audio_s", pa.float64()),
    ]
)
"""Of one part: its file's name, and counts. Tokens and seconds as far as the encoder tells them."""


def write_part(rows: pa.Table, folder: Path) -> pa.Table:
    """Writes the rows under a name that stands for their tracks: a second try writes it again.

    Not synced to the disk: a part that a power cut has torn is found by its checksums.
    """
    if not rows.num_rows:
        return FACTS.empty_table()
    if not folder.is_dir():
        raise InputError(
            f"a worker finds no {folder}: another run has taken over; or, on a cluster, the "
            "workspace does not lie on storage that all nodes mount under the same path"
        )
    ids = np.sort(rows[TRACK_ID].to_numpy())
    name = f"part-{blake2b(ids.tobytes(), digest_size=8).hexdigest()}.parquet"
    partial = folder / f".{name}.{os.getpid()}"
    pq.write_table(rows, partial, write_page_checksum=True)
    os.replace(partial, folder / name)
    sums = {
        out: pc.sum(rows[column]).as_py() if column in rows.column_names else None
        for out, column in (("tokens", "n_tokens"), ("audio_s", "seconds"))
    }
    errors = rows.num_rows - rows["error"].null_count
    facts = {"part": name, "tracks": rows.num_rows, "errors": errors} | sums
    return pa.Table.from_pylist([facts], schema=FACTS)


@contextmanager
def _told_to_the_driver(todo: Path | None) -> Iterator[None]:
    """Leaves an error of ours in the run's folder: of what Ray hands on only the text is left."""
    try:
        yield
    except (InputError, StoreUnavailableError) as error:
        if todo is not None and todo.parent.is_dir():
            kind = STORE if isinstance(error, StoreUnavailableError) else GIVEN
            write_json(todo.parent / FAILURE, {"kind": kind, "message": str(error)})
        raise


def raise_failure(folder: Path) -> None:
    """Raises what a worker has left in the run's folder, if anything."""
    if (folder / FAILURE).is_file():
        failure = json.loads((folder / FAILURE).read_text())
        kind = StoreUnavailableError if failure["kind"] == STORE else InputError
        raise kind(failure["message"])


@contextmanager
def _attempts(
    todo: Path | None, rows: pa.Table, named_by: str, stage: str
) -> Iterator[Attempts | None]:
    """Those of a chunk of the list, known by its number or its first track; none for rows that do
    not come from the list."""
    if todo is None:
        yield None
        return
    attempts = Attempts(todo.parent / f".{named_by}-{rows[named_by][0]}", stage)
    yield attempts
    attempts.end()


@contextmanager
def _hidden_gpus(*, hide: bool) -> Iterator[None]:
    """An actor that was given no GPU must not find one; Ray hides them only from some."""
    if not hide:
        yield
        return
    shown = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = ""
    try:
        yield
    finally:
        if shown is None:
            del os.environ[VISIBLE]
        else:
            os.environ[VISIBLE] = shown
