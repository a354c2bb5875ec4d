"""A workspace in which a few users have left rows in every place that holds any.

The source's user ids are strings, so the tables number them: ada 1, bob 2, cleo 3, dora 4.
"""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureView, Field, FileSource
from feast.types import Array, Int64
from feast.value_type import ValueType

from feature_repo import event_journal, schema
from feature_repo.artifacts import Manifest, write_artifact
from feature_repo.store import apply, open_store
from feature_repo.workspace import Workspace
from ray_jobs.contract import SourceTables, write_contract_tables
from ray_jobs.sequences import events_id

USERS = ("ada", "bob", "cleo", "dora")
TRACKS = 12
EVENTS = 240
LENGTH = 5
START = datetime(2026, 1, 1, tzinfo=UTC)
NEWEST = "ts-bbbbbbbbbbbb"
PACKED = "feature_repo.stores.packed_sqlite.PackedSqliteOnlineStore"
LIST = pa.list_(pa.int64())


def settings(online: str) -> str:
    return (
        "project: forget\nprovider: local\n"
        "registry: {registry_type: file, path: registry.db}\n"
        f"online_store: {online}\n"
        "offline_store: {type: duckdb}\nentity_key_serialization_version: 3\n"
    )


def source_events(count: int = EVENTS, seed: int = 0) -> pa.Table:
    random = np.random.default_rng(seed)
    moments = [START + timedelta(minutes=int(m)) for m in random.integers(0, 9000, count)]
    tracks = [f"t{n:02d}" for n in random.integers(1, TRACKS + 1, count)]
    for bad in range(0, count, 20):
        tracks[bad] = "unknown"  # rejected: of every user some
    return pa.table(
        {
            "event_id": pa.array([None] * count, pa.int64()),
            "user_id": [USERS[n] for n in random.integers(0, len(USERS), count)],
            "track_id": tracks,
            "event_timestamp": pa.array(moments, schema.TIMESTAMP),
            "action": random.choice(schema.ACTIONS, count).tolist(),
        }
    )


def ingest(workspace: Workspace, events: pa.Table | None = None) -> None:
    tracks = pa.table(
        {
            "track_id": [f"t{n:02d}" for n in range(1, TRACKS + 1)],
            "title": [f"track {n}" for n in range(1, TRACKS + 1)],
        }
    )
    sources = SourceTables(tracks=tracks, events=source_events() if events is None else events)
    write_contract_tables(workspace, sources, source="table", max_rejected_share=0.5)


def live_events(first_id: int, users: list[int], minute: int) -> pa.Table:
    rows = [
        {
            "event_id": first_id + n,
            "user_id": user,
            "track_id": n % TRACKS + 1,
            "event_timestamp": START + timedelta(minutes=minute + n),
            "action": "complete",
            "played_ratio": None,
            "session_id": None,
        }
        for n, user in enumerate(users)
    ]
    fields = [field for field in schema.EVENTS if field.name != "ingested_at"]
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))


def log_table(workspace: Workspace) -> pa.Table:
    return pq.read_table(sorted(workspace.events.glob("*.parquet")), schema=schema.EVENTS)


