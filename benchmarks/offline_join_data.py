"""Random data for `offline_joins.py`: impressions, an event log, ten numbers a user, snapshots."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from feature_repo import schema
from feature_repo.parquet_form import parquet_settings
from feature_repo.stores.event_windows import EventWindows

EVENTS_PER_USER = 100
SPAN_US = 60 * 86_400 * 10**6
START_US = 1_700_000_000 * 10**6
SCALARS = tuple(f"number_{n}" for n in range(10))
SNAPSHOTS, NUMBERS = "user_snapshots", "user_numbers"
STORES = {"ours": "feature_repo.stores.asof.AsofOfflineStore", "stock": "duckdb"}


def write_data(
    folder: Path, impressions: int, events: int, length: int, *, snapshots: bool
) -> None:
    """Impressions, event log, numbers, settings; snapshots for stock. What is there stays."""
    if not (folder / "length").exists():
        random = np.random.default_rng(events)
        users = events // EVENTS_PER_USER
        for name in (schema.USER_SEQUENCE, NUMBERS, SNAPSHOTS):
            (folder / name).mkdir(parents=True)
        for name, store_type in STORES.items():
            settings = store_settings(folder, name, store_type)
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))
        write_log(random, folder / schema.USER_SEQUENCE, events, users)
        moments = START_US + np.sort(random.integers(0, SPAN_US, events))
        numbers = {name: random.integers(0, 1000, events) for name in SCALARS}
        pq.write_table(
            pa.table(
                {
                    schema.USER_ID: random.integers(0, users, events),
                    schema.EVENT_TIMESTAMP: pa.array(moments, type=schema.TIMESTAMP),
                    **numbers,
                }
            ),
            folder / NUMBERS / "part-0.parquet",
        )
        asked = START_US + np.sort(random.integers(0, SPAN_US, impressions))
        columns = {
            "impression": np.arange(impressions),
            schema.USER_ID: random.integers(0, users + users // 50 + 1, impressions),
            schema.EVENT_TIMESTAMP: pa.array(asked, type=schema.TIMESTAMP),
        }
        pq.write_table(pa.table(columns), folder / "impressions.parquet")
        (folder / "length").write_text(str(length))
    if snapshots and not (folder / SNAPSHOTS / "part-0.parquet").exists():
        write_snapshots(folder, length)


def write_snapshots(folder: Path, length: int) -> None:
    """What stock needs as a source: the lists after every event."""
    log = pq.read_table(folder / schema.USER_SEQUENCE)
    log = log.sort_by([(name, "ascending") for name in (schema.USER_ID, "listened_at", "event_id")])
    columns = {name: log[name].cast(pa.int64()).to_numpy() for name in log.column_names}
    user, seen = columns[schema.USER_ID], columns[schema.EVENT_TIMESTAMP]
    index = EventWindows(user, columns["listened_at"], seen)
    lists = (schema.TRACK_ID, "listened_at", "action", "event_id")
    fields = [pa.field(name, pa.list_(pa.int64())) for name in schema.SEQUENCE_COLUMNS]
    kinds = pa.schema([(schema.USER_ID, pa.int64()), (schema.EVENT_TIMESTAMP, schema.TIMESTAMP)])
    kinds = pa.schema([*kinds, *fields])
    moments = np.unique(np.stack([user, seen]), axis=1)
    path = folder / SNAPSHOTS / "part-0.parquet"
    with pq.ParquetWriter(path, kinds, **parquet_settings(kinds)) as writer:
        for start in range(0, moments.shape[1], 20_000):
            users, times = moments[:, start : start + 20_000]
            windows = index.last(users, times, length)
            offsets = pa.array(windows.offsets_Q1, type=pa.int32())
            values = [columns[name][windows.rows_W] for name in lists]
            arrays = [pa.ListArray.from_arrays(offsets, pa.array(each)) for each in values]
            stamps = pa.array(times, type=schema.TIMESTAMP)
            writer.write_table(pa.table([pa.array(users), stamps, *arrays], schema=kinds))


def store_settings(folder: Path, name: str, store_type: str) -> dict[str, Any]:
    return {
        "project": "music",
        "provider": "local",
        "registry": str(folder / f"registry-{name}.db"),
        "online_store": {"type": "sqlite", "path": str(folder / "online.db")},
        "offline_store": {"type": store_type},
        "entity_key_serialization_version": 3,
    }


def write_log(random: np.random.Generator, folder: Path, events: int, users: int) -> None:
    """An event log in four files, users spread over them."""
    user = random.integers(0, users, events)
    listened = START_US + random.integers(0, SPAN_US, events)
    late = random.integers(1, 86_400 * 10**6, events) * (random.random(events) < 0.02)
    visible = listened + late + 1
    columns = (user, visible, listened, random.permutation(events))
    tracks = (100_000 * random.power(0.5, events)).astype(np.int64)
    order = np.lexsort((visible, user))
    arrays = [column[order] for column in (*columns, tracks, random.integers(1, 4, events))]
    cast = [pa.array(a, type=f.type) for a, f in zip(arrays, schema.EVENT_LOG, strict=True)]
    table = pa.table(cast, schema=schema.EVENT_LOG)
    for part in range(4):
        mine = table.filter(pa.array(arrays[0] % 4 == part))
        form = parquet_settings(mine.schema)  # as `crescendo sequences` writes a log
        pq.write_table(mine, folder / f"part-{part}.parquet", row_group_size=131_072, **form)
