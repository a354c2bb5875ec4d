"""Real faults under whole commands: a full disk, damaged files, servers killed and started again.

What the stores do alone is tested beside them (`stores/test_packed_faults.py`,
`stores/test_asof_files.py`, `test_registry_postgres.py`). Here `sequences` and `publish` meet the
fault: the error names the file or server and the command that helps, nothing that was published is
lost, and the same command ends well once the fault is gone.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from feature_repo import schema
from feature_repo.errors import ArtifactError, InputError
from feature_repo.offline import point_in_time
from feature_repo.published_stores import set_stores
from feature_repo.store import open_store, read_online
from feature_repo.working_copy import working_copy
from feature_repo.workspace import Workspace
from ray_jobs.publish import publish
from ray_jobs.sequences import SequenceOptions, sequences
from tests.event_logs import START, event, write_events
from tests.generations import write_generation
from tests.servers_sql_s3 import PASSWORD, free_port

GENERATION = "gen-dddddddddddd"
USERS, TRACKS = 300, 20
FEATURE = f"{schema.USER_SEQUENCE}:{schema.SEQUENCE_TRACK_IDS}"
DISK_BYTES = 64 * 1024
"""More than any file of these workspaces but the online store's."""
LIMITED = """
import json, resource, sys
from pathlib import Path
from feature_repo.workspace import Workspace
from ray_jobs.publish import publish
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    publish(Workspace(Path(sys.argv[1])))
    print(json.dumps(None))
except Exception as error:
    print(json.dumps(f"{type(error).__name__}: {error}"))
"""
"""Publishes in a process whose files cannot grow beyond a limit: a full disk, as SQLite sees it."""


def log_of(rounds: int) -> list[dict]:
    """Every user listens once a round; user u to track (u + round) modulo TRACKS, from 1 on."""
    return [
        event(number * USERS + user, user, (user + number) % TRACKS + 1, 60.0 * number)
        for number in range(rounds)
        for user in range(1, USERS + 1)
    ]


def expected(user: int, rounds: int) -> list[int]:
    return [(user + number) % TRACKS + 1 for number in range(rounds)]


def online(workspace: Workspace) -> list[list[int] | None]:
    """What users 1.. have online."""
    users = list(range(1, USERS + 1))
    return read_online(open_store(workspace), "user_id", users, [FEATURE])[
        schema.SEQUENCE_TRACK_IDS
    ]


def whole(rounds: int) -> list[list[int]]:
    return [expected(user, rounds) for user in range(1, USERS + 1)]


def make_sources(workspace: Workspace, rounds: int) -> None:
    write_events(workspace, log_of(rounds))
    if not workspace.generations.exists():
        write_generation(workspace, GENERATION, TRACKS)
    sequences(workspace, SequenceOptions(length=10))


@pytest.fixture
def published(tmp_path) -> Workspace:
    """A workspace with two rounds of listens online."""
    workspace = Workspace(tmp_path / "workspace")
    make_sources(workspace, 2)
    publish(workspace)
    assert online(workspace) == whole(2)
    return workspace


def test_a_full_disk_while_publishing_loses_nothing(published):
    make_sources(published, 9)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(published.root), str(DISK_BYTES)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    error = json.loads(done.stdout.splitlines()[-1])
    assert error is not None, "the disk was not full"
    assert "online.db" in error
    before, now, after = whole(2), online(published), whole(9)
    assert all(row in (old, new) for row, old, new in zip(now, before, after, strict=True))
    publish(published)
    assert online(published) == after


