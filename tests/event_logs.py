"""Small event logs in the contract's form, for tests of features and labels."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import schema
from feature_repo.workspace import Workspace

START = datetime(2026, 1, 1, tzinfo=UTC)


def event(
    event_id: int,
    user_id: int,
    track_id: int,
    minute: float,
    action: str = "complete",
    late_minutes: float | None = None,
) -> dict[str, Any]:
    """One event `minute` minutes after START, received `late_minutes` later (None: at once)."""
    moment = START + timedelta(minutes=minute)
    late = None if late_minutes is None else moment + timedelta(minutes=late_minutes)
    return {
        "event_id": event_id,
        "user_id": user_id,
        "track_id": track_id,
        "event_timestamp": moment,
        "action": action,
        "played_ratio": None,
        "session_id": None,
        "ingested_at": late,
    }


def write_events(workspace: Workspace, events: list[dict[str, Any]]) -> Path:
    """Writes the events as the workspace's contract table and returns its folder."""
    workspace.events.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(events, schema=schema.EVENTS)
    pq.write_table(table, workspace.events / "part-0.parquet")
    return workspace.events
