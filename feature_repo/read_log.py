"""Keeps a sample of what the online store served, for `crescendo audit` to compare with offline.

    log = ReadLog(workspace, "user_sequence", "user_id", ReadLogOptions(share=0.01))
    columns = reader.read(ids)                     # feature_repo.online.OnlineReader
    log.record(columns, time.time_ns() // 1000)    # after the answer came

Writes `<workspace>/served_reads/<view>/<moment>-<writer>-<number>.parquet`: the entity's key,
`read_at`, the row's own `event_timestamp` (null: no row), and the features as they were served.

A request pays for a hash and, when its entity is in the sample, for a place in a list. A thread
does the rest. Nothing here may fail a request: when the thread cannot keep up or the disk is full,
rows are dropped and counted. What a killed process had not written is lost; a sample can bear it.
"""

import logging
import os
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import schema
from feature_repo.errors import InputError
from feature_repo.stores.packed_columns import Columns
from feature_repo.workspace import Workspace

READ_AT = "read_at"
FOLDER = "served_reads"
ROWS_PER_PART = 10_000
LONGEST_WAIT_S = 10.0
"""A row is on the disk at most this long after it was served."""

Answer = tuple[Columns, np.ndarray, int | np.ndarray]
"""What was read, the places in it that are kept, when it was read."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReadLogOptions:
    share: float
    """Share of the entities whose reads are kept: always the same ones."""
    max_buffered_reads: int = 100_000
    """Reads that wait for the thread; what comes on top is dropped and counted."""
    max_folder_bytes: int = 1 << 30
    """Size of a view's folder; above it the oldest parts go."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"share is {self.share}; expected a share above 0, at most 1")
        for name in ("max_buffered_reads", "max_folder_bytes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")


def served_reads(workspace: Workspace, view: str) -> Path:
    """Folder of one view's served reads."""
    return workspace.root / FOLDER / view


def sampled(ids: np.ndarray, share: float) -> np.ndarray:
    """Which entities (int64, any shape) are in the sample: bool, same shape.

    By a hash of the id, so that every process keeps the same entities, and an entity of the
    sample is seen at all of its moments.
    """
    # The finalizer of splitmix64: every output bit depends on every input bit.
    x = ids.astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    # 53 bits, the whole of a double: a share of 1 takes every id.
    return (x >> np.uint64(11)) < np.uint64(round(share * 2**53))


class ReadLog:
    """Takes served rows of one view from any number of threads. `close` writes what is left."""

    def __init__(self, workspace: Workspace, view: str, key: str, options: ReadLogOptions) -> None:
        self._folder = served_reads(workspace, view)
        self._view, self._key, self._options = view, key, options
        self._writer = uuid.uuid4().hex[:8]
        self._parts = 0
        self._changed = threading.Condition()
        self._waiting: list[Answer] = []
        self._taken_in = self._settled = 0  # reads so far; the difference waits
        self._hurry = self._closed = False
        self.written = 0
        """Reads on the disk."""
        self.dropped = 0
        """Reads that came while the buffer was full or closed, or that could not be written."""
        self._thread = threading.Thread(target=self._run, name=f"read log {view}", daemon=True)
        self._thread.start()

    def record(self, columns: Columns, read_at_us: int | np.ndarray) -> None:
        """Keeps the entities of the sample among the N of one answer of the online store.

        `read_at_us`: microseconds since 1970, one for all or one an entity. It has to be taken
        AFTER the answer came: every event that it shows had been taken by then, and a difference
        in the other direction is an event in flight. Neither may be changed afterwards.
        """
        kept = np.flatnonzero(sampled(columns.ids_N, self._options.share))
        if not len(kept):
            return
        with self._changed:
            waiting = self._taken_in - self._settled + len(kept)
            if self._closed or waiting > self._options.max_buffered_reads:
                self.dropped += len(kept)
                return
            self._waiting.append((columns, kept, read_at_us))
            self._taken_in += len(kept)
            if waiting >= ROWS_PER_PART:
                self._changed.notify_all()

    def flush(self) -> None:
        """Returns when all reads recorded so far are on the disk, or counted as dropped."""
        with self._changed:
            goal = self._taken_in
            while self._settled < goal:
                self._hurry = True
                self._changed.notify_all()
                self._changed.wait()

    def close(self) -> None:
        """Writes what waits and ends the thread. Reads recorded later are dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        closed = False
        while not closed:
            with self._changed:
                self._changed.wait_for(self._due, timeout=LONGEST_WAIT_S)
                answers, self._waiting = self._waiting, []
                taken_in, closed = self._taken_in, self._closed
                self._hurry = False
            written = self._write(answers) if answers else False
            with self._changed:
                # Only now: what is being written counts as waiting, and so against the bound.
                if written:
                    self.written += taken_in - self._settled
                else:
                    self.dropped += taken_in - self._settled
                self._settled = taken_in
                self._changed.notify_all()

    def _due(self) -> bool:
        full = self._taken_in - self._settled >= ROWS_PER_PART
        return full or self._hurry or self._closed

    def _write(self, answers: list[Answer]) -> bool:
        try:
            table = pa.Table.from_batches([self._rows(*answer) for answer in answers])
            self._folder.mkdir(parents=True, exist_ok=True)
            name = f"{time.time_ns() // 1000}-{self._writer}-{self._parts}.parquet"
            partial = self._folder / f".{name}"
            pq.write_table(table, partial)
            os.replace(partial, self._folder / name)
            self._parts += 1
            self._drop_oldest_parts()
        except (OSError, pa.ArrowException) as error:
            logger.warning("read log %s lost %d answers: %s", self._folder, len(answers), error)
            return False
        return True

    def _rows(
        self, columns: Columns, kept: np.ndarray, read_at_us: int | np.ndarray
    ) -> pa.RecordBatch:
        read_at_N = np.broadcast_to(read_at_us, len(columns.ids_N))
        absent = ~columns.found[self._view][kept]
        event_us = pa.array(columns.event_us[self._view][kept], mask=absent)
        rows = {
            self._key: pa.array(columns.ids_N[kept], pa.int64()),
            READ_AT: pa.array(read_at_N[kept]).cast(schema.TIMESTAMP),
            schema.EVENT_TIMESTAMP: event_us.cast(schema.TIMESTAMP),
        }
        for reference, column in columns.columns.items():
            view, name = reference.split(":")
            if view == self._view:
                rows[name] = _small_lists(column.to_arrow().take(pa.array(kept)))
        return pa.RecordBatch.from_pydict(rows)

    def _drop_oldest_parts(self) -> None:
        parts = sorted(self._folder.glob("*.parquet"))  # names begin with the moment
        size = sum(part.stat().st_size for part in parts)
        for part in parts[:-1]:
            if size <= self._options.max_folder_bytes:
                return
            size -= part.stat().st_size
            part.unlink(missing_ok=True)


def _small_lists(values: pa.Array) -> pa.Array:
    """Lists and strings with the 32-bit offsets that Feast's offline stores answer with."""
    kind = values.type
    if pa.types.is_large_list(kind):
        return values.cast(pa.list_(_small(kind.value_type)))
    return values.cast(_small(kind))


def _small(kind: pa.DataType) -> pa.DataType:
    return {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}.get(kind, kind)
