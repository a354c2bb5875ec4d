"""Online reads of one user and of 100, 500 and 1000 tracks: stock Feast, ours, the floor; one run.

    python benchmarks/online_reads.py [--quick]

Starts a redis-server of its own (loopback, a free port, nothing on disk) and fills it and SQLite
files with the views of a ranker: three families of semantic IDs and a generation name, eight
counts; for users four lists of a hundred and eight counts. Contenders take turns on the same
random ids, with all garbage-collected objects frozen. `stock` and `sdk` are `get_online_features`
on Feast's store and on ours, up to the response (not turned into Python objects); `ours` is
`OnlineReader`; `floor` is one value an entity without keys, times, nulls or types, by redis-py's
mget (or one SELECT) into numpy. Every value that stock and ours give is compared, missing
entities too. Stock gets a fifth of the calls. Prints a table; the last line is one JSON object.
"""

import argparse
import gc
import json
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import redis
import yaml
from feast import Entity, FeatureStore, FeatureView, Field, FileSource
from feast.types import Array, Int64, String
from feast.utils import _convert_arrow_to_proto
from feast.value_type import ValueType
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import processor, versions
from benchmarks.redis_server import redis_server
from feature_repo import schema
from feature_repo.online import OnlineReader, packed_store

FAMILIES = {"text_sid": 3, "audio_sid": 3, "joint_sid": 4}
COUNTS = [f"count_{n}" for n in range(8)]
VIEWS = {"track": ["track_semantic_ids", "track_stats"], "user": ["user_sequence", "user_stats"]}
FEATURES = {
    "track": [
        *(f"track_semantic_ids:{name}" for name in (*FAMILIES, schema.GENERATION)),
        *(f"track_stats:{name}" for name in COUNTS),
    ],
    "user": [
        *(f"user_sequence:{name}" for name in schema.SEQUENCE_COLUMNS),
        *(f"user_stats:{name}" for name in COUNTS),
    ],
}
LISTENS = 100
NOW = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1e6)
SIZES = {"user": 1, "100": 100, "500": 500, "1000": 1000}

Read = Callable[[np.ndarray], Any]


@dataclass(frozen=True, kw_only=True)
class Calls:
    """Calls of each contender. Stock takes a hundred times as long as the floor, so it gets fewer:
    1,000 of all its calls would take five minutes by themselves."""

    stock: int
    others: int
    rounds: int


CALLS = Calls(stock=200, others=1_000, rounds=10)
QUICK_CALLS = Calls(stock=40, others=200, rounds=4)


def tables(tracks: int, users: int) -> dict[str, pa.Table]:
    """The rows of the four views."""
    random = np.random.default_rng(0)

    def lists(rows: int, length: int, below: int) -> pa.Array:
        items = pa.array(random.integers(0, below, rows * length))
        return pa.LargeListArray.from_arrays(pa.array(np.arange(rows + 1) * length), items)

    def times(rows: int) -> pa.Array:
        return pa.array(np.full(rows, NOW), type=schema.TIMESTAMP)

    def counts(rows: int) -> dict[str, np.ndarray]:
        return {name: random.integers(0, 10_000, rows) for name in COUNTS}

    moments = np.sort(random.integers(0, NOW, (users, LISTENS)), axis=1)
    sequence = dict.fromkeys(schema.SEQUENCE_COLUMNS, None)
    sequence[schema.SEQUENCE_TRACK_IDS] = lists(users, LISTENS, tracks)
    sequence[schema.SEQUENCE_ACTIONS] = lists(users, LISTENS, 5)
    for name, values in (
        (schema.SEQUENCE_TIMESTAMPS, moments.ravel()),
        (schema.SEQUENCE_EVENT_IDS, random.permutation(users * LISTENS)),
    ):
        offsets = pa.array(np.arange(users + 1) * LISTENS)
        sequence[name] = pa.LargeListArray.from_arrays(offsets, pa.array(values))
    track = {"track_id": np.arange(tracks), schema.EVENT_TIMESTAMP: times(tracks)}
    user = {"user_id": np.arange(users), schema.EVENT_TIMESTAMP: times(users)}
    codes = {name: lists(tracks, length, 128) for name, length in FAMILIES.items()}
    generation = {schema.GENERATION: ["gen-0123456789ab"] * tracks}
    return {
        "track_semantic_ids": pa.table({**track, **codes, **generation}),
        "track_stats": pa.table({**track, **counts(tracks)}),
        "user_sequence": pa.table({**user, **sequence}),
        "user_stats": pa.table({**user, **counts(users)}),
    }


