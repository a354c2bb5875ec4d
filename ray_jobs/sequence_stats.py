"""Event log -> windowed counts of users and of tracks, by DuckDB in bounded memory.

A day's events enter the day after, and leave each window when they grow too old: those days get a
row, so that the newest row before any moment has that day's counts.

    count(D) = sum over days d < D of events(d), less those with d < D - window
             = running sum of changes: + events(d) at d + 1, - events(d) at d + window + 1

A running sum costs one addition a row; a sum over each row's own range of days twice as much.
"""

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import schema

MEMORY_MB = 1024
"""What DuckDB holds; beyond it goes to disk, beside the file that it writes."""
ROW_GROUP_ROWS = 131_072


def write_stats(events: str, deleted: pa.Table, target: Path, entity: str) -> int:
    """Writes the counts of each `entity` (`user` or `track`); returns the number of rows.

    `events`: pattern of the log's files; `deleted`: table with the column event_id, left out.
    """
    key = f"{entity}_id"
    kinds = {
        "plays": "action <> 'skip'",
        "completes": "action = 'complete'",
        "skips": "action = 'skip'",
        "favourites": "action = 'favourite'",
    }
    counts = ", ".join(f"count(*) FILTER ({where}) AS {kind}" for kind, where in kinds.items())
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
    settings = {
        "memory_limit": f"{MEMORY_MB}MiB",
        "temp_directory": str(target.parent / ".duckdb"),
        "preserve_insertion_order": False,
    }
    with duckdb.connect(config=settings) as connection:
        connection.execute("SET enable_progress_bar = false")  # it goes to standard output
        connection.register("deleted", deleted)
        connection.sql(
            f"""
            WITH daily AS (
                SELECT {key}, {counts},
                    (greatest(event_timestamp, coalesce(ingested_at, event_timestamp))
                     AT TIME ZONE 'UTC')::DATE AS day
                FROM read_parquet('{events}') ANTI JOIN deleted USING (event_id) GROUP BY ALL
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
        ).write_parquet(str(target), row_group_size=ROW_GROUP_ROWS)
    return pq.read_metadata(target).num_rows
