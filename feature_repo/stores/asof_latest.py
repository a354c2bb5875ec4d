"""Whole views read at one moment or over a range: newest rows, and all rows.

What materialization and saved data sets read. Streamed: DuckDB sorts within its memory limit, and
of an event log only one batch of users is held. Opens DuckDB only for what it has to sort.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo import schema
from feature_repo.stores.asof_join import moment, utc
from feature_repo.stores.asof_log import (
    LIST_COLUMNS,
    LIST_TYPE,
    USER,
    VISIBLE_US,
    SortedLog,
    columns_for,
    integers,
    list_arrays,
    sorted_batches,
)
from feature_repo.stores.asof_sources import (
    SessionLimits,
    Source,
    explained,
    quoted,
    session,
)
from feature_repo.stores.event_windows import ragged
from feature_repo.stores.log_files import Batch, sorted_by_user, user_batches, whole_users

CHUNK_VALUES = 2_000_000
"""List values of one feature in one chunk: 16 MB."""


@dataclass(frozen=True, kw_only=True)
class ViewRange:
    """Rows of one view in a range of time. Column names are those of the source."""

    source: Source
    keys: tuple[str, ...]
    features: tuple[str, ...]
    timestamp: str
    created: str | None = None
    length: int | None = None
    """N of a sequence view."""
    start: datetime | None = None
    end: datetime | None = None
    """Inclusive; None leaves that side open."""
    start_inclusive: bool = True

    @property
    def condition(self) -> str:
        """SQL: the row's time lies in the range."""
        after = ">=" if self.start_inclusive else ">"
        bounds = [(after, self.start), ("<=", self.end)]
        stamp = utc(self.timestamp)
        found = [f"{stamp} {sign} {moment(us(at))}" for sign, at in bounds if at is not None]
        return " AND ".join(found) or "TRUE"

    @property
    def bounds_us(self) -> tuple[int | None, int | None]:
        """The range in microseconds, both ends inclusive; None where it is open."""
        low = None if self.start is None else us(self.start) + (not self.start_inclusive)
        return low, None if self.end is None else us(self.end)