def repository(folder: Path, online: dict[str, Any], rows: dict[str, pa.Table]) -> FeatureStore:
    """A feature store with the four views, filled."""
    folder.mkdir()
    settings = {
        "project": folder.name,
        "provider": "local",
        "registry": {"registry_type": "file", "path": "registry.db", "cache_ttl_seconds": 0},
        "online_store": online,
        "offline_store": {"type": "duckdb"},
        "entity_key_serialization_version": 3,
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    entities = {
        key: Entity(name=key, join_keys=[key], value_type=ValueType.INT64)
        for key in ("track_id", "user_id")
    }
    views = []
    for name, table in rows.items():
        key = table.column_names[0]
        path = folder / f"{name}.parquet"
        pq.write_table(table.slice(0, 1), path)
        fields = [
            Field(name=field.name, dtype=_feast_type(field.type))
            for field in table.schema
            if field.name != schema.EVENT_TIMESTAMP
        ]
        tags = {schema.SEQUENCE_LENGTH_TAG: str(LISTENS)} if name == "user_sequence" else {}
        source = FileSource(name=name, path=str(path), timestamp_field=schema.EVENT_TIMESTAMP)
        views.append(
            FeatureView(
                name=name, entities=[entities[key]], schema=fields, source=source, tags=tags
            )
        )
    store = FeatureStore(repo_path=str(folder))
    store.apply([*entities.values(), *views])
    for name, table in rows.items():
        view = store.get_feature_view(name)
        if online["type"].startswith("feature_repo."):
            packed_store(store).write_table(store.config, view, table)
            continue
        for start in range(0, table.num_rows, 10_000):
            part = table.slice(start, 10_000).combine_chunks()
            keys = {column.name: column.dtype.to_value_type() for column in view.entity_columns}
            data = _convert_arrow_to_proto(part, view, keys)
            store._get_provider().online_write_batch(store.config, view, data, None)
    return store


def _feast_type(arrow: pa.DataType) -> Any:
    if pa.types.is_large_list(arrow):
        return Array(Int64)
    return String if pa.types.is_string(arrow) else Int64


def floor_values(rows: dict[str, pa.Table], names: list[str]) -> list[bytes]:
    """All numbers of an entity behind each other, and nothing else."""
    parts = []
    for view in names:
        for column in rows[view].columns[2:]:
            array = column.combine_chunks()
            if pa.types.is_string(array.type):
                continue
            numbers = array.flatten() if pa.types.is_large_list(array.type) else array
            parts.append(numbers.to_numpy().reshape(rows[view].num_rows, -1))
    return [row.tobytes() for row in np.concatenate(parts, axis=1)]


def sdk(store: FeatureStore, key: str, features: list[str]) -> Read:
    return lambda ids: store.get_online_features(features=features, entity_rows={key: ids.tolist()})


def redis_floor(client: redis.Redis, prefix: bytes) -> Read:
    def read(ids: np.ndarray) -> np.ndarray:
        data = ids.astype("<i8").tobytes()
        keys = [prefix + data[at : at + 8] for at in range(0, len(data), 8)]
        return np.frombuffer(b"".join(client.mget(keys)), dtype="<i8").reshape(len(ids), -1)

    return read


def sqlite_floor(connection: sqlite3.Connection, table: str) -> Read:
    sql = f"SELECT row.value FROM json_each(?) AS asked JOIN {table} AS row ON row.id = asked.value"

    def read(ids: np.ndarray) -> np.ndarray:
        found = [row for (row,) in connection.execute(sql, (json.dumps(ids.tolist()),))]
        return np.frombuffer(b"".join(found), dtype="<i8").reshape(len(ids), -1)

    return read


def identical(stock: FeatureStore, ours: FeatureStore, key: str, features: list[str]) -> bool:
    """Whether stock, our columns and plain Feast on our store say the same of 500 entities."""
    ids = np.append(np.arange(0, 1500, 3) % 1000, [10**12, -1])
    theirs = sdk(stock, key, features)(ids).to_dict()
    plain = sdk(ours, key, features)(ids).to_dict()
    columns = OnlineReader(ours, features).read(ids)
    same = all(
        theirs[name.partition(":")[2]] == columns[name].to_pylist() == plain[name.partition(":")[2]]
        for name in features
    )
    return same and not any(found[-2:].any() for found in columns.found.values())


def measure(
    contenders: dict[str, Read], size: int, entities: int, calls: Calls
) -> dict[str, np.ndarray]:
    """Milliseconds of every call; contenders take turns, in another order each round."""
    random = np.random.default_rng(size)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(calls.rounds + 1):
        asked = [random.integers(0, entities, size) for _ in range(calls.others // calls.rounds)]
        names = list(contenders)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            read = contenders[name]
            count = (calls.stock if name == "stock" else calls.others) // calls.rounds
            for ids in asked[: count if turn else 5]:  # the first round warms up
                begin = time.perf_counter()
                read(ids)
                if turn:
                    times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: np.array(values) for name, values in times.items()}


def stores_of(kind: str, address: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """`online_store` of stock Feast and of ours."""
    ours = f"feature_repo.stores.packed_{kind}.Packed{kind.capitalize()}OnlineStore"
    place = {"connection_string": address} if kind == "redis" else {"path": "online.db"}
    return {"type": kind, **place}, {"type": ours, **place}


def fill_floors(
    client: redis.Redis, connection: sqlite3.Connection, rows: dict[str, pa.Table]
) -> None:
    for entity, views in VIEWS.items():
        values = floor_values(rows, views)
        for n, value in enumerate(values):
            client.set(entity.encode() + n.to_bytes(8, "little"), value)
        connection.execute(f"CREATE TABLE {entity} (id INTEGER PRIMARY KEY, value BLOB)")
        connection.executemany(f"INSERT INTO {entity} VALUES (?, ?)", enumerate(values))
        connection.commit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3,000 tracks, 200 calls: a minute")
    quick = parser.parse_args().quick
    tracks, users, calls = (3_000, 500, QUICK_CALLS) if quick else (100_000, 20_000, CALLS)
    rows = tables(tracks, users)
    answer: dict[str, Any] = {}
    table = Table(title="Online reads, milliseconds")
    for heading in ("read", "", "p50", "p95", "p99", "stock/this p50", "p99"):
        table.add_column(heading, justify="left" if heading in ("read", "") else "right")
    same = True
    with redis_server() as port, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        client = redis.Redis(port=port)
        connection = sqlite3.connect(folder / "floor.db")
        fill_floors(client, connection, rows)
        for kind in ("redis", "sqlite"):
            stock_settings, our_settings = stores_of(kind, f"127.0.0.1:{port}")
            stock = repository(folder / f"stock_{kind}", stock_settings, rows)
            ours = repository(folder / f"ours_{kind}", our_settings, rows)
            for entity, features in FEATURES.items():
                same &= identical(stock, ours, f"{entity}_id", features)
            gc.collect()
            gc.freeze()
            for label, size in SIZES.items():
                entity = "user" if label == "user" else "track"
                features = FEATURES[entity]
                contenders = {
                    "stock": sdk(stock, f"{entity}_id", features),
                    "sdk": sdk(ours, f"{entity}_id", features),
                    "ours": OnlineReader(ours, features).read,
                    "floor": redis_floor(client, entity.encode())
                    if kind == "redis"
                    else sqlite_floor(connection, entity),
                }
                entities = users if entity == "user" else tracks
                times = measure(contenders, size, entities, calls)
                answer[f"{kind}_{label}"] = add_rows(table, f"{kind}, {label}", times)
    console = Console(width=100)
    console.print(table)
    console.print(
        f"{calls.others:,} calls each, stock {calls.stock}; {tracks:,} tracks, {users:,} users; "
        f"{processor()}; {versions('feast', 'redis')}, SQLite {sqlite3.sqlite_version}; "
        f"values identical: {same}"
    )
    print(json.dumps({**answer, "identical": same}))


def add_rows(table: Table, label: str, times: dict[str, np.ndarray]) -> dict[str, float]:
    """A table row each contender; their percentiles for the JSON line."""
    found: dict[str, float] = {}
    for name, values in times.items():
        for percent in (50, 95, 99):
            found[f"{name}_p{percent}_ms"] = round(float(np.percentile(values, percent)), 4)
        ratios = [found[f"stock_p{p}_ms"] / found[f"{name}_p{p}_ms"] for p in (50, 99)]
        cells = [f"{found[f'{name}_p{p}_ms']:.2f}" for p in (50, 95, 99)]
        table.add_row(
            label if name == "stock" else "", name, *cells, *(f"{r:.1f}x" for r in ratios)
        )
    table.add_section()
    return found


if __name__ == "__main__":
    main()
