"""Bringing four views online: stock Feast at its best (DuckDB, local engine) and ours, in one run.

    python benchmarks/materialize.py [--quick] [--rounds 3]

On Redis (started here, on loopback, without persistence) and on SQLite: semantic IDs (three lists
and a string) and counts of 100,000 tracks, counts and the last 100 listens of 50,000 users. Stock
reads those listens as one snapshot a user; ours reads the log of all listens and builds them. Ours
includes its checks: every entity counted, a sample read back. Each cell has a process of its own.
Prints a table of rows/s and ratios; the last line is one JSON object.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import processor, versions
from benchmarks.redis_server import redis_server
from feature_repo import schema
from feature_repo.parquet_form import parquet_settings

TRACKS, USERS, LENGTH = 100_000, 50_000, 100
QUICK_TRACKS, QUICK_USERS = 20_000, 20_000
"""With fewer a run measures what starts it: opening DuckDB, the registry, the checks."""
COMPARED = 1_000
"""Entities of each view whose values are compared between stock and ours."""
START_US = 1_700_000_000_000_000
STATS = tuple(f"count_{n}" for n in range(5))
SEMANTIC_IDS = {"text_sid": 4, "audio_sid": 4, "joint_sid": 3}
VIEWS = ("track_semantic_ids", "track_stats", "user_stats", schema.USER_SEQUENCE)


def write_sources(folder: Path, tracks: int, users: int) -> None:
    """The same values for both: one row an entity, and of listens a snapshot and a log."""
    random = np.random.default_rng(0)

    def stamps(count: int) -> pa.Array:
        return pa.array(np.full(count, START_US), type=pa.int64()).cast(schema.TIMESTAMP)

    def lists(values_NL: np.ndarray, kind: pa.DataType) -> pa.Array:
        n, length = values_NL.shape
        offsets = np.arange(n + 1, dtype=np.int32) * length
        return pa.ListArray.from_arrays(offsets, pa.array(values_NL.ravel(), type=kind))

    def write(view: str, columns: dict[str, Any]) -> None:
        target = folder / view / "part-0.parquet"
        target.parent.mkdir(parents=True)
        rows = pa.table(columns)
        pq.write_table(rows, target, coerce_timestamps="us", **parquet_settings(rows.schema))

    columns = {
        name: lists(random.integers(0, 256, (tracks, length)), pa.int32())
        for name, length in SEMANTIC_IDS.items()
    }
    generation = pa.array(["gen-0123456789ab"] * tracks)
    ids = {"track_id": np.arange(tracks), "event_timestamp": stamps(tracks)}
    write("track_semantic_ids", {**ids, **columns, schema.GENERATION: generation})
    counts = random.random((max(tracks, users), len(STATS))).astype("f4")
    write("track_stats", {**ids, **dict(zip(STATS, counts[:tracks].T, strict=True))})
    ids = {"user_id": np.arange(users), "event_timestamp": stamps(users)}
    write("user_stats", {**ids, **dict(zip(STATS, counts[:users].T, strict=True))})

    track = random.integers(0, tracks, (users, LENGTH))
    action = random.integers(1, 5, (users, LENGTH))
    event = np.arange(users * LENGTH).reshape(users, LENGTH)
    listened_us = START_US + np.sort(random.integers(0, 10**12, (users, LENGTH)), axis=1)
    last = pa.array(listened_us[:, -1] + 1).cast(schema.TIMESTAMP)
    four = dict(zip(schema.SEQUENCE_COLUMNS, (track, listened_us, action, event), strict=True))
    snapshot = {name: lists(values, pa.int64()) for name, values in four.items()}
    write("snapshots", {"user_id": np.arange(users), "event_timestamp": last, **snapshot})
    log = {
        "user_id": np.repeat(np.arange(users), LENGTH),
        "event_timestamp": pa.array(listened_us.ravel() + 1).cast(schema.TIMESTAMP),
        "listened_at": pa.array(listened_us.ravel()).cast(schema.TIMESTAMP),
        "event_id": event.ravel(),
        "track_id": track.ravel(),
        "action": action.ravel(),
    }
    write(schema.USER_SEQUENCE, log)


def settings(who: str, where: str, port: int) -> dict[str, Any]:
    """`feature_store.yaml` of stock Feast's best configuration, or of ours."""
    ours = "feature_repo.stores."
    address = f"127.0.0.1:{port},db={0 if who == 'stock' else 1}"
    online = {
        ("stock", "redis"): {"type": "redis", "connection_string": address},
        ("stock", "sqlite"): {"type": "sqlite", "path": "online.db"},
        ("ours", "redis"): {
            "type": f"{ours}packed_redis.PackedRedisOnlineStore",
            "connection_string": address,
        },
        ("ours", "sqlite"): {
            "type": f"{ours}packed_sqlite.PackedSqliteOnlineStore",
            "path": "online.db",
        },
    }[who, where]
    return {
        "project": "bench",
        "provider": "local",
        "registry": {"registry_type": "file", "path": "registry.db"},
        "online_store": online,
        "offline_store": {"type": "duckdb" if who == "stock" else f"{ours}asof.AsofOfflineStore"},
        "materialization": {"online_write_batch_size": 10_000},
        "entity_key_serialization_version": 3,
    }


