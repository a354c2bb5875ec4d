"""A workspace on s3://, against a real S3 server: two machines, kills, writers, conflicts.

A machine is a cache folder; a killed one is a process that sends itself SIGKILL.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

from feature_repo.artifacts import Manifest, read_manifest, write_artifact
from feature_repo.errors import InputError
from feature_repo.object_store import ObjectStore
from feature_repo.working_copy import bring_up_to_date, publish_now, working_copy
from feature_repo.workspace import Workspace
from feature_repo.write_lock import LOCK


def client():
    """As this test's environment says: boto3's own default would keep an earlier test's."""
    return boto3.session.Session().client("s3")


def write_model(workspace: Workspace, name: str, text: str, parts: int = 1) -> None:
    with write_artifact(workspace.models / name, Manifest(kind="model", id=name)) as partial:
        for number in range(parts):
            (partial / f"part-{number}").write_text(f"{text} {number}")


def models(workspace: Workspace) -> dict[str, list[str]]:
    """Content of every model, each checked against its manifest."""
    found = {}
    for folder in sorted(workspace.models.glob("*")):
        manifest = read_manifest(folder, kind="model", made_by="train")
        found[folder.name] = [(folder / name).read_text() for name in manifest.files]
    return found


def failing(copy, *names: str) -> None:
    """A run that makes these models and then fails."""
    with copy as workspace:
        for name in names:
            write_model(workspace, name, "mine")
        raise ZeroDivisionError


def opened(copy) -> None:
    with copy:
        pytest.fail("it was opened")


def stored(store) -> dict[str, str]:
    """Every object of the files, with the moment it was written."""
    listed = client().list_objects_v2(Bucket=store.bucket)["Contents"]
    return {e["Key"]: str(e["LastModified"]) for e in listed if "/objects/" in e["Key"]}


def keys(store, prefix: str = "") -> set[str]:
    listed = client().list_objects_v2(Bucket=store.bucket, Prefix=f"team/music/{prefix}")
    return {entry["Key"].removeprefix("team/music/") for entry in listed.get("Contents", ())}


@pytest.fixture
def machine(object_store, tmp_path):
    """`machine(name, **options)`: the workspace as that machine works on it."""

    def copy(name: str, **options):
        return working_copy(object_store.uri, cache=tmp_path / name, **options)

    return copy


def test_a_folder_is_its_own_working_copy(tmp_path):
    with working_copy(str(tmp_path)) as workspace:
        assert workspace == Workspace(tmp_path)
        assert workspace.is_local
        assert not workspace.is_read_only
        assert workspace.published_sources == f"{tmp_path}/features"
        publish_now(workspace)


def test_another_machine_sees_what_was_published(machine, object_store):
    with machine("a") as workspace:
        assert workspace.location == object_store.uri
        assert workspace.published_sources == f"{object_store.uri}/features"
        write_model(workspace, "m-1", "one", parts=3)
        (workspace.root / "CURRENT").write_text("m-1")
        with pytest.raises(InputError, match="is a copy of s3://lake/team/music; name that"):
            opened(working_copy(workspace.root))
    with machine("b", read_only=True) as workspace:
        assert models(workspace) == {"m-1": ["one 0", "one 1", "one 2"]}
        assert (workspace.root / "CURRENT").read_text() == "m-1"


def test_changes_replacements_and_deletions_travel(machine, object_store):
    with machine("a") as workspace:
        write_model(workspace, "m-1", "one", parts=3)
        write_model(workspace, "m-2", "two")
        (workspace.root / "x").mkdir()
        (workspace.root / "x" / "same").write_text("two 0")  # the same content twice
    with machine("b") as workspace:
        write_model(workspace, "m-1", "one again", parts=2)
        for path in sorted(workspace.models.glob("m-2/*")):
            path.unlink()
        (workspace.models / "m-2").rmdir()
    with machine("a") as workspace:
        assert models(workspace) == {"m-1": ["one again 0", "one again 1"]}
        assert (workspace.root / "x" / "same").read_text() == "two 0"
    # What no file needs any more is gone: a deleted user's data too.
    assert len(keys(object_store, "objects/")) == 4


