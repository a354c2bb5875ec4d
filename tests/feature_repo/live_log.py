"""Live events for tests of the journal: one row each, told apart by their ids."""

from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.schema import EVENTS
from feature_repo.workspace import Workspace
from tests.event_logs import event

SOURCE_EVENTS = [event(1, 7, 70, 0), event(2, 8, 80, 1, "skip")]
AFTERWARDS = 60 * 24


def live(event_id: int, user_id: int = 7, track_id: int | None = None) -> pa.Table:
    """One event a minute after the one of the id before; its track says its id, if none does."""
    row = event(event_id, user_id, track_id or event_id * 10, AFTERWARDS + event_id, "play")
    return pa.Table.from_pylist([row], schema=EVENTS)


def rows(first: int, count: int, **changes: int) -> pa.Table:
    return pa.concat_tables([live(first + n, **changes) for n in range(count)])


def now() -> datetime:
    return datetime.now(UTC)


def log(workspace: Workspace) -> dict[int, dict]:
    """The log's rows by event_id; fails where an id comes twice."""
    table = pq.read_table(workspace.events)
    assert table.schema.equals(EVENTS)
    found = {row["event_id"]: row for row in table.to_pylist()}
    assert len(found) == len(table)
    return found
