"""A small Feast repository of plain views and a sequence view, for tests of the offline store.

The same definitions and parquet sources under our offline store and under stock Feast's DuckDB.
Stock stores snapshots of a sequence, so it has a view of its own over those.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from feast import (
    Entity,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
)
from feast.data_format import ParquetFormat
from feast.types import Array, Float64, Int64, String
from feast.value_type import ValueType

from feature_repo import schema

START = datetime(2026, 1, 1, tzinfo=UTC)
TTL = timedelta(minutes=5)
LENGTH = 3
OURS = {"type": "feature_repo.stores.asof.AsofOfflineStore", "memory_limit_mb": 256, "threads": 1}
STOCK = {"type": "duckdb"}

COUNTS = pa.schema(
    [
        ("user_id", pa.int64()),
        ("event_timestamp", schema.TIMESTAMP),
        ("created", schema.TIMESTAMP),
        ("plays", pa.int64()),
        ("score", pa.float64()),
        ("tracks", pa.list_(pa.int64())),
    ]
)
MOODS = pa.schema(
    [("who", pa.int64()), ("hour", pa.string()), ("seen", schema.TIMESTAMP), ("m", pa.string())]
)
"""Two join keys, columns that a field mapping renames, and a TTL."""
SNAPSHOTS = pa.schema(
    [
        ("user_id", pa.int64()),
        ("event_timestamp", schema.TIMESTAMP),
        *((name, pa.list_(pa.int64())) for name in schema.SEQUENCE_COLUMNS),
    ]
)

user = Entity(name="user_id", join_keys=["user_id"], value_type=ValueType.INT64)
hour = Entity(name="hour", join_keys=["hour"], value_type=ValueType.STRING)


def minute(number: float) -> datetime:
    return START + timedelta(minutes=number)


def source(
    folder: Path | str, name: str, stamp: str = "event_timestamp", **more: Any
) -> FileSource:
    return FileSource(
        name=f"{name}_source",
        path=f"{folder}/{name}/*.parquet",
        file_format=ParquetFormat(),
        timestamp_field=stamp,
        **more,
    )


def views(folder: Path | str, **more: Any) -> list[FeatureView]:
    """`counts`, `moods`, `user_sequence` (event log), `snapshots` (for stock)."""
    lists = [Field(name=name, dtype=Array(Int64)) for name in schema.SEQUENCE_COLUMNS]
    tags = {schema.SEQUENCE_LENGTH_TAG: str(LENGTH)}
    return [
        FeatureView(
            name="counts",
            entities=[user],
            schema=[
                Field(name="user_id", dtype=Int64),
                Field(name="plays", dtype=Int64),
                Field(name="score", dtype=Float64),
                Field(name="tracks", dtype=Array(Int64)),
            ],
            source=source(folder, "counts", created_timestamp_column="created", **more),
        ),
        FeatureView(
            name="moods",
            entities=[user, hour],
            schema=[
                Field(name="user_id", dtype=Int64),
                Field(name="hour", dtype=String),
                Field(name="mood", dtype=String),
            ],
            source=source(
                folder, "moods", "seen", field_mapping={"who": "user_id", "m": "mood"}, **more
            ),
            ttl=TTL,
        ),
        FeatureView(
            name=schema.USER_SEQUENCE,
            entities=[user],
            schema=[Field(name="user_id", dtype=Int64), *lists],
            source=source(folder, schema.USER_SEQUENCE, tags=tags, **more),
            tags=tags,
        ),
        FeatureView(
            name="snapshots",
            entities=[user],
            schema=[Field(name="user_id", dtype=Int64), *lists],
            source=source(folder, "snapshots", **more),
        ),
    ]


def open_repo(
    folder: Path, offline: Mapping[str, Any], sources: str | None = None, **more: Any
) -> FeatureStore:
    """A store in `folder`, its views registered over the sources there or at `sources`."""
    name = str(offline["type"]).rpartition(".")[2]
    settings = {
        "project": "music",
        "provider": "local",
        "registry": str(folder / f"registry-{name}.db"),
        "online_store": {"type": "sqlite", "path": str(folder / "online.db")},
        "offline_store": dict(offline),
        "entity_key_serialization_version": 3,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    store = FeatureStore(repo_path=str(folder), fs_yaml_file=path)
    store.apply([user, hour, *views(sources or folder, **more)])
    return store


def write(folder: Path, name: str, rows: Sequence[Mapping[str, Any]], columns: pa.Schema) -> None:
    """Replaces a source by these rows, in two files."""
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(rows), schema=columns)
    half = table.num_rows // 2
    pq.write_table(table.slice(0, half), target / "part-0.parquet")
    pq.write_table(table.slice(half), target / "part-1.parquet")


def entity_rows(rows: Sequence[tuple[int | None, str | None, float]]) -> pd.DataFrame:
    """Entity rows (user, hour, minute), numbered, at least one."""
    return pd.DataFrame(
        {
            "row": range(len(rows)),
            "user_id": pd.array([row[0] for row in rows], dtype="Int64"),
            "hour": pd.array([row[1] for row in rows], dtype="string"),
            "event_timestamp": pd.to_datetime([minute(row[2]) for row in rows]).astype(
                "datetime64[us, UTC]"
            ),
        }
    )


def answer(store: FeatureStore, rows: pd.DataFrame, features: list[str], **more: Any) -> list[dict]:
    """The joined rows in the order of `row`, in plain Python."""
    table = store.get_historical_features(rows.copy(), features, **more).to_arrow()
    return table.sort_by("row").to_pylist()
