"""Event log -> the sources of `user_sequence`, `user_stats` and `track_stats`.

    crescendo sequences

Writes `features/<view>/part-0.parquet`. A row is stamped with the first moment at which a reader
may see it, so that Feast's point-in-time join, which is `<=`, never shows a row its own event:

- an event becomes visible when it has happened AND reached the log: max(event, ingested);
- the sequence row that includes it is stamped one microsecond later, so events of the same
  moment do not see each other, and a late arrival changes nothing before it arrived;
- a stats row counts whole days before the day it is stamped with.
"""

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import schema
from feature_repo.artifacts import (
    Manifest,
    content_id,
    file_sha256,
    parquet_files,
    write_artifact,
)
from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from ray_jobs.progress import step

ROWS_PER_WRITE = 50_000

SEQUENCE_SOURCE = pa.schema(
    [
        pa.field(schema.USER_ID, pa.int64()),
        pa.field(schema.EVENT_TIMESTAMP, schema.TIMESTAMP),
        *(pa.field(name, pa.list_(pa.int64())) for name in schema.SEQUENCE_COLUMNS),
    ]
)


@dataclass(frozen=True, kw_only=True)
class SequenceOptions:
    length: int = schema.SEQUENCE_LENGTH
    """Listens kept per user."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise InputError(f"length must be at least 1, got {self.length}")


def sequences(workspace: Workspace, options: SequenceOptions) -> dict[str, Any]:
    """Builds the three sources. Returns `users`, and `rows` per view."""
    workspace.require(workspace.events, "ingest --source KIND --path FOLDER")
    events = f"{workspace.events}/*.parquet"
    parents = {"events": events_id(workspace)}
    rows: dict[str, int] = {}
    with step("sequences"):
        folder = workspace.feature_source(schema.USER_SEQUENCE)
        manifest = Manifest(
            kind="feature_source",
            id=folder.name,
            parents=parents,
            options={"length": options.length},
        )
        with write_artifact(folder, manifest) as partial:
            users, rows[folder.name] = _write_sequences(
                events, partial / "part-0.parquet", options.length
            )
            manifest.rows = {"users": users, "rows": rows[folder.name]}
    for view, entity in ((schema.USER_STATS, "user"), (schema.TRACK_STATS, "track")):
        with step(view):
            folder = workspace.feature_source(view)
            manifest = Manifest(kind="feature_source", id=view, parents=parents)
            with write_artifact(folder, manifest) as partial:
                rows[view] = _write_stats(events, partial / "part-0.parquet", entity)
                manifest.rows = {"rows": rows[view]}
    return {"users": users, "rows": rows}


def events_id(workspace: Workspace) -> str:
    """Tells one state of the event log from another: derived from the files' content."""
    files = parquet_files(workspace.events)
    return content_id("events", {path.name: file_sha256(path) for path in files})


def _write_sequences(events: str, target: Path, length: int) -> tuple[int, int]:
    actions = ", ".join(f"'{action}'" for action in schema.LISTEN_ACTIONS)
    codes = " ".join(f"WHEN '{name}' THEN {code}" for name, code in schema.ACTION_CODES.items())
    listens = duckdb.sql(
        f"""
        SELECT user_id,
               epoch_us(greatest(event_timestamp, coalesce(ingested_at, event_timestamp)))
                   AS visible_us,
               epoch_us(event_timestamp) AS event_us, event_id, track_id,
               CASE action {codes} END AS action
        FROM '{events}' WHERE action IN ({actions})
        ORDER BY user_id, visible_us
        """
    )
    users = rows = 0
    with pq.ParquetWriter(target, SEQUENCE_SOURCE) as writer:
        pending: list[dict[str, Any]] = []
        for _, user_listens in groupby(listens.iter_rows(), key=itemgetter(0)):
            users += 1
            pending.extend(_snapshots(user_listens, length))
            if len(pending) >= ROWS_PER_WRITE:
                rows += len(pending)
                writer.write_table(pa.Table.from_pylist(pending, schema=SEQUENCE_SOURCE))
                pending = []
        rows += len(pending)
        writer.write_table(pa.Table.from_pylist(pending, schema=SEQUENCE_SOURCE))
    return users, rows


def _snapshots(listens: Iterator[tuple[int, ...]], length: int) -> Iterator[dict[str, Any]]:
    """One row for each moment at which the user's sequence changed."""
    history: list[tuple[int, int, int, int]] = []  # (event_us, event_id, track_id, action)
    for (user_id, visible_us), arrived in groupby(listens, key=itemgetter(0, 1)):
        for _, _, event_us, event_id, track_id, action in arrived:
            insort(history, (event_us, event_id, track_id, action))
        last = history[-length:]
        # Only the newest `length` can ever be shown again: older ones never come back.
        history = last.copy()
        yield {
            schema.USER_ID: user_id,
            schema.EVENT_TIMESTAMP: visible_us + 1,
            schema.SEQUENCE_TRACK_IDS: [listen[2] for listen in last],
            schema.SEQUENCE_TIMESTAMPS: [listen[0] for listen in last],
            schema.SEQUENCE_ACTIONS: [listen[3] for listen in last],
            schema.SEQUENCE_EVENT_IDS: [listen[1] for listen in last],
        }


def _write_stats(events: str, target: Path, entity: str) -> int:
    """Counts over the days before each day on which a count changes.

    A day's events enter the day after, and leave each window when they grow too old: those days
    get a row, so that the newest row before any moment has that day's counts.
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
    duckdb.sql(
        f"""
        WITH daily AS (
            SELECT {key}, {counts}, date_trunc('day',
                   greatest(event_timestamp, coalesce(ingested_at, event_timestamp))
                   AT TIME ZONE 'UTC') AS day
            FROM '{events}' GROUP BY ALL
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
    ).write_parquet(str(target))
    return pq.read_metadata(target).num_rows
