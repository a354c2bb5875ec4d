"""Small Feast repositories on packed and on stock online stores, for the tests of this folder."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource
from feast.types import (
    Array,
    Bool,
    Bytes,
    Float32,
    Float64,
    Int32,
    Int64,
    String,
    UnixTimestamp,
)
from feast.value_type import ValueType

from feature_repo import schema
from feature_repo.stores.packed_columns import KINDS

START = datetime(2026, 1, 1, tzinfo=UTC)
PACKED_SQLITE = {
    "type": "feature_repo.stores.packed_sqlite.PackedSqliteOnlineStore",
    "path": "online.db",
}
STOCK_SQLITE = {"type": "sqlite", "path": "stock.db"}

user = Entity(name="user_id", join_keys=["user_id"], value_type=ValueType.INT64)
label = Entity(name="label", join_keys=["label"], value_type=ValueType.STRING)

SCALARS = {
    "INT32": Int32,
    "INT64": Int64,
    "FLOAT": Float32,
    "DOUBLE": Float64,
    "BOOL": Bool,
    "STRING": String,
    "BYTES": Bytes,
    "UNIX_TIMESTAMP": UnixTimestamp,
}


def packed_redis(connection_string: str, **settings: Any) -> dict[str, Any]:
    return {
        "type": "feature_repo.stores.packed_redis.PackedRedisOnlineStore",
        "connection_string": connection_string,
        **settings,
    }


def stock_redis(connection_string: str) -> dict[str, Any]:
    return {"type": "redis", "connection_string": connection_string}


def source(folder: Path, name: str, created: str = "") -> FileSource:
    return FileSource(
        name=f"{name}_source",
        path=str(folder / f"{name}.parquet"),
        timestamp_field=schema.EVENT_TIMESTAMP,
        created_timestamp_column=created,
    )


def view(
    folder: Path, name: str, fields: dict[str, Any], entity: Entity = user, created: str = ""
) -> FeatureView:
    key = Field(name=entity.join_key, dtype=Int64 if entity is user else String)
    return FeatureView(
        name=name,
        entities=[entity],
        schema=[key, *(Field(name=field, dtype=dtype) for field, dtype in fields.items())],
        source=source(folder, name, created),
    )


def every_type_view(folder: Path) -> FeatureView:
    """One field of every type that packed rows hold: `f_int64`, `f_int64_list`, ..."""
    fields: dict[str, Any] = {}
    for name, dtype in SCALARS.items():
        fields[f"f_{name.lower()}"] = dtype
        fields[f"f_{name.lower()}_list"] = Array(dtype)
    return view(folder, "every_type", fields)


def sequence_view(folder: Path, length: int) -> FeatureView:
    return FeatureView(
        name=schema.USER_SEQUENCE,
        entities=[user],
        schema=[
            Field(name="user_id", dtype=Int64),
            *(Field(name=column, dtype=Array(Int64)) for column in schema.SEQUENCE_COLUMNS),
        ],
        source=PushSource(name="listening_events", batch_source=source(folder, "listens")),
        tags={schema.SEQUENCE_LENGTH_TAG: str(length)},
    )


def repository(
    folder: Path, online: dict[str, Any], objects: Sequence[Any], *, versions: bool = False
) -> FeatureStore:
    """A feature store in `folder` with these objects applied."""
    settings = {
        "project": "test",
        "provider": "local",
        "registry": {
            "registry_type": "file",
            "path": "registry.db",
            "enable_online_feature_view_versioning": versions,
        },
        "online_store": online,
        "offline_store": {"type": "duckdb"},
        "entity_key_serialization_version": 3,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    for item in objects:
        if isinstance(item, FeatureView):  # Feast looks at the source when a view is applied
            write_source(Path(item.batch_source.path), item)
    store = FeatureStore(repo_path=str(folder))
    store.apply([user, label, *objects])
    return store


def write_source(path: Path, item: FeatureView) -> None:
    """An empty source with the view's columns."""
    kinds = {field.name: field.dtype.to_value_type().name for field in item.schema}
    columns = {name: KINDS[kind].arrow for name, kind in kinds.items() if kind in KINDS}
    columns[schema.EVENT_TIMESTAMP] = schema.TIMESTAMP
    if item.batch_source.created_timestamp_column:
        columns[item.batch_source.created_timestamp_column] = schema.TIMESTAMP
    pq.write_table(pa.schema(list(columns.items())).empty_table(), path)


def times(seconds: Sequence[float]) -> pa.Array:
    """START and so many seconds, as the store's timestamps."""
    return pa.array([START + timedelta(seconds=s) for s in seconds], type=schema.TIMESTAMP)


def table(ids: Sequence[int], seconds: Sequence[float], **columns: Any) -> pa.Table:
    """Rows of entities `ids`, that long after START."""
    return pa.table({"user_id": ids, schema.EVENT_TIMESTAMP: times(seconds), **columns})


def listens(rows: Sequence[tuple[int, int, int, int, int]]) -> pa.Table:
    """Rows of one listen each: (user, event id, second, track, action)."""
    columns = {
        schema.SEQUENCE_TRACK_IDS: [[track] for _, _, _, track, _ in rows],
        schema.SEQUENCE_TIMESTAMPS: [[second * 1_000_000] for _, _, second, _, _ in rows],
        schema.SEQUENCE_ACTIONS: [[action] for _, _, _, _, action in rows],
        schema.SEQUENCE_EVENT_IDS: [[event] for _, event, _, _, _ in rows],
    }
    lists = {name: pa.array(v, type=pa.list_(pa.int64())) for name, v in columns.items()}
    return table(
        pa.array([row[0] for row in rows], type=pa.int64()), [row[2] for row in rows], **lists
    )


def read_listens(store: FeatureStore, item: FeatureView, user_id: int) -> list[tuple[int, ...]]:
    """(event id, second, track, action) of the user's stored sequence, newest last."""
    from feature_repo.online import packed_store

    columns = packed_store(store).read_columns(
        store.config, [(item, schema.SEQUENCE_COLUMNS)], np.array([user_id])
    )
    tracks, moments, actions, events = (
        columns[f"{item.name}:{name}"].to_pylist()[0] or [] for name in schema.SEQUENCE_COLUMNS
    )
    seconds = [moment // 1_000_000 for moment in moments]
    return list(zip(events, seconds, tracks, actions, strict=True))
