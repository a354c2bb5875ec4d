"""Forgetting over other stores, beside other runs, and after kills."""

import shutil
import subprocess
import sys
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from feature_repo import event_journal
from feature_repo.artifacts import file_sha256
from feature_repo.errors import ArtifactError, InputError
from feature_repo.scratch import only_writer, scratch_folder
from feature_repo.workspace import Workspace
from ray_jobs.forget import ForgetOptions, forget
from ray_jobs.forget_plan import Plan, one_at_a_time
from tests.ray_jobs.forget_checks import ADA, BOB, online_rows
from tests.ray_jobs.forget_world import (
    NEWEST,
    all_events,
    build,
    ingest,
    live_events,
    settings,
)


def test_a_store_that_cannot_delete_a_user_is_refused_before_anything_changes(world):
    (world.root / "feature_store.yaml").write_text(
        settings("{type: tests.ray_jobs.odd_store.OddOnlineStore}")
    )
    before = {path: file_sha256(path) for path in world.root.rglob("*.parquet")}
    with pytest.raises(InputError, match=r"online_store is OddOnlineStore.*cannot be deleted"):
        forget(world, ForgetOptions(user="ada"))
    assert {path: file_sha256(path) for path in world.root.rglob("*.parquet")} == before


def test_stock_sqlite_forgets_a_user_and_refuses_events(tmp_path):
    workspace = build(tmp_path / "workspace", "{type: sqlite, path: online.db}")
    before = online_rows(workspace)
    with pytest.raises(InputError, match=r"whose rows are not packed"):
        forget(workspace, ForgetOptions(event_ids=(3,)))
    key = EntityKey(join_keys=["user_id"], entity_values=[Value(int64_val=ADA)])
    key_bytes = serialize_entity_key(key, 3)
    assert key_bytes in (workspace.root / "online.db").read_bytes()
    forget(workspace, ForgetOptions(user="ada"))
    assert key_bytes not in (workspace.root / "online.db").read_bytes()
    after = online_rows(workspace)
    for name, values in before.items():
        assert after[name] == [None, *values[1:]] or name == "user_id"


@pytest.mark.redis
@pytest.mark.parametrize(
    "kind", ["redis", "feature_repo.stores.packed_redis.PackedRedisOnlineStore"]
)
def test_redis_forgets_a_user(tmp_path, redis_server, kind):
    workspace = build(
        tmp_path / "workspace", f'{{type: {kind}, connection_string: "{redis_server}"}}'
    )
    before = online_rows(workspace)
    assert before["user_plays_7d"][:4] == [10, 20, 30, 40]
    answer = forget(workspace, ForgetOptions(user="ada"))
    assert answer["stores"]["online"] == {"removed": 2, "found": 0}
    after = online_rows(workspace)
    for name, values in before.items():
        assert after[name][1:] == values[1:]
    assert not after["user_plays_7d"][0]


def test_a_workspace_without_a_feature_store_forgets_too(tmp_path):
    workspace = Workspace(tmp_path)
    ingest(workspace)
    event_journal.append(workspace, live_events(10_000, [1, 2], 9100))
    answer = forget(workspace, ForgetOptions(user="ada"))
    assert set(answer["stores"]) == {"journal", "tables"}
    assert ADA not in [event["user_id"] for event in all_events(workspace)]
    assert not (workspace.root / "feature_store.yaml").exists()


def test_only_one_forgets_at_a_time_and_none_while_rows_go_online(world):
    materialization = world.root / "materialization"
    materialization.mkdir()
    for held in (one_at_a_time(world), only_writer(materialization)):
        with held, pytest.raises(InputError, match="another run is writing"):
            forget(world, ForgetOptions(user="ada"))


def test_a_live_runs_working_folder_stops_it_and_a_dead_ones_is_removed(world):
    source = world.training_sets / NEWEST / "test.parquet"
    dead = world.training_sets / ".ts-dead.x"
    dead.mkdir()
    shutil.copy(source, dead)
    with scratch_folder(world.training_sets, ".ts-live.") as live:
        shutil.copy(source, live)
        with pytest.raises(InputError, match=r"another run is writing .*ts-live"):
            forget(world, ForgetOptions(user="ada"))
    forget(world, ForgetOptions(user="ada"))
    assert not dead.exists()


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(world):
    (world.root / "odd.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ArtifactError, match=r"odd.parquet cannot be read.*remove it"):
        forget(world, ForgetOptions(user="ada"))


def test_what_is_written_meanwhile_is_found_by_the_next_pass(world, monkeypatch):
    """A server's read log lands between the search and its proof."""
    from ray_jobs import forget as job

    late = world.root / "served_reads" / "user_stats" / "late.parquet"
    remove = job.remove

    def and_a_late_row(*arguments):
        remove(*arguments)
        if not late.parent.exists():
            late.parent.mkdir()
            pq.write_table(pa.table({"user_id": [ADA, BOB]}), late)

    monkeypatch.setattr(job, "remove", and_a_late_row)
    forget(world, ForgetOptions(user="ada"))
    assert pq.read_table(late)["user_id"].to_pylist() == [BOB]


def test_a_run_that_was_cut_off_is_finished_by_the_next_one_whatever_it_is_for(world):
    plan = Plan(user_id=ADA, source_id="ada", until_us=2**60, event_ids=[])
    plan.save(world)
    answer = forget(world, ForgetOptions(user="bob"))
    assert answer["rows"] > 0
    left = {event["user_id"] for event in all_events(world)}
    assert left == {3, 4}
    assert not (world.root / "forgotten" / "plan.json").exists()
    plan = replace(plan, user_id=3, source_id="cleo")
    plan.save(world)
    answer = forget(world, ForgetOptions(user="cleo"))
    assert answer["stores"]["online"]["removed"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("what", ["user", "event"])
def test_killed_anywhere_the_next_run_ends_in_the_same_state(tmp_path, what):
    command = [sys.executable, "-m", "tests.ray_jobs.killed_forget", what, str(tmp_path), "8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    kills, steps = map(int, done.stdout.split()[-2:])
    assert kills == 8
    assert steps > 50
