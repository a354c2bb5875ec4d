"""Small source tables, good but for what a test changes, and the ingest of them."""

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.workspace import Workspace
from ray_jobs.contract import SourceTables, write_contract_tables

NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)


def tracks(count: int = 4, **changes: dict[int, Any]) -> pa.Table:
    """`count` good tracks; `changes` replaces values, {row: value} a column."""
    columns: dict[str, list[Any]] = {
        "track_id": list(range(1, count + 1)),
        "title": [f"Tune {row}" for row in range(count)],
        "duration_s": [180.0] * count,
    }
    return changed(columns, changes)


def events(count: int = 8, **changes: dict[int, Any]) -> pa.Table:
    """`count` good events of three users on the first three tracks, all at one moment."""
    columns: dict[str, list[Any]] = {
        "event_id": [100 + row for row in range(count)],
        "user_id": [7 + row % 3 for row in range(count)],
        "track_id": [1 + row % 3 for row in range(count)],
        "event_timestamp": [NOON.isoformat()] * count,
        "action": ["play"] * count,
        "played_ratio": [0.5] * count,
        "session_id": [row // 4 for row in range(count)],
    }
    return changed(columns, changes)


def changed(columns: dict[str, list[Any]], changes: dict[str, dict[int, Any]]) -> pa.Table:
    rows = len(next(iter(columns.values())))
    for name, values in changes.items():
        column = columns.setdefault(name, [None] * rows)
        for row, value in values.items():
            column[row] = value
    return pa.table(columns)


def write(
    workspace: Workspace, tracks: pa.Table, events: pa.Table, share: float = 1.0, **more: Any
) -> dict[str, Any]:
    source = more.pop("source", "test")
    source_tables = SourceTables(tracks=tracks, events=events, **more)
    return write_contract_tables(workspace, source_tables, source=source, max_rejected_share=share)


def assert_nothing_lost(workspace: Workspace, result: dict[str, Any]) -> None:
    for name, folder in (("tracks", workspace.tracks), ("events", workspace.events)):
        rejected = pq.read_table(workspace.rejected / f"{name}.parquet")
        assert result[name] == pq.read_table(folder).num_rows
        assert result["rows_in"][name] == result[name] + len(rejected)
        assert sum(result["rejected_by_reason"][name].values()) == len(rejected)
    assert (
        result["rejected"] == sum(result["rows_in"].values()) - result["tracks"] - result["events"]
    )