def test_only_what_changed_is_sent(machine, object_store, tmp_path):
    with machine("a") as workspace:
        write_model(workspace, "m-1", "one", parts=20)
    before = stored(object_store)
    with machine("a") as workspace:
        write_model(workspace, "m-2", "two")
    after = stored(object_store)
    assert len(after) == len(before) + 2
    assert before.items() < after.items()


def test_a_failed_command_publishes_nothing_and_its_work_waits(machine):
    with machine("a") as workspace:
        write_model(workspace, "m-1", "one")
    with pytest.raises(ZeroDivisionError):
        failing(machine("a"), "m-2")
    with machine("b", read_only=True) as workspace:
        assert set(models(workspace)) == {"m-1"}
    with machine("a", read_only=True) as workspace:  # not even on its own machine
        assert set(models(workspace)) == {"m-1"}
    with machine("a") as workspace:
        assert set(models(workspace)) == {"m-1", "m-2"}
    with machine("b", read_only=True) as workspace:
        assert set(models(workspace)) == {"m-1", "m-2"}


def test_a_reader_works_beside_a_writer_and_publishes_nothing(machine, object_store, caplog):
    with machine("a") as writer:
        write_model(writer, "m-1", "one")
        publish_now(writer)
        write_model(writer, "m-2", "two")
        with machine("a", read_only=True) as reader:
            assert reader.root != writer.root
            assert (writer.is_read_only, reader.is_read_only) == (False, True)
            assert set(models(reader)) == {"m-1"}
            (reader.root / "stray").write_text("x")
            with pytest.raises(InputError, match="reading only; nothing was published"):
                publish_now(reader)
        assert "stray" in caplog.text
    with machine("a", read_only=True) as reader:
        assert set(models(reader)) == {"m-1", "m-2"}
        assert not (reader.root / "stray").exists()


def test_a_reader_that_stays_follows_what_others_publish(machine):
    def release(name: str) -> None:
        with machine("a") as workspace:
            write_model(workspace, name, name)
            workspace.releases.mkdir(exist_ok=True)
            (workspace.releases / f"{name}.json").write_text(name)
            (workspace.releases / "CURRENT").write_text(name)

    release("one")
    with machine("a") as workspace, pytest.raises(InputError, match="not open for reading only"):
        bring_up_to_date(workspace)
    with machine("b", read_only=True) as workspace:
        current = workspace.releases / "CURRENT"
        assert (current.read_text(), bring_up_to_date(workspace)) == ("one", False)
        inode = (workspace.models / "one" / "part-0").stat().st_ino
        release("two")
        assert bring_up_to_date(workspace)
        assert (current.read_text(), set(models(workspace))) == ("two", {"one", "two"})
        # What did not change was not fetched again, so nothing that is open was replaced.
        assert (workspace.models / "one" / "part-0").stat().st_ino == inode
        assert not bring_up_to_date(workspace)
    with pytest.raises(InputError, match="not open for reading only"):
        bring_up_to_date(workspace)


def test_a_second_writer_is_refused_until_the_first_ends(machine):
    with machine("a") as workspace:
        write_model(workspace, "m-1", "one")
        for name in ("a", "b"):
            with pytest.raises(InputError, match="another run is writing s3://lake/team/music"):
                opened(machine(name))
    with machine("b") as workspace:
        assert set(models(workspace)) == {"m-1"}


