"""Event log -> the listens of `user_sequence`: sorted, each once, every user in one file.

A partition in two steps, neither of which holds more than a block of rows:

    split   reads a row group, keeps the listens, writes one piece: a row group a bucket
    sort    reads one bucket from all pieces, drops repeated events, sorts, writes one file

Users are spread over buckets by a hash. Both steps are plain functions of their arguments, so they
run in this process or as Ray Data tasks, to the same bytes. Pieces lie under the folder that is
being written: Ray's workers have to see it, as they see the workspace.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo import schema
from feature_repo.artifacts import parquet_files
from feature_repo.errors import ArtifactError
from feature_repo.parquet_form import parquet_settings
from feature_repo.ray_start import names_a_cluster
from ray_jobs.progress import track
from ray_jobs.ray_data import ray_data
from ray_jobs.ray_session import ray_session

RAY_FROM_EVENTS = 10_000_000
"""Logs with fewer events are built in this process.

A core takes about 2 s a million events. Ray takes about 10 s to start and to stop, and on two cores
then half of that time: it pays from some 10 million events on.
"""
BLOCK_ROWS = 500_000
"""Rows of one step of `split`."""
BUCKET_ROWS = 1_000_000
"""Listens of one bucket, about: 48 MB in memory, sorted in four times that."""
ROW_GROUP_ROWS = 131_072
"""Small enough that a reader of few users skips most of a file."""
PIECES = ".pieces"

EVENT_COLUMNS = ["event_id", "user_id", "track_id", "event_timestamp", "action", "ingested_at"]
SORT_KEYS = (schema.USER_ID, schema.EVENT_TIMESTAMP, schema.LISTENED_AT, "event_id")


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some row groups of one file of the event log."""

    path: str
    row_groups: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class BuiltLog:
    users: int
    listens: int
    repeated: int
    """Listens left out because their event_id had come before."""


Runner = Callable[[Callable[[object], object], list, str], Iterable]
"""Applies a function to each item, in any order: `run_here` or `run_on_ray`."""


def build_log(events: Path, deleted: np.ndarray, target: Path) -> BuiltLog:
    """Writes `part-*.parquet` (schema.EVENT_LOG) into the folder `target`.

    `deleted`: event ids (D,) that are left out, sorted. Large logs are built by Ray Data.
    """
    blocks = event_blocks(events)
    rows = sum(pq.read_metadata(path).num_rows for path in parquet_files(events))
    if rows < RAY_FROM_EVENTS:
        return build_with(run_here, blocks, rows, deleted, target)
    with ray_session():
        return build_with(run_on_ray, blocks, rows, deleted, target)


