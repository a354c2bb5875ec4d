"""Forgetting a user and single events: nothing is left anywhere, and others keep every value."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo import schema
from feature_repo.artifacts import file_sha256, newest, read_manifest
from feature_repo.tombstones import read_tombstones
from feature_repo.workspace import Workspace
from ray_jobs.forget import ForgetOptions, forget
from ray_jobs.sequences import events_id
from tests.ray_jobs.forget_checks import (
    ADA,
    BOB,
    events_of,
    manifests_are_whole,
    online_rows,
    rows_of_others,
    tables,
)
from tests.ray_jobs.forget_world import (
    NEWEST,
    all_events,
    windows,
)


def test_a_user_is_gone_from_every_store(ada_forgotten):
    answer, world = ada_forgotten.answer, ada_forgotten.after
    wanted = {"demo_world", "features", "journal", "models", "online", "reports", "runs"}
    assert set(answer["stores"]) == wanted | {"served_reads", "tables", "training_sets"}
    assert all(store["removed"] > 0 == store["found"] for store in answer["stores"].values())
    assert answer["not_searched"] == {".safetensors": 3}
    assert answer["sources_elsewhere"] == [
        f"{ada_forgotten.before.root}/features/{view}/*.parquet"
        for view in (schema.USER_SEQUENCE, schema.USER_STATS)
    ]
    assert ADA not in [event["user_id"] for event in all_events(world)]
    assert not (world.reports / "one_user.html").exists()
    assert (world.reports / "report.html").exists()
    kept = [json.loads(line)["user_id"] for line in (world.root / "runs/2026-01.jsonl").open()]
    assert kept == [2, 11]
    manifests_are_whole(world)


def test_others_keep_every_value_in_order(ada_forgotten):
    events = events_of(ada_forgotten.before, ADA)
    before = rows_of_others(ada_forgotten.before, ADA, "ada", events)
    after = {}
    for name, table in tables(ada_forgotten.after):
        rows = table.to_pylist()
        if "id_maps/users" in name:  # the number stays taken
            assert {"source_id": None, "id": ADA} in rows
            rows = [row for row in rows if row["id"] != ADA]
        after[name] = (table.schema, rows)
    assert after == before
    online, now = online_rows(ada_forgotten.before), online_rows(ada_forgotten.after)
    assert online["user_plays_7d"] == [10, 20, 30, 40, None]
    for name, values in online.items():
        assert now[name] == [None, *values[1:]] or name == "user_id"


def test_the_online_file_keeps_no_byte_of_the_users_rows(ada_forgotten):
    """Not in free pages either, where deleted rows stay until they are overwritten."""

    def files(workspace: Workspace) -> bytes:
        return b"".join(path.read_bytes() for path in sorted(workspace.root.glob("online.db*")))

    def row(user: int) -> bytes:
        with closing(sqlite3.connect(ada_forgotten.before.root / "online.db")) as connection:
            sql = f"SELECT value FROM packed_forget_{schema.USER_SEQUENCE} WHERE entity = ?"
            return connection.execute(sql, (user,)).fetchone()[0]

    for user in (ADA, BOB):
        assert row(user) in files(ada_forgotten.before)
    assert row(ADA) not in files(ada_forgotten.after)
    assert row(BOB) in files(ada_forgotten.after)


def test_manifests_say_what_the_artifacts_hold_and_keep_id_and_age(ada_forgotten):
    before, world = ada_forgotten.before, ada_forgotten.after

    def manifest(folder: Path, kind: str, made_by: str = "train"):
        return read_manifest(folder, kind=kind, made_by=made_by)

    sets = world.training_sets
    first = {p.name: manifest(p, "training_set") for p in before.training_sets.iterdir()}
    tables_before = manifest(before.tracks.parent, "tables", "ingest")
    for name, old in first.items():
        new = manifest(sets / name, "training_set")
        assert (new.id, new.created_at) == (old.id, old.created_at)
        for part in ("train", "validation", "test"):
            files = sorted((sets / name).glob(f"{part}*.parquet"))
            assert new.rows[part] == sum(pq.read_metadata(file).num_rows for file in files)
        assert new.info["forgotten_rows"] == sum(old.rows.values()) - sum(new.rows.values())
        assert new.files["items.safetensors"] == old.files["items.safetensors"]
    assert newest(sets, kind="training_set", made_by="train").id == NEWEST
    new = manifest(world.tracks.parent, "tables", "ingest")
    log = pq.read_table(sorted(world.events.glob("*.parquet")))
    rejected = pq.read_table(world.rejected / "events.parquet")
    assert new.created_at == tables_before.created_at
    assert new.rows["events"] == len(log)
    assert new.rows["users"] == pc.count_distinct(log["user_id"]).as_py() == 3
    assert new.rows["rejected"] == len(rejected)
    assert new.info["rejected_by_reason"]["events"] == {"unknown_track": len(rejected)}
    live = pq.read_table(sorted(world.events.glob("live-*.parquet")))
    assert new.info["live_events"] == len(live) == 3
    assert new.info["rows_in"]["events"] == len(log) - len(live) + len(rejected)


def test_sources_of_users_stay_the_log_of_the_tables_and_those_of_tracks_do_not(ada_forgotten):
    world, old = ada_forgotten.after, events_id(ada_forgotten.before)
    assert events_id(world) != old

    def parent(view: str) -> str:
        folder = world.feature_source(view)
        return read_manifest(folder, kind="feature_source", made_by="sequences").parents["events"]

    assert parent(schema.USER_SEQUENCE) == parent(schema.USER_STATS) == events_id(world)
    assert parent(schema.TRACK_STATS) == old


def test_files_keep_their_form_and_without_a_row_of_the_user_every_byte(ada_forgotten):
    before, world = ada_forgotten.before, ada_forgotten.after
    log = world.feature_source(schema.USER_SEQUENCE)
    for path in (
        log / "part-1.parquet",  # users 2 and 4
        world.tracks / "part-00000.parquet",
        world.id_maps / "tracks.parquet",
        world.feature_source(schema.TRACK_STATS) / "part-0.parquet",
    ):
        old = before.root / path.relative_to(world.root)
        assert file_sha256(path) == file_sha256(old)
    groups = pq.read_metadata(log / "part-0.parquet")
    assert groups.num_row_groups > 1
    assert groups.row_group(0).num_rows <= 20
    stats = pq.read_metadata(world.feature_source(schema.USER_STATS) / "part-0.parquet")
    assert stats.row_group(0).column(0).compression == "ZSTD"


def test_single_events_go_and_an_older_listen_enters_the_window(world):
    listens = windows(all_events(world))
    gone = [listens[ADA][-1]["event_id"], listens[BOB][0]["event_id"]]
    others = {event["event_id"] for event in all_events(world)} - set(gone)
    answer = forget(world, ForgetOptions(event_ids=tuple(gone)))
    assert all(store["found"] == 0 for store in answer["stores"].values())
    assert {event["event_id"] for event in all_events(world)} == others
    expected = windows(all_events(world))
    now = online_rows(world)
    for user in (1, 2, 3, 4):
        got = now[schema.SEQUENCE_EVENT_IDS][user - 1]
        assert got == [event["event_id"] for event in expected[user]]
        assert len(got) == 5
    assert now["user_plays_7d"][:4] == [10, 20, 30, 40]
    assert answer["recount"] == [schema.TRACK_STATS, schema.USER_STATS]
    stones = read_tombstones(world)
    assert stones.hidden(np.array([9]), np.array(gone[:1]), np.array([2**60])).all()
    manifests_are_whole(world)


def test_training_rows_that_saw_a_forgotten_event_go(world):
    event = windows(all_events(world))[BOB][1]
    test = world.training_sets / NEWEST
    before = pq.read_table(sorted(test.glob("*.parquet"))).to_pylist()
    forget(world, ForgetOptions(event_ids=(event["event_id"],)))
    arrived = max(event["event_timestamp"], event["ingested_at"] or event["event_timestamp"])
    expected = [
        row
        for row in before
        if row["event_id"] != event["event_id"]
        and not (
            row["user_id"] == BOB
            and row["event_timestamp"] >= arrived
            and event["track_id"] in row[schema.SEQUENCE_TRACK_IDS]
        )
    ]
    assert len(expected) < len(before)
    assert pq.read_table(sorted(test.glob("*.parquet"))).to_pylist() == expected
