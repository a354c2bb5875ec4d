"""Small event logs in the contract's form, for tests of features and labels."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
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


def big_log(workspace: Workspace, *, events: int, users: int, files: int, seed: int = 0) -> None:
    """Writes a random log of many events, one in ten late, in files of several row groups."""
    random = np.random.default_rng(seed)
    start_us = int(START.timestamp()) * 1_000_000
    happened_us = start_us + np.sort(random.integers(0, 90 * 86_400 * 10**6, events))
    late_us = random.integers(1, 86_400 * 10**6, events)
    late = random.random(events) < 0.1
    table = pa.table(
        {
            "event_id": random.permutation(events),
            "user_id": random.integers(1, users + 1, events) * 1_000_003,
            "track_id": random.integers(1, 1000, events),
            "event_timestamp": pa.array(happened_us, type=schema.TIMESTAMP),
            "action": random.choice(schema.ACTIONS, events).tolist(),
            "played_ratio": pa.nulls(events, pa.float64()),
            "session_id": pa.nulls(events, pa.int64()),
            "ingested_at": pa.array(happened_us + late_us, type=schema.TIMESTAMP, mask=~late),
        },
        schema=schema.EVENTS,
    )
    workspace.events.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        part = table.slice(number * events // files, -(-events // files))
        part = part.slice(0, (number + 1) * events // files - number * events // files)
        pq.write_table(part, workspace.events / f"part-{number}.parquet", row_group_size=4096)