def build_with(
    run: Runner, blocks: list[Block], rows: int, deleted: np.ndarray, target: Path
) -> BuiltLog:
    """`build_log` by one runner; `rows` of the event log set the number of buckets."""
    buckets = max(1, -(-rows // BUCKET_ROWS))
    pieces_folder = target / PIECES
    pieces_folder.mkdir()
    split_one = partial(split, buckets=buckets, deleted=deleted, folder=str(pieces_folder))
    # Only the pieces of steps that ended count: a step that Ray repeats leaves others behind.
    pieces = tuple(chain.from_iterable(run(split_one, blocks, "sequences: split")))
    sort_one = partial(sort_bucket, pieces=pieces, folder=str(target))
    built = list(run(sort_one, list(range(buckets)), "sequences: sort"))
    for path in pieces_folder.iterdir():
        path.unlink()
    pieces_folder.rmdir()
    users, listens, repeated = (sum(counts) for counts in zip(*built, strict=True))
    return BuiltLog(users=users, listens=listens, repeated=repeated)


def event_blocks(events: Path) -> list[Block]:
    """The row groups of the log, neighbours together up to BLOCK_ROWS."""
    blocks = []
    for path in parquet_files(events):
        with _damage_named(path):
            metadata = pq.read_metadata(path)
        held: list[int] = []
        rows = 0
        for number in range(metadata.num_row_groups):
            rows_here = metadata.row_group(number).num_rows
            if held and rows + rows_here > BLOCK_ROWS:
                blocks.append(Block(path=str(path), row_groups=tuple(held)))
                held, rows = [], 0
            held.append(number)
            rows += rows_here
        if held:
            blocks.append(Block(path=str(path), row_groups=tuple(held)))
    return blocks


def _batches(block: Block) -> Iterator[pa.RecordBatch]:
    with _damage_named(block.path), pq.ParquetFile(block.path) as file:
        # An adapter's log may lack the column: then everything arrived at once.
        columns = [name for name in EVENT_COLUMNS if name in file.schema_arrow.names]
        yield from file.iter_batches(BLOCK_ROWS, block.row_groups, columns=columns)


@contextmanager
def _damage_named(path: str | Path) -> Iterator[None]:
    """What a parquet reader says inside, as an error that names the file and what makes it."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(
            f"{path} is damaged ({error}); restore it, or run `crescendo ingest` again"
        ) from error


def split(block: Block, *, buckets: int, deleted: np.ndarray, folder: str) -> list[str]:
    """Writes the block's listens as pieces, row group b of each for bucket b; their paths."""
    paths = []
    for batch in _batches(block):
        rows = listens(pa.table(batch), deleted)
        bucket = bucket_of(rows[schema.USER_ID].to_numpy(), buckets)
        order = np.argsort(bucket, kind="stable")
        rows = rows.take(order)
        bounds = np.searchsorted(bucket[order], np.arange(buckets + 1))
        path = f"{folder}/{uuid4().hex}.parquet"
        form = parquet_settings(schema.EVENT_LOG)
        with pq.ParquetWriter(path, schema.EVENT_LOG, **form) as writer:
            for start, end in pairwise(bounds):
                writer.write_table(rows.slice(start, end - start), row_group_size=BLOCK_ROWS)
        paths.append(path)
    return paths


def listens(events: pa.Table, deleted: np.ndarray) -> pa.Table:
    """The events that enter a sequence, as schema.EVENT_LOG.

    visible = max(happened, arrived) + 1 us: an event is not seen at its own moment.
    """
    kept = pc.is_in(events["action"], pa.array(schema.LISTEN_ACTIONS))
    if len(deleted):
        kept = pc.and_not(kept, pc.is_in(events["event_id"], pa.array(deleted)))
    events = events.filter(kept)
    happened_us = pc.cast(pc.cast(events["event_timestamp"], schema.TIMESTAMP), pa.int64())
    arrived_us = happened_us
    if "ingested_at" in events.column_names:
        arrived_us = pc.cast(pc.cast(events["ingested_at"], schema.TIMESTAMP), pa.int64())
    visible_us = pc.add(pc.max_element_wise(happened_us, arrived_us), 1)
    names = pa.array(schema.ACTION_CODES)
    codes = pa.array(schema.ACTION_CODES.values(), type=pa.int64())
    columns = {
        schema.USER_ID: events["user_id"],
        schema.EVENT_TIMESTAMP: pc.cast(visible_us, schema.TIMESTAMP),
        schema.LISTENED_AT: pc.cast(happened_us, schema.TIMESTAMP),
        "event_id": events["event_id"],
        schema.TRACK_ID: events["track_id"],
        "action": codes.take(pc.index_in(events["action"], names).combine_chunks()),
    }
    return pa.table(columns, schema=schema.EVENT_LOG)


def bucket_of(user_ids: np.ndarray, buckets: int) -> np.ndarray:
    """Bucket of each user, (N,) int64. Multiplied by 2^64 / golden ratio, the high bits are well
    mixed whatever pattern the ids follow."""
    mixed = user_ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return ((mixed >> np.uint64(33)) % np.uint64(buckets)).astype(np.int64)


def sort_bucket(bucket: int, *, pieces: tuple[str, ...], folder: str) -> tuple[int, int, int]:
    """Writes `part-<bucket>.parquet`; returns users, listens, repeated events left out."""
    tables = []
    for path in pieces:
        with pq.ParquetFile(path) as file:
            tables.append(file.read_row_group(bucket))
    rows = pa.concat_tables([schema.EVENT_LOG.empty_table(), *tables])
    found = rows.num_rows
    rows = first_arrivals(rows)
    keys = [rows[name].to_numpy() for name in reversed(SORT_KEYS)]
    rows = rows.take(np.lexsort(keys)).combine_chunks()
    path = f"{folder}/part-{bucket:05d}.parquet"
    pq.write_table(rows, path, row_group_size=ROW_GROUP_ROWS, **parquet_settings(rows.schema))
    users = len(np.unique(rows[schema.USER_ID].to_numpy()))
    return users, rows.num_rows, found - rows.num_rows


def first_arrivals(rows: pa.Table) -> pa.Table:
    """One row for each event_id: the one that could be seen first."""
    ids = rows["event_id"].to_numpy()
    if len(np.unique(ids)) == len(ids):
        return rows
    columns = (schema.TRACK_ID, schema.USER_ID, schema.LISTENED_AT, schema.EVENT_TIMESTAMP)
    order = np.lexsort([*(rows[name].to_numpy() for name in columns), ids])
    first = np.append(True, ids[order][1:] != ids[order][:-1])
    return rows.take(order[first])


def run_here(function: Callable[[object], object], items: list, step: str) -> Iterator:
    """One after the other, in this process."""
    for item in track(items, step, len(items), "blocks"):
        yield function(item)


def run_on_ray(function: Callable[[object], object], items: list, step: str) -> Iterator:
    """As Ray Data tasks: one item a task, as many at once as there are cores."""
    # A local Ray declares more CPUs than the machine has (ray_session); memory goes by tasks.
    cores = None if names_a_cluster() else os.cpu_count()
    dataset = ray_data().from_items(
        [{"item": item} for item in items], override_num_blocks=len(items)
    )
    done = dataset.map(lambda row: {"result": function(row["item"])}, concurrency=cores)
    for row in track(done.iter_rows(), step, len(items), "blocks"):
        yield row["result"]
