"""The event log behind a sequence view, sorted and indexed, and its rows as list columns.

A view with the tag `schema.SEQUENCE_LENGTH_TAG` stores no rows: its source is the log
(`schema.EVENT_LOG`) and its four list features are built from it when they are asked for.

Shape suffixes: E events, sorted by (user, listened at, event id); Q queries; W rows of all
windows; see `event_windows`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from feature_repo import schema
from feature_repo.errors import InputError
from feature_repo.stores.asof_sources import Source, explained
from feature_repo.stores.event_windows import EventWindows, Windows

USER, LISTENED_US, EVENT_ID, VISIBLE_US = "user", "listened_us", "event_id", "visible_us"
SOURCE_COLUMNS = {
    USER: schema.USER_ID,
    LISTENED_US: schema.LISTENED_AT,
    EVENT_ID: "event_id",
    VISIBLE_US: schema.EVENT_TIMESTAMP,
    "track_id": schema.TRACK_ID,
    "action": "action",
}
"""Our name of each column -> a log's own."""
LOG_COLUMNS = {
    name: f"epoch_us({column})" if name in (LISTENED_US, VISIBLE_US) else column
    for name, column in SOURCE_COLUMNS.items()
}
"""Our name of each column -> SQL over a log; all int64."""
LIST_COLUMNS = {
    schema.SEQUENCE_TRACK_IDS: "track_id",
    schema.SEQUENCE_TIMESTAMPS: LISTENED_US,
    schema.SEQUENCE_ACTIONS: "action",
    schema.SEQUENCE_EVENT_IDS: EVENT_ID,
}
"""List feature -> the column of the log that it lists."""
LIST_TYPE = pa.list_(pa.int64())
READ_ROWS = 1_000_000
IN_MEMORY_SHARE = 2
"""A log larger than memory_mb divided by this lies in a temporary file, mapped into memory."""


def sequence_length(owner: Any, features: tuple[str, ...]) -> int | None:
    """N of a sequence view or of its source, None for plain ones; checks tag and features."""
    tag = owner.tags.get(schema.SEQUENCE_LENGTH_TAG)
    if tag is None:
        return None
    if not tag.isdigit() or int(tag) < 1:
        raise InputError(
            f"{owner.name}: tag {schema.SEQUENCE_LENGTH_TAG} must be a number of at least 1, "
            f"got {tag!r}"
        )
    foreign = sorted(set(features) - set(LIST_COLUMNS))
    if foreign:
        raise InputError(
            f"{owner.name} has the tag {schema.SEQUENCE_LENGTH_TAG}, so its features are "
            f"{', '.join(LIST_COLUMNS)}; got {', '.join(foreign)}"
        )
    return int(tag)


def sorted_batches(connection: Any, source: Source, columns: list[str], where: str) -> Iterator:
    """The log's rows as Arrow batches, sorted by (user, listened at, event id)."""
    selected = ", ".join(f"{LOG_COLUMNS[name]} AS {name}" for name in columns)
    query = f"""SELECT {selected} FROM {source.sql} WHERE {where}
        ORDER BY {USER}, {LISTENED_US}, event_id"""
    with explained([source]):
        yield from connection.sql(query).to_arrow_reader(READ_ROWS)


def columns_for(features: tuple[str, ...]) -> list[str]:
    """The log's columns that windows with these list features are built from."""
    wanted = {USER, LISTENED_US, VISIBLE_US, *(LIST_COLUMNS[name] for name in features)}
    return [name for name in LOG_COLUMNS if name in wanted]


@dataclass(frozen=True, kw_only=True)
class SortedLog:
    """Columns of a log in memory or mapped, each (E,) int64, and the index over them."""

    columns: dict[str, np.ndarray]

    @classmethod
    def read(
        cls,
        connection: Any,
        source: Source,
        features: tuple[str, ...],
        *,
        where: str,
        folder: Path,
        memory_mb: int,
    ) -> "SortedLog":
        """Rows of the log where the SQL condition holds. 24 bytes a row and 8 a list feature."""
        names = columns_for(features)
        with explained([source]):
            counted = connection.sql(f"SELECT count(*) FROM {source.sql} WHERE {where}")
            ((rows,),) = counted.fetchall()
        mapped = rows * 8 * len(names) > memory_mb * 2**20 // IN_MEMORY_SHARE
        columns = {
            name: np.memmap(folder / f"{id(source)}-{name}", np.int64, "w+", shape=(rows,))
            if mapped
            else np.empty(rows, dtype=np.int64)
            for name in names
        }
        start = 0
        for batch in sorted_batches(connection, source, names, where):
            end = start + batch.num_rows
            for name in names:
                columns[name][start:end] = integers(batch.column(name), source, name)
            start = end
        if start != rows:
            raise InputError(
                f"source {source.name} changed while it was read: {rows} rows, then {start}; "
                "run the command again"
            )
        return cls(columns=columns)

    @cached_property
    def index(self) -> EventWindows:
        return EventWindows(self.columns[USER], self.columns[LISTENED_US], self.columns[VISIBLE_US])

    def lists(self, windows: Windows, features: tuple[str, ...]) -> list[pa.Array]:
        """One list array a feature; null where the window is empty: the user is unknown."""
        return list_arrays(
            {name: self.columns[LIST_COLUMNS[name]][windows.rows_W] for name in features},
            windows.counts_Q,
        )


def list_arrays(values_W: dict[str, np.ndarray], counts_Q: np.ndarray) -> list[pa.Array]:
    """Arrow lists over flat values; an empty one is null."""
    offsets = pa.array(np.append(0, np.cumsum(counts_Q)), type=pa.int32())
    unknown = pa.array(counts_Q == 0)
    return [
        pa.ListArray.from_arrays(offsets, pa.array(values), type=LIST_TYPE, mask=unknown)
        for values in values_W.values()
    ]


def integers(column: pa.Array, source: Source, name: str) -> np.ndarray:
    """An int64 column without nulls as numpy, not copied. Raises InputError naming the source."""
    if column.null_count or column.type != pa.int64():
        raise InputError(
            f"source {source.name} ({source.pattern}) is no event log: {LOG_COLUMNS[name]} is "
            f"{column.type} with {column.null_count} nulls, expected int64 without nulls; "
            "run `crescendo sequences`"
        )
    return column.to_numpy()
