"""Event log -> windowed counts of users and of tracks, by DuckDB in bounded memory.

A day's events enter the day after, and leave each window when they grow too old: those days get a
row, so that the newest row before any moment has that day's counts.

    count(D) = sum over days d < D of events(d), less those with d < D - window
             = running sum of changes: + events(d) at d + 1, - events(d) at d + window + 1

A running sum costs one addition a row; a sum over each row's own range of days twice as much.
DuckDB keeps whole what it sums over, so the days are counted and sorted first, on the disk, and
summed for a slice of the entities at a time: memory does not grow with the log.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import schema

MEMORY_MB = 1024
"""What DuckDB holds; beyond it goes to disk, beside the files that it writes."""
SLICE_DAYS = 500_000
"""Days of all entities of one slice, about: 0.3 GB while they are summed; of the file, 30 MB."""
ROW_GROUP_ROWS = 131_072


def write_stats(events: str, deleted: pa.Table, folder: Path, entity: str) -> int:
    """Writes the counts of each `entity` (`user` or `track`) as `part-*.parquet`, ascending.

    `events`: pattern of the log's files; `deleted`: table with the column event_id, left out.
    Returns the number of rows.
    """
    key = f"{entity}_id"
    kinds = {
        "plays": "action <> 'skip'",
        "completes": "action = 'complete'",
        "skips": "action = 'skip'",
        "favourites": "action = 'favourite'",
    }
    counts = ", ".join(f"count(*) FILTER ({where}) AS {kind}" for kind, where in kinds.items())
    daily = folder / ".daily"
    settings = {
        "memory_limit": f"{MEMORY_MB}MiB",
        "temp_directory": str(folder / ".duckdb"),
        "preserve_insertion_order": False,
    }
    rows = 0
    with duckdb.connect(config=settings) as connection:
        connection.execute("SET enable_progress_bar = false")  # it goes to standard output
        connection.register("deleted", deleted)
        connection.sql(
            f"""
            SELECT {key}, {counts},
                (greatest(event_timestamp, coalesce(ingested_at, event_timestamp))
                 AT TIME ZONE 'UTC')::DATE AS day
            FROM read_parquet('{events}') ANTI JOIN deleted USING (event_id)
            GROUP BY ALL ORDER BY {key}
            """
        ).write_parquet(str(daily), row_group_size=ROW_GROUP_ROWS)
        for number, (first, last) in enumerate(_slices(connection, daily, key)):
            part = folder / f"part-{number:05d}.parquet"
            query = _windows(entity, list(kinds), f"{daily}", first, last)
            connection.sql(query).write_parquet(str(part), row_group_size=ROW_GROUP_ROWS)
            rows += pq.read_metadata(part).num_rows
    daily.unlink()
    return rows


def _slices(
    connection: duckdb.DuckDBPyConnection, daily: Path, key: str
) -> Iterator[tuple[int, int]]:
    """First and last id of each slice; one that holds nothing where there is nothing."""
    counted = connection.sql(
        f"SELECT {key} AS id, count(*) AS days FROM read_parquet('{daily}') GROUP BY id ORDER BY id"
    ).fetchnumpy()
    ids, slice_of = counted["id"], np.cumsum(counted["days"]) // SLICE_DAYS
    if not len(ids):
        yield 0, 0
        return
    starts = np.flatnonzero(np.diff(slice_of, prepend=-1))
    for start, end in pairwise([*starts.tolist(), len(ids)]):
        yield int(ids[start]), int(ids[end - 1])


def _windows(entity: str, kinds: list[str], daily: str, first: int, last: int) -> str:
    """The query of the counts of the entities from `first` to `last`."""
    key = f"{entity}_id"
    columns = [(kind, days) for kind in kinds for days in schema.STATS_WINDOWS_DAYS]
    enter = ", ".join(f"{kind} AS {kind}_{days}" for kind, days in columns)
    leave = " UNION ALL ".join(
        f"SELECT {key}, day + {gone + 1}, "
        + ", ".join(f"-{kind}" if days == gone else "0" for kind, days in columns)
        + " FROM daily"
        for gone in schema.STATS_WINDOWS_DAYS
    )
    summed = ", ".join(f"sum({kind}_{days}) AS {kind}_{days}" for kind, days in columns)
    windows = ", ".join(
        f"(sum({kind}_{days}) OVER so_far)::BIGINT AS {entity}_{kind}_{days}d"
        for kind, days in columns
    )
    return f"""
        WITH daily AS MATERIALIZED (
            SELECT * FROM read_parquet('{daily}') WHERE {key} BETWEEN {first} AND {last}
        ), changes AS (
            SELECT {key}, day + 1 AS day, {enter} FROM daily UNION ALL {leave}
        ), summed AS (
            SELECT {key}, day, {summed} FROM changes GROUP BY ALL
        )
        SELECT {key}, {windows}, day::TIMESTAMP AT TIME ZONE 'UTC' AS event_timestamp
        FROM summed
        WINDOW so_far AS (PARTITION BY {key} ORDER BY day ROWS UNBOUNDED PRECEDING)
        ORDER BY {key}, event_timestamp
    """