def damage(path: Path) -> None:
    """A block of zeros in the middle, as after a bad disk; the size stays."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle - 200 : middle + 200] = bytes(400)
    path.write_bytes(data)


@pytest.mark.parametrize("view", [schema.USER_SEQUENCE, schema.USER_STATS])
def test_a_damaged_source_is_named_before_anything_is_written(published, view):
    make_sources(published, 3)
    victim = sorted(published.feature_source(view).glob("*.parquet"))[0]
    damage(victim)
    with pytest.raises(ArtifactError, match=rf"{view}.*{victim.name} was changed.*sequences`"):
        publish(published)
    assert online(published) == whole(2)
    sequences(published, SequenceOptions(length=10))
    publish(published)
    assert online(published) == whole(3)


def test_a_damaged_source_stops_a_training_set(published):
    victim = sorted(published.feature_source(schema.USER_SEQUENCE).glob("*.parquet"))[0]
    victim.write_bytes(victim.read_bytes()[:-100])
    rows = pd.DataFrame({"user_id": [1], "event_timestamp": [START + pd.Timedelta(days=1)]})
    with pytest.raises(ArtifactError, match=rf"{victim.name}.*crescendo sequences"):
        list(point_in_time(open_store(published), rows, schema.USER_SEQUENCE, ["seq_track_ids"]))


@pytest.mark.parametrize("cut", ["tail", "middle"])
def test_a_damaged_event_table_is_named_and_the_old_sources_stay(published, cut):
    (victim,) = published.events.glob("*.parquet")
    sources = {path: path.read_bytes() for path in (published.root / "features").rglob("*.parquet")}
    if cut == "tail":
        victim.write_bytes(victim.read_bytes()[:-100])
    else:
        damage(victim)
    with pytest.raises(InputError, match=rf"{victim.name}.*crescendo ingest"):
        sequences(published, SequenceOptions(length=10))
    assert {path: path.read_bytes() for path in sources} == sources
    assert online(published) == whole(2)


@pytest.mark.redis
def test_production_servers_may_be_killed_one_by_one(
    postgres, restartable_redis, object_store, tmp_path, monkeypatch
):
    """Files in S3, rows in Redis, the registry in PostgreSQL: a reader outlives each of them."""
    monkeypatch.setenv("REGISTRY_PASSWORD", PASSWORD)
    registry = postgres.url.replace(PASSWORD, "${REGISTRY_PASSWORD}")
    redis = restartable_redis
    with working_copy(object_store.uri, cache=tmp_path / "a") as workspace:
        set_stores(workspace, f"redis://{redis.connection_string}/0?registry={registry}")
        make_sources(workspace, 2)
        publish(workspace)
    with working_copy(object_store.uri, cache=tmp_path / "b", read_only=True) as workspace:
        assert not (workspace.root / "online.db").exists()
        assert not (workspace.root / "registry.db").exists()
        store = open_store(workspace)
        users = list(range(1, USERS + 1))

        def read() -> list[list[int]]:
            return read_online(store, "user_id", users, [FEATURE])[schema.SEQUENCE_TRACK_IDS]

        assert read() == whole(2)
        postgres.stop()
        store.refresh_registry()
        assert read() == whole(2)
        redis.kill()
        with pytest.raises(Exception, match=rf"127.0.0.1:{redis.port}") as raised:
            read()
        assert PASSWORD not in str(raised.value)
        redis.start()
        assert read() == whole(2)
        postgres.start()
        moments = pd.to_datetime([START + pd.Timedelta(hours=1, minutes=30)] * 3)
        rows = pd.DataFrame({"user_id": [5, 6, 7], "event_timestamp": moments})
        (table,) = point_in_time(
            open_store(workspace), rows, schema.USER_SEQUENCE, [schema.SEQUENCE_TRACK_IDS]
        )
        found = dict(
            zip(
                table["user_id"].to_pylist(),
                table[schema.SEQUENCE_TRACK_IDS].to_pylist(),
                strict=True,
            )
        )
        assert found == {user: expected(user, 2) for user in (5, 6, 7)}


def test_no_redis_no_publishing(tmp_path):
    """Said before the registry is touched or a row is read."""
    workspace = Workspace(tmp_path)
    make_sources(workspace, 1)
    port = free_port()
    set_stores(workspace, f"redis://127.0.0.1:{port}/0")
    with pytest.raises(InputError, match=rf"127.0.0.1:{port}.* cannot be reached"):
        open_store(workspace, publishing=True)
    assert not (tmp_path / "registry.db").exists()