def newest_rows(
    view: ViewRange, limits: SessionLimits, *, chunk_rows: int, whole_windows: bool
) -> Iterator[pa.Table]:
    """One row for each entity that has one in the range: its newest. Keys, time, features.

    A sequence view's row is the window over the rows of the range alone, or, with
    `whole_windows`, over all rows up to its end. At least one table, maybe empty, comes.
    """
    if view.length is not None:
        chunk = max(1, min(chunk_rows, CHUNK_VALUES // view.length))
        batches = _user_batches(view, limits, whole_windows)
        parts = (part for batch in batches for part in _newest_windows(batch, view, chunk))
        yield from _never_none(parts, _no_windows(view))
        return
    with session(limits, [view.source]) as (connection, _):
        keys = ", ".join(quoted(key) for key in view.keys)
        partition = f"PARTITION BY {keys}" if keys else ""
        order = f"ORDER BY {utc(view.timestamp)} DESC"
        if view.created:
            order += f", {quoted(view.created)} DESC NULLS LAST"
        newest = f"QUALIFY row_number() OVER ({partition} {order}) = 1"
        yield from _stream(connection, view, newest, chunk_rows)


def all_rows(view: ViewRange, limits: SessionLimits, *, chunk_rows: int) -> Iterator[pa.Table]:
    """Every row in the range. A sequence view has one for each moment its user's list changed."""
    with session(limits, [view.source]) as (connection, folder):
        if view.length is None:
            yield from _stream(connection, view, "", chunk_rows)
            return
        log = SortedLog.read(
            connection,
            view.source,
            view.features,
            where=replace(view, start=None).condition,
            folder=folder,
            memory_mb=limits.memory_mb,
        )
        moments = f"""SELECT DISTINCT {schema.USER_ID} AS {USER},
            epoch_us({schema.EVENT_TIMESTAMP}) AS {VISIBLE_US}
            FROM {view.source.sql} WHERE {view.condition} ORDER BY ALL"""
        chunk = max(1, min(chunk_rows, CHUNK_VALUES // view.length))
        found = False
        with explained([view.source]):
            for batch in connection.sql(moments).to_arrow_reader(chunk):
                users, times = batch.column(0).to_numpy(), batch.column(1).to_numpy()
                windows = log.index.last(users, times, view.length)
                yield _windows_table(users, times, log.lists(windows, view.features), view)
                found = True
        if not found:
            yield _no_windows(view)


def _stream(connection: Any, view: ViewRange, newest: str, chunk_rows: int) -> Iterator[pa.Table]:
    names = [*view.keys, view.timestamp, *view.features, *([view.created] if view.created else [])]
    columns = ", ".join(quoted(name) for name in dict.fromkeys(names))
    rows = f"SELECT {columns} FROM {view.source.sql} WHERE {view.condition} {newest}"
    stamp = f"{utc(view.timestamp)} AS {quoted(view.timestamp)}"
    query = f"SELECT * REPLACE ({stamp}) FROM ({rows})"
    with explained([view.source]):
        reader = connection.sql(query).to_arrow_reader(chunk_rows)
        tables = (pa.Table.from_batches([batch]) for batch in reader)
        yield from _never_none(tables, reader.schema.empty_table())


def _user_batches(view: ViewRange, limits: SessionLimits, whole_windows: bool) -> Iterator[Batch]:
    """Columns of the log's rows, sorted, a batch of whole users at a time."""
    read = replace(view, start=None) if whole_windows else view
    names = columns_for(view.features)
    if sorted_by_user(view.source):
        yield from user_batches(view.source, names, *read.bounds_us)
        return
    with session(limits, [view.source]) as (connection, _):
        batches = sorted_batches(connection, view.source, names, read.condition)
        yield from whole_users(
            {name: integers(batch.column(name), view.source, name) for name in names}
            for batch in batches
        )


def _newest_windows(columns: Batch, view: ViewRange, chunk: int) -> Iterator[pa.Table]:
    """The last N rows of each user of a batch."""
    assert view.length is not None
    users = columns[USER]
    starts = np.flatnonzero(np.append(True, users[1:] != users[:-1]))
    ends = np.append(starts[1:], len(users))
    seen = np.maximum.reduceat(columns[VISIBLE_US], starts)
    if view.start is not None:  # with whole windows, users without a row in the range are there
        inside = seen >= us(view.start) if view.start_inclusive else seen > us(view.start)
        starts, ends, seen = starts[inside], ends[inside], seen[inside]
    counts = np.minimum(view.length, ends - starts)
    for first in range(0, len(starts), chunk):
        part = slice(first, first + chunk)
        rows = _rows(starts[part], ends[part], counts[part])
        values = {name: columns[LIST_COLUMNS[name]][rows] for name in view.features}
        lists = list_arrays(values, counts[part])
        yield _windows_table(users[starts[part]], seen[part], lists, view)


def _rows(starts: np.ndarray, ends: np.ndarray, counts: np.ndarray) -> np.ndarray | slice:
    """The last `counts` rows of each [start, end); a slice, which copies nothing, where they are
    one run."""
    if counts.sum() == ends[-1] - starts[0]:
        return slice(int(starts[0]), int(ends[-1]))
    return ragged(ends - counts, counts)


def _windows_table(
    users: np.ndarray, seen_us: np.ndarray, lists: list[pa.Array], view: ViewRange
) -> pa.Table:
    (key,) = view.keys
    return pa.table(
        {
            key: pa.array(users),
            view.timestamp: pc.cast(pa.array(seen_us), schema.TIMESTAMP),
            **dict(zip(view.features, lists, strict=True)),
        }
    )


def _no_windows(view: ViewRange) -> pa.Table:
    empty = np.zeros(0, dtype=np.int64)
    lists = [pa.array([], type=LIST_TYPE) for _ in view.features]
    return _windows_table(empty, empty, lists, view)


def _never_none(tables: Iterator[pa.Table], empty: pa.Table) -> Iterator[pa.Table]:
    """The tables, or an empty one where there are none: a reader needs the columns."""
    first = next(tables, empty)
    yield first
    yield from tables


def us(at: datetime) -> int:
    """Microseconds since 1970 of a time with zone, exactly."""
    return int(np.datetime64(at.astimezone(UTC).replace(tzinfo=None), "us").astype(np.int64))
