"""A published `user_sequence` over a packed store, for tests of live events.

`python -m tests.feature_repo.live_store FOLDER FIRST COUNT` is a writer of its own: it gives COUNT
events of user 7, from event id FIRST on, in a random order, some of them twice.
"""

import random
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import yaml
from feast import FeatureStore, FeatureView, Field, FileSource
from feast.types import Array, Int64

from feature_repo import schema
from feature_repo.feature_definitions import user
from feature_repo.live_events import LiveEvent, LiveEvents, Receipt
from feature_repo.store import apply, open_store
from feature_repo.workspace import Workspace

STORES = "feature_repo.stores."
SQLITE = {
    "type": f"{STORES}packed_sqlite.PackedSqliteOnlineStore",
    "path": "online.db",
    "timeout_s": 20.0,
}
START = datetime(2026, 3, 1, tzinfo=UTC)


def redis_settings(connection_string: str) -> dict:
    return {
        "type": f"{STORES}packed_redis.PackedRedisOnlineStore",
        "connection_string": connection_string,
        "timeout_s": 5.0,
        "retry_s": 0.2,
    }


def live_store(folder: Path, online_store: dict, length: int) -> tuple[Workspace, FeatureStore]:
    workspace = Workspace(folder)
    folder.mkdir(exist_ok=True)
    settings = {
        "project": "crescendo",
        "provider": "local",
        "registry": {"registry_type": "file", "path": "registry.db"},
        "online_store": online_store,
        "offline_store": {"type": "duckdb"},
        "entity_key_serialization_version": 3,
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    store = open_store(workspace, publishing=True)
    source = FileSource(
        name="listens",
        path=f"{workspace.feature_source(schema.USER_SEQUENCE)}/*.parquet",
        timestamp_field=schema.EVENT_TIMESTAMP,
    )
    view = FeatureView(
        name=schema.USER_SEQUENCE,
        entities=[user],
        schema=[
            Field(name=schema.USER_ID, dtype=Int64),
            *(Field(name=name, dtype=Array(Int64)) for name in schema.SEQUENCE_COLUMNS),
        ],
        source=source,
        tags={schema.SEQUENCE_LENGTH_TAG: str(length)},
    )
    apply(store, [user, view])
    return workspace, store


def listen(event_id: int, user_id: int = 7, action: str = "play", **changes) -> LiveEvent:
    """Its time does not follow its id: neighbours change places."""
    facts = {
        "event_id": event_id,
        "user_id": user_id,
        "track_id": event_id % 50,
        "event_timestamp": START + timedelta(seconds=(event_id ^ 1) % 100_000),
        "action": action,
    }
    return LiveEvent(**facts | changes)


def statuses(receipts: list[Receipt]) -> list[str]:
    return [receipt.status for receipt in receipts]


def expected_rows(events: list[LiveEvent], length: int) -> dict[int, dict[str, list[int]]]:
    """The windows of these events, by user: the plain way."""
    rows = {}
    for user_id in {event.user_id for event in events}:
        own = {e.event_id: e for e in events if e.user_id == user_id and e.action != "skip"}
        last = sorted(own.values(), key=lambda e: (e.event_timestamp, e.event_id))[-length:]
        if last:
            rows[user_id] = {
                schema.SEQUENCE_TRACK_IDS: [e.track_id for e in last],
                schema.SEQUENCE_TIMESTAMPS: [microseconds(e.event_timestamp) for e in last],
                schema.SEQUENCE_ACTIONS: [schema.ACTION_CODES[e.action] for e in last],
                schema.SEQUENCE_EVENT_IDS: [e.event_id for e in last],
            }
    return rows


def microseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def online_rows(store: FeatureStore, user_ids: list[int]) -> dict[int, dict[str, list[int]]]:
    """What Feast's own reading finds, users without a row left out."""
    answer = store.get_online_features(
        features=[f"{schema.USER_SEQUENCE}:{name}" for name in schema.SEQUENCE_COLUMNS],
        entity_rows=[{schema.USER_ID: user_id} for user_id in user_ids],
    ).to_dict()
    rows = {
        user_id: {name: answer[name][n] for name in schema.SEQUENCE_COLUMNS}
        for n, user_id in enumerate(user_ids)
    }
    return {n: row for n, row in rows.items() if row[schema.SEQUENCE_TRACK_IDS] is not None}


def logged_events(workspace: Workspace) -> list[LiveEvent]:
    names = ["event_id", "user_id", "track_id", "event_timestamp", "action"]
    rows = pq.read_table(workspace.events, columns=names).to_pylist()
    return [LiveEvent(**row) for row in rows]


def main(folder: Path, first: int, count: int) -> None:
    workspace = Workspace(folder)
    live = LiveEvents(workspace, open_store(workspace))
    events = [listen(first + n) for n in range(count)]
    events += events[::3]
    random.Random(first).shuffle(events)
    print("ready", flush=True)
    sys.stdin.readline()
    for event in events:
        (receipt,) = live.take([event])
        assert receipt.status in ("accepted", "pending"), receipt
    assert live.online.catch_up()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