def write_sources(workspace: Workspace) -> None:
    """The listen log and the counts, in the sources' layout; stats are made up."""
    rows = [
        {
            "user_id": event["user_id"],
            "event_timestamp": max(
                event["event_timestamp"], event["ingested_at"] or event["event_timestamp"]
            )
            + timedelta(microseconds=1),
            "listened_at": event["event_timestamp"],
            "event_id": event["event_id"],
            "track_id": event["track_id"],
            "action": schema.ACTION_CODES[event["action"]],
        }
        for event in log_table(workspace).to_pylist()
        if event["action"] in schema.LISTEN_ACTIONS
    ]
    log = pa.Table.from_pylist(rows, schema=schema.EVENT_LOG)
    log = log.sort_by([("user_id", "ascending"), ("event_timestamp", "ascending")])
    parents = {"events": events_id(workspace)}
    manifest = Manifest(
        kind="feature_source",
        id=schema.USER_SEQUENCE,
        parents=parents,
        options={"length": LENGTH},
        rows={"users": len(USERS), "rows": len(log)},
    )
    with write_artifact(workspace.feature_source(schema.USER_SEQUENCE), manifest) as partial:
        odd = pa.array(log["user_id"].to_numpy() % 2 == 1)
        pq.write_table(log.filter(odd), partial / "part-0.parquet", row_group_size=20)
        pq.write_table(log.filter(pa.compute.invert(odd)), partial / "part-1.parquet")
    for view, key, count in (
        (schema.USER_STATS, "user_id", len(USERS)),
        (schema.TRACK_STATS, "track_id", TRACKS),
    ):
        stats = pa.table(
            {
                key: np.repeat(np.arange(1, count + 1), 3),
                "event_timestamp": pa.array(
                    [START + timedelta(days=n % 3) for n in range(3 * count)], schema.TIMESTAMP
                ),
                f"{key[:-3]}_plays_7d": np.arange(3 * count),
            }
        )
        manifest = Manifest(
            kind="feature_source", id=view, parents=parents, rows={"rows": len(stats)}
        )
        with write_artifact(workspace.feature_source(view), manifest) as partial:
            pq.write_table(stats, partial / "part-0.parquet", compression="zstd")