def apply_views(store: Any, sources: str, who: str) -> None:
    """The four views over the sources under a folder or URI."""
    from feast import Entity, FeatureView, Field, FileSource
    from feast.data_format import ParquetFormat
    from feast.types import Array, Float32, Int32, Int64, String
    from feast.value_type import ValueType

    fields: dict[str, list[Any]] = {
        "track_semantic_ids": [
            *(Field(name=name, dtype=Array(Int32)) for name in SEMANTIC_IDS),
            Field(name=schema.GENERATION, dtype=String),
        ],
        "track_stats": [Field(name=name, dtype=Float32) for name in STATS],
        "user_stats": [Field(name=name, dtype=Float32) for name in STATS],
        schema.USER_SEQUENCE: [
            Field(name=name, dtype=Array(Int64)) for name in schema.SEQUENCE_COLUMNS
        ],
    }
    entities = {
        key: Entity(name=key, join_keys=[key], value_type=ValueType.INT64)
        for key in ("user_id", "track_id")
    }
    views = []
    for name, features in fields.items():
        listens = name == schema.USER_SEQUENCE
        tags = {schema.SEQUENCE_LENGTH_TAG: str(LENGTH)} if listens and who == "ours" else {}
        folder = "snapshots" if listens and who == "stock" else name
        key = f"{name.split('_')[0]}_id"
        source = FileSource(
            name=f"{name}_source",
            path=f"{sources}/{folder}/*.parquet",
            file_format=ParquetFormat(),
            timestamp_field="event_timestamp",
            tags=tags,
        )
        views.append(
            FeatureView(
                name=name,
                entities=[entities[key]],
                schema=[Field(name=key, dtype=Int64), *features],
                source=source,
                tags=tags,
            )
        )
    store.apply([*entities.values(), *views])