@pytest.mark.slow
def test_kills_leave_the_old_state_or_the_new_and_the_next_run_ends_it(object_store, tmp_path):
    """Killed before every fifth message; the locks of killed runs hold their own machine up never.

    tests/killed_upload.py checks each time what another machine reads.
    """
    script = Path(__file__).parents[1] / "killed_upload.py"
    done = subprocess.run(
        [sys.executable, str(script), object_store.uri, str(tmp_path), "5"],
        capture_output=True,
        text=True,
        timeout=250,
        env={**os.environ, "PYTHONPATH": str(script.parents[1])},
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert len(seen) > 6
    assert seen == sorted(seen)  # the later the kill, the newer the state
    assert (seen[0], seen[-1]) == (0, 1)
    source = "team/music/features/v/part-0.parquet"
    assert client().get_object(Bucket="lake", Key=source)["Body"].read() == b"two 0"
    assert keys(object_store) >= {"index.json", "features/v/manifest.json"}


def test_two_machines_changes_come_together_and_conflicts_are_kept(machine, caplog, tmp_path):
    with machine("a") as workspace:
        write_model(workspace, "m-1", "one")
    with pytest.raises(ZeroDivisionError):
        failing(machine("a"), "m-1", "m-2")
    with machine("b") as workspace:
        write_model(workspace, "m-1", "theirs")
    with machine("a") as workspace:
        assert models(workspace) == {"m-1": ["theirs 0"], "m-2": ["mine 0"]}
    assert "other versions of models/m-1" in caplog.text
    (kept,) = tmp_path.glob("a/*/copy-*/set_aside-*/models/m-1/part-0")
    assert kept.read_text() == "mine 0"
    with machine("b", read_only=True) as workspace:
        assert set(models(workspace)) == {"m-1", "m-2"}


def test_an_overtaken_writer_publishes_nothing(machine, object_store):
    def overtaken() -> None:
        with machine("a") as workspace:
            write_model(workspace, "m-1", "mine")
            ObjectStore(object_store.uri).delete([LOCK])  # as if it had expired
            with machine("b") as other:
                write_model(other, "m-1", "theirs")

    with pytest.raises(InputError, match=r"lost .* to another writer"):
        overtaken()
    with machine("c", read_only=True) as workspace:
        assert models(workspace) == {"m-1": ["theirs 0"]}


def test_a_changed_object_is_refused(machine, object_store):
    with machine("a") as workspace:
        (workspace.root / "alone").write_text("good")
    (key,) = keys(object_store, "objects/")
    client().put_object(Bucket="lake", Key=f"team/music/{key}", Body=b"evil")
    with pytest.raises(InputError, match=r"objects/[0-9a-f]{64} was changed or is damaged"):
        opened(machine("b", read_only=True))


def test_feature_sources_lie_where_the_registry_says(machine, object_store):
    with machine("a") as workspace:
        folder = workspace.feature_source("user_stats")
        with write_artifact(folder, Manifest(kind="feature_source", id="user_stats")) as partial:
            (partial / "part-0.parquet").write_text("0")
            (partial / "part-1.parquet").write_text("1")
    names = {"manifest.json", "part-0.parquet", "part-1.parquet"}
    assert keys(object_store, "features/") == {f"features/user_stats/{name}" for name in names}
    with machine("b") as workspace:
        folder = workspace.feature_source("user_stats")
        with write_artifact(folder, Manifest(kind="feature_source", id="user_stats")) as partial:
            (partial / "part-0.parquet").write_text("new")
    names.remove("part-1.parquet")
    assert keys(object_store, "features/") == {f"features/user_stats/{name}" for name in names}


def test_sqlite_is_published_with_what_it_has_only_logged(machine):
    import sqlite3

    with machine("a") as workspace:
        writer = sqlite3.connect(workspace.root / "online.db")
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("CREATE TABLE t (a)")
        writer.execute("INSERT INTO t VALUES (1)")
        writer.commit()
        assert (workspace.root / "online.db-wal").stat().st_size > 0
        publish_now(workspace)
        with machine("b", read_only=True) as copy:
            reader = sqlite3.connect(copy.root / "online.db")
            assert reader.execute("SELECT a FROM t").fetchall() == [(1,)]
            reader.close()
        writer.execute("INSERT INTO t VALUES (2)")
        writer.commit()
        writer.close()
    with machine("b", read_only=True) as copy:
        reader = sqlite3.connect(copy.root / "online.db")
        assert reader.execute("SELECT a FROM t").fetchall() == [(1,), (2,)]
        reader.close()


def test_a_password_in_the_settings_is_not_published(machine, object_store):
    def with_password() -> None:
        with machine("a") as workspace:
            text = "online_store: {connection_string: 'h:1,password=s3cr3t'}"
            (workspace.root / "feature_store.yaml").write_text(text)

    with pytest.raises(InputError, match="holds a password") as raised:
        with_password()
    assert "s3cr3t" not in str(raised.value)
    assert keys(object_store) == set()


def test_something_else_at_the_uri_is_refused(object_store, tmp_path):
    body = json.dumps({"version": 99, "files": {}})
    client().put_object(Bucket="lake", Key="team/music/index.json", Body=body)
    with pytest.raises(InputError, match="has version 99, expected 1"):
        opened(working_copy(object_store.uri, cache=tmp_path))
