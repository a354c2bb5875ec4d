"""Event log -> windowed counts of users and of tracks, by DuckDB in bounded memory.

A day's events enter the day after, and leave each window when they grow too old: those days get a
row, so that the newest row before any moment has that day's counts.
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
    changes = ", ".join(["1", *(str(days + 1) for days in schema.STATS_WINDOWS_DAYS)])
    windows = ", ".join(
        f"""coalesce(sum({kind}) OVER (PARTITION BY {key} ORDER BY day
            RANGE BETWEEN INTERVAL {days} DAYS PRECEDING AND INTERVAL 1 DAY PRECEDING), 0)::BIGINT
            AS {entity}_{kind}_{days}d"""
        for kind in kinds
        for days in schema.STATS_WINDOWS_DAYS
    )
    zeros = ", ".join(f"0 AS {kind}" for kind in kinds)
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
                SELECT {key}, {counts}, date_trunc('day',
                       greatest(event_timestamp, coalesce(ingested_at, event_timestamp))
                       AT TIME ZONE 'UTC') AS day
                FROM read_parquet('{events}') ANTI JOIN deleted USING (event_id) GROUP BY ALL
            ), days AS (
                SELECT {key}, day, plays, completes, skips, favourites, FALSE AS changed FROM daily
                UNION ALL
                SELECT DISTINCT {key}, day + to_days(after), {zeros}, TRUE AS changed
                FROM daily, unnest([{changes}]) AS t(after)
            ), counted AS (
                SELECT {key}, day, changed, {windows} FROM days
            )
            SELECT * EXCLUDE (day, changed), day AT TIME ZONE 'UTC' AS event_timestamp
            FROM counted WHERE changed ORDER BY {key}, event_timestamp
            """
        ).write_parquet(str(target), row_group_size=ROW_GROUP_ROWS)
    return pq.read_metadata(target).num_rows