def child(who: str, where: str, folder: Path, port: int) -> None:
    """Materializes every view; prints seconds by view and the peak memory, writes some values."""
    from feast import FeatureStore

    from feature_repo.workspace import Workspace
    from ray_jobs.materialize import MaterializeOptions, materialize_views

    (folder / "feature_store.yaml").write_text(yaml.safe_dump(settings(who, where, port)))
    store = FeatureStore(repo_path=str(folder))
    apply_views(store, str(folder / "features"), who)
    seconds, cpu_seconds = {}, {}
    for name in VIEWS:
        begin, cpu_begin = time.perf_counter(), time.process_time()
        if who == "stock":
            first = datetime(1970, 1, 1, tzinfo=UTC)
            store.materialize(first, datetime.now(UTC), feature_views=[name])
        else:
            view = store.get_feature_view(name)
            materialize_views(Workspace(folder), store, [view], MaterializeOptions())
        seconds[name] = time.perf_counter() - begin
        cpu_seconds[name] = time.process_time() - cpu_begin
    values = {}
    for name in VIEWS:
        view = store.get_feature_view(name)
        (key,) = view.join_keys
        references = [f"{name}:{field.name}" for field in view.features]
        read = store.get_online_features(
            features=references, entity_rows=[{key: n} for n in range(COMPARED)]
        )
        values[name] = read.to_dict()
    (folder / "values.json").write_text(json.dumps(values, sort_keys=True))
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    answer = {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_gb": peak_gb}
    print(json.dumps(answer), flush=True)
    os._exit(0)  # DuckDB's binding would print pages about what Feast still holds


def measured(who: str, where: str, sources: Path, port: int) -> tuple[dict[str, Any], str]:
    """One process's answer, and the values that it read back."""
    with tempfile.TemporaryDirectory(prefix="materialize-") as name:
        folder = Path(name)
        (folder / "features").symlink_to(sources, target_is_directory=True)
        arguments = ["--child", who, where, str(folder), str(port)]
        ended = subprocess.run(
            [sys.executable, __file__, *arguments], capture_output=True, text=True
        )
        if ended.returncode:
            sys.exit(f"{who} on {where} failed:\n{ended.stderr[-4000:]}")
        answer = json.loads(ended.stdout.splitlines()[-1])
        return answer, (folder / "values.json").read_text()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20,000 tracks and users, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        who, where, folder, port = options.child
        child(who, where, Path(folder), int(port))
    tracks, users = (QUICK_TRACKS, QUICK_USERS) if options.quick else (TRACKS, USERS)
    rounds = 1 if options.quick else options.rounds
    entities = {name: tracks if name.startswith("track") else users for name in VIEWS}
    answers: dict[tuple[str, str], list[dict[str, Any]]] = {}
    identical = True
    with tempfile.TemporaryDirectory(prefix="sources-") as name:
        write_sources(Path(name), tracks, users)
        for _ in range(rounds):
            for where in ("redis", "sqlite"):
                # A fresh server each time: the second of two must not update the first's rows.
                with redis_server() as port:
                    read = []
                    for who in ("stock", "ours"):
                        answer, values = measured(who, where, Path(name), port)
                        answers.setdefault((who, where), []).append(answer)
                        read.append(values)
                identical &= read[0] == read[1]
    show(answers, entities, identical)


def show(
    answers: dict[tuple[str, str], list[dict[str, Any]]], entities: dict[str, int], identical: bool
) -> None:
    """Medians over the rounds, as a table and as JSON. CPU: of the process, without Redis's."""
    from rich.console import Console
    from rich.table import Table

    def median(who: str, where: str, measure: str, view: str) -> float:
        return statistics.median(answer[measure][view] for answer in answers[who, where])

    machine = f"{processor()}; {versions('feast', 'duckdb', 'redis')}"
    table = Table(title="materialize, rows/s", caption=machine)
    for column in ("store", "view", "rows", "stock", "ours", "ratio", "ratio of CPU time"):
        table.add_column(column, justify="right")
    result: dict[str, Any] = {}
    for where in ("redis", "sqlite"):
        for name in VIEWS:
            stock = entities[name] / median("stock", where, "seconds", name)
            ours = entities[name] / median("ours", where, "seconds", name)
            cpu = median("stock", where, "cpu_seconds", name)
            cpu /= median("ours", where, "cpu_seconds", name)
            result[f"{where}_{name}"] = {
                "stock_rows_s": round(stock),
                "ours_rows_s": round(ours),
                "ratio": round(ours / stock, 2),
                "cpu_ratio": round(cpu, 2),
            }
            cells = (f"{stock:,.0f}", f"{ours:,.0f}", f"{ours / stock:.1f}", f"{cpu:.1f}")
            table.add_row(where, name, f"{entities[name]:,}", *cells)
        for who in ("stock", "ours"):
            peak_gb = max(answer["peak_gb"] for answer in answers[who, where])
            result[f"{where}_{who}_peak_gb"] = round(peak_gb, 2)
    Console(width=100).print(table)
    result |= {"identical": identical, "machine": machine}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