def write_training_set(workspace: Workspace, training_set_id: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    log = log_table(workspace)
    order = random.permutation(len(log))
    lists = [random.integers(1, TRACKS + 1, 3).tolist() for _ in order]
    rows = log.take(order).select(["event_id", "user_id", "track_id", "event_timestamp"])
    rows = rows.append_column(schema.SEQUENCE_TRACK_IDS, pa.array(lists, LIST))
    manifest = Manifest(kind="training_set", id=training_set_id)
    with write_artifact(workspace.training_sets / training_set_id, manifest) as partial:
        cuts = [0, 60, 120, 150, len(rows)]
        names = ["train-00000", "train-00001", "validation", "test"]
        for name, start, end in zip(names, cuts, cuts[1:], strict=False):
            part = rows.slice(start, end - start)
            pq.write_table(part, partial / f"{name}.parquet", row_group_size=16)
            kind = name.split("-")[0]
            manifest.rows[kind] = manifest.rows.get(kind, 0) + len(part)
        (partial / "items.safetensors").write_bytes(b"weights")


def write_others(workspace: Workspace) -> None:
    """Test scores, served reads, the demo's truth, a run log and two reports."""
    log = log_table(workspace)
    manifest = Manifest(kind="model", id="model-a")
    with write_artifact(workspace.models / "model-a", manifest) as partial:
        scores = log.select(["event_id", "user_id"]).append_column("score", [np.ones(len(log))])
        pq.write_table(scores, partial / "test_scores.parquet")
        (partial / "model.safetensors").write_bytes(b"weights")
    reads = workspace.root / "served_reads" / schema.USER_SEQUENCE
    reads.mkdir(parents=True)
    served = log.select(["user_id", "event_timestamp"]).append_column(
        schema.SEQUENCE_EVENT_IDS, pa.array([[event] for event in log["event_id"].to_pylist()])
    )
    pq.write_table(served, reads / "1-aaaaaaaa-0.parquet")
    truth = workspace.demo_world / "truth"
    truth.mkdir(parents=True)
    ids = log["event_id"]
    pq.write_table(
        pa.table({"event_id": ids, "p": [np.ones(len(ids))[0]] * len(ids)}),
        truth / "events.parquet",
    )
    pq.write_table(
        pa.table({"user_id": [1, 1, 2, 3, 4], "bias": [0.1, 0.2, 0.3, 0.4, 0.5]}),
        truth / "listeners.parquet",
    )
    workspace.reports.mkdir()
    (workspace.reports / "report.html").write_text("<p>users: 4, 1 of them new</p>")
    (workspace.reports / "one_user.html").write_text("<p>user_id=1 listens to track 3</p>")
    runs = workspace.root / "runs"
    runs.mkdir()
    lines = [json.dumps({"job": "rank", "user_id": user}) for user in (1, 2, 11, 1)]
    (runs / "2026-01.jsonl").write_text("\n".join(lines) + "\n")


def views(workspace: Workspace) -> list:
    user = Entity(name="user_id", join_keys=["user_id"], value_type=ValueType.INT64)

    def view(name: str, fields: dict, **tags: str) -> FeatureView:
        return FeatureView(
            name=name,
            entities=[user],
            schema=[Field(name="user_id", dtype=Int64)]
            + [Field(name=field, dtype=kind) for field, kind in fields.items()],
            source=FileSource(
                name=f"{name}_source",
                path=f"{workspace.root.absolute()}/features/{name}/*.parquet",
                timestamp_field="event_timestamp",
            ),
            tags=tags,
        )

    sequence = {name: Array(Int64) for name in schema.SEQUENCE_COLUMNS}
    return [
        user,
        view(schema.USER_SEQUENCE, sequence, **{schema.SEQUENCE_LENGTH_TAG: str(LENGTH)}),
        view(schema.USER_STATS, {"user_plays_7d": Int64}),
    ]


def windows(events: list[dict], length: int = LENGTH) -> dict[int, list[dict]]:
    """Brute force: the newest listens of each user by (time, event id), each event once."""
    found: dict[int, dict[int, dict]] = {}
    for event in events:
        if event["action"] in schema.LISTEN_ACTIONS:
            found.setdefault(event["user_id"], {}).setdefault(event["event_id"], event)
    return {
        user: sorted(mine.values(), key=lambda e: (e["event_timestamp"], e["event_id"]))[-length:]
        for user, mine in found.items()
    }


def all_events(workspace: Workspace) -> list[dict]:
    journal = event_journal.since(workspace, datetime(1970, 1, 1, tzinfo=UTC))
    return [*log_table(workspace).to_pylist(), *journal.to_pylist()]


def write_online(workspace: Workspace) -> None:
    """What `publish` and pushes leave online."""
    store = open_store(workspace)
    entity, sequence, stats = views(workspace)
    apply(store, [entity, sequence, stats])
    online = store._get_provider().online_store
    rows = [
        {
            "user_id": user,
            "event_timestamp": max(
                max(e["event_timestamp"], e["ingested_at"] or START) for e in listens
            )
            + timedelta(microseconds=1),
            schema.SEQUENCE_TRACK_IDS: [e["track_id"] for e in listens],
            schema.SEQUENCE_TIMESTAMPS: [
                (e["event_timestamp"] - datetime(1970, 1, 1, tzinfo=UTC))
                // timedelta(microseconds=1)
                for e in listens
            ],
            schema.SEQUENCE_ACTIONS: [schema.ACTION_CODES[e["action"]] for e in listens],
            schema.SEQUENCE_EVENT_IDS: [e["event_id"] for e in listens],
        }
        for user, listens in sorted(windows(all_events(workspace)).items())
    ]
    frame = pa.Table.from_pylist(rows)
    frame = frame.set_column(1, "event_timestamp", frame["event_timestamp"].cast(schema.TIMESTAMP))
    counts = pa.table(
        {
            "user_id": [1, 2, 3, 4],
            "event_timestamp": pa.array([START] * 4, schema.TIMESTAMP),
            "user_plays_7d": [10, 20, 30, 40],
        }
    )
    for view, table in ((sequence, frame), (stats, counts)):
        if hasattr(online, "write_table"):
            online.write_table(store.config, store.get_feature_view(view.name), table)
        else:
            store.write_to_online_store(view.name, table.to_pandas())


def build(root: Path, online: str = f"{{type: {PACKED}, path: online.db}}") -> Workspace:
    """The whole world; `online` is the online_store of its feature_store.yaml."""
    workspace = Workspace(root)
    root.mkdir(exist_ok=True)
    ingest(workspace)
    event_journal.append(workspace, live_events(10_000, [1, 2, 3, 4, 1], 9100))
    event_journal.fold(workspace)
    event_journal.append(workspace, live_events(20_000, [2, 1, 1, 4], 9200))
    write_sources(workspace)
    write_training_set(workspace, "ts-aaaaaaaaaaaa", 1)
    write_training_set(workspace, NEWEST, 2)
    write_others(workspace)
    (root / "feature_store.yaml").write_text(settings(online))
    write_online(workspace)
    return workspace
