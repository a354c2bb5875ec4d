"""A small published feature store with a plain view and a sequence view, and its sources.

Sources are written as the jobs write them, from rows in plain Python, so that a test says exactly
what is where; what must be online is worked out from the same rows in plain Python.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from feature_repo import schema
from feature_repo.artifacts import Manifest, write_artifact
from feature_repo.workspace import Workspace

START = datetime(2100, 1, 1, tzinfo=UTC)
"""Ahead of any clock: the moment of a run is then that of the last listen."""
PAST_HOURS = -100 * 8766.0
"""A century before START: for rows that are older than the making of their source."""
PLAIN, SEQUENCE = "user_counts", schema.USER_SEQUENCE
LENGTH = 5
PLAIN_SOURCE = pa.schema(
    [
        pa.field("user_id", pa.int64()),
        pa.field("event_timestamp", schema.TIMESTAMP),
        pa.field("plays", pa.int64()),
        pa.field("score", pa.float64()),
        pa.field("tracks", pa.list_(pa.int64())),
    ]
)


def at(hours: float) -> datetime:
    """So many hours after START."""
    return START + timedelta(hours=hours)


def until(rows: Iterable[dict[str, Any]], hours: float) -> list[dict[str, Any]]:
    """The rows that are there at that hour."""
    return [row for row in rows if row["event_timestamp"] <= at(hours)]


def plain_row(user: int, hours: float, value: int) -> dict[str, Any]:
    return {
        "user_id": user,
        "event_timestamp": at(hours),
        "plays": value,
        "score": value / 7,
        "tracks": [value] * (value % 4),
    }


def listen(
    event_id: int, user: int, hours: float, *, late_hours: float = 0.0, track: int = 0
) -> dict[str, Any]:
    """A listen at that hour, visible a microsecond after it reached the log."""
    return {
        "user_id": user,
        "event_timestamp": at(hours + late_hours) + timedelta(microseconds=1),
        "listened_at": at(hours),
        "event_id": event_id,
        "track_id": track or event_id + 1000,
        "action": 1 + event_id % 2,
    }


def random_rows(seed: int, users: int, count: int, hours: float) -> tuple[list, list]:
    """Plain rows and listens of so many users over so many hours; ties and late ones too."""
    random = np.random.default_rng(seed)
    plain, listens = [], []
    for number in range(count):
        user = int(random.integers(1, users + 1))
        hour = float(random.integers(0, int(hours * 4))) / 4
        late = float(random.integers(1, 20)) if random.random() < 0.2 else 0.0
        late = min(late, hours - hour)
        plain.append(plain_row(user, hour, number))
        listens.append(listen(number, user, hour, late_hours=late))
    # One row an entity and moment: which of two would be the newest is nobody's to say.
    plain = list({(row["user_id"], row["event_timestamp"]): row for row in plain}.values())
    return plain, listens


def write_source(
    workspace: Workspace, view: str, rows: Iterable[Mapping[str, Any]], *, parts: int = 2
) -> None:
    """Replaces the source of a view by these rows, every user in one of the files."""
    schema_ = schema.EVENT_LOG if view == SEQUENCE else PLAIN_SOURCE
    ordered = sorted(rows, key=lambda row: (row["user_id"], row["event_timestamp"]))
    manifest = Manifest(kind="feature_source", id=view, rows={"rows": len(ordered)})
    with write_artifact(workspace.feature_source(view), manifest) as partial:
        for part in range(parts):
            mine = [row for row in ordered if row["user_id"] % parts == part]
            table = pa.Table.from_pylist(mine, schema=schema_)
            pq.write_table(table, partial / f"part-{part}.parquet")


def packed_settings(redis: str | None = None) -> dict[str, Any]:
    """`feature_store.yaml` with our stores: Redis at that address, or SQLite."""
    online = (
        {"type": "feature_repo.stores.packed_redis.PackedRedisOnlineStore"}
        | {"connection_string": redis}
        if redis
        else {"type": "feature_repo.stores.packed_sqlite.PackedSqliteOnlineStore"}
        | {"path": "online.db"}
    )
    return {
        "project": "crescendo",
        "provider": "local",
        "registry": {"registry_type": "file", "path": "registry.db"},
        "online_store": online,
        "offline_store": {"type": "feature_repo.stores.asof.AsofOfflineStore"},
        "entity_key_serialization_version": 3,
    }


def apply_views(workspace: Workspace, settings: dict[str, Any]) -> Any:
    """Registers both views over the workspace's sources; the open store."""
    from feast import Entity, FeatureView, Field, FileSource, PushSource
    from feast.data_format import ParquetFormat
    from feast.types import Array, Float64, Int64
    from feast.value_type import ValueType

    from feature_repo.store import open_store

    workspace.root.mkdir(parents=True, exist_ok=True)
    (workspace.root / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    user = Entity(name="user_id", join_keys=["user_id"], value_type=ValueType.INT64)

    def source(view: str, tags: dict[str, str]) -> FileSource:
        return FileSource(
            name=f"{view}_source",
            path=f"{workspace.location}/features/{view}/*.parquet",
            file_format=ParquetFormat(),
            timestamp_field="event_timestamp",
            tags=tags,
        )

    tags = {schema.SEQUENCE_LENGTH_TAG: str(LENGTH)}
    plain = FeatureView(
        name=PLAIN,
        entities=[user],
        schema=[
            Field(name="user_id", dtype=Int64),
            Field(name="plays", dtype=Int64),
            Field(name="score", dtype=Float64),
            Field(name="tracks", dtype=Array(Int64)),
        ],
        source=source(PLAIN, {}),
    )
    sequence = FeatureView(
        name=SEQUENCE,
        entities=[user],
        schema=[
            Field(name="user_id", dtype=Int64),
            *(Field(name=name, dtype=Array(Int64)) for name in schema.SEQUENCE_COLUMNS),
        ],
        source=PushSource(name="listening_events", batch_source=source(SEQUENCE, tags)),
        tags=tags,
    )
    store = open_store(workspace)
    store.apply([user, plain, sequence])
    return store


def newest_plain(rows: Iterable[Mapping[str, Any]], until: datetime) -> dict[int, dict[str, Any]]:
    """user -> what must be online at that moment."""
    found: dict[int, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["event_timestamp"]):
        if row["event_timestamp"] <= until:
            found[row["user_id"]] = dict(row)
    return found


def newest_listens(
    rows: Iterable[Mapping[str, Any]], until: datetime, length: int = LENGTH
) -> dict[int, list[int]]:
    """user -> the event ids that must be online at that moment."""
    seen = [row for row in rows if row["event_timestamp"] <= until]
    found: dict[int, list[int]] = {}
    for row in sorted(seen, key=lambda row: (row["listened_at"], row["event_id"])):
        found.setdefault(row["user_id"], []).append(row["event_id"])
    return {user: ids[-length:] for user, ids in found.items()}


def online_state(store: Any) -> tuple[dict[int, dict[str, Any]], dict[int, list[int]]]:
    """Everything that is online, in the form of the two functions above."""
    from feature_repo.online import packed_store

    online = packed_store(store)
    found = []
    for name in (PLAIN, SEQUENCE):
        view = store.get_feature_view(name)
        ids = np.concatenate([np.zeros(0, dtype=np.int64), *online.entity_ids(store.config, view)])
        names = [field.name for field in view.features]
        read = online.read_columns(store.config, [(view, names)], ids)
        columns = {field: read[f"{name}:{field}"].to_pylist() for field in names}
        times = read.event_us[name].tolist()
        found.append((ids.tolist(), columns, times))
    (ids, columns, times), (users, listens, _) = found
    plain = {
        user: {
            "user_id": user,
            "event_timestamp": datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us),
            **{field: values[n] for field, values in columns.items()},
        }
        for n, (user, us) in enumerate(zip(ids, times, strict=True))
    }
    return plain, dict(zip(users, listens[schema.SEQUENCE_EVENT_IDS], strict=True))


def expected_state(
    plain: list, listens: list, until: datetime
) -> tuple[dict[int, dict[str, Any]], dict[int, list[int]]]:
    return newest_plain(plain, until), newest_listens(listens, until)


def write_both(workspace: Workspace, plain: list, listens: list) -> None:
    write_source(workspace, PLAIN, plain)
    write_source(workspace, SEQUENCE, listens)


def sources_folder(workspace: Workspace) -> Path:
    return workspace.root / "features"
