"""The journal counts nothing twice, keeps every column, and says what is damaged."""

import json
import shutil

import pyarrow as pa
import pytest

from feature_repo.artifacts import MANIFEST, Manifest, read_manifest, write_artifact
from feature_repo.errors import ArtifactError, InputError
from feature_repo.event_journal import append, append_records, fold, journal_folder, remove, since
from feature_repo.journal_files import read_file, to_lines, to_records
from feature_repo.schema import EVENTS
from feature_repo.workspace import Workspace
from tests.event_logs import event, write_events
from tests.feature_repo.live_log import SOURCE_EVENTS, live, log, now, rows


@pytest.fixture
def workspace(tmp_path):
    workspace = Workspace(tmp_path / "w")
    write_events(workspace, SOURCE_EVENTS)
    return workspace


def test_an_appended_event_comes_into_the_log_with_its_arrival(workspace):
    before = now()
    stamped = append(workspace, rows(10, 3))
    assert fold(workspace) == 3
    found = log(workspace)
    assert sorted(found) == [1, 2, 10, 11, 12]
    assert [found[n] for n in (10, 11, 12)] == stamped.to_pylist()
    assert before <= found[10]["ingested_at"] <= now()
    assert {name: found[10][name] for name in ("user_id", "track_id", "action")} == {
        "user_id": 7,
        "track_id": 100,
        "action": "play",
    }
    assert fold(workspace) == 0
    assert append(workspace, EVENTS.empty_table()).num_rows == 0


def test_events_one_by_one_come_into_the_log_as_those_of_a_table_do(workspace):
    before, events = now(), rows(10, 3)
    append_records(workspace, to_records(events))
    append_records(workspace, [])
    assert fold(workspace) == 3
    found = pa.Table.from_pylist([log(workspace)[n] for n in (10, 11, 12)], schema=EVENTS)
    assert found.drop_columns(["ingested_at"]).equals(events.drop_columns(["ingested_at"]))
    (arrived,) = set(found["ingested_at"].to_pylist())
    assert before <= arrived <= now()


def test_every_column_survives_the_lines(tmp_path):
    extremes = [
        event(-(2**63), 2**63 - 1, -1, -3e7, "favourite"),
        event(2**63 - 1, 0, 2**53 + 1, 0.123456789),
    ]
    extremes[0] |= {"played_ratio": 0.1 + 0.2, "session_id": -(2**63)}
    extremes[1] |= {"played_ratio": 5e-324, "ingested_at": now()}
    table = pa.Table.from_pylist([*extremes, event(5, 6, 7, 8)], schema=EVENTS)
    path = tmp_path / "x.jsonl"
    path.write_bytes(to_lines(table))
    assert read_file(path).equals(table)
    assert [json.loads(line)["event_id"] for line in path.open()] == [-(2**63), 2**63 - 1, 5]


def test_the_lock_is_not_held_between_writes(workspace):
    """A fold takes a live writer's file; what comes afterwards goes into another."""
    append(workspace, live(10))
    (first,) = journal_folder(workspace).glob("*.jsonl")
    append(workspace, live(11))
    assert list(journal_folder(workspace).glob("*.jsonl")) == [first]
    assert fold(workspace) == 2
    assert not first.exists()
    append(workspace, live(12))
    assert fold(workspace) == 1
    assert sorted(log(workspace)) == [1, 2, 10, 11, 12]


def test_the_first_to_arrive_is_kept_and_the_log_comes_before_all(workspace):
    append(workspace, live(10, track_id=1))
    append(workspace, live(10, track_id=2))
    append(workspace, live(1, track_id=3))
    assert fold(workspace) == 1
    append(workspace, live(10, track_id=4))
    append(workspace, live(11, track_id=5))
    assert fold(workspace) == 1
    found = log(workspace)
    assert {n: row["track_id"] for n, row in found.items()} == {1: 70, 2: 80, 10: 1, 11: 5}


@pytest.mark.parametrize("cut", range(1, 200, 7))
def test_a_torn_end_is_left_out(tmp_path, cut):
    lines = to_lines(append(Workspace(tmp_path), rows(1, 3)))
    path = tmp_path / "torn.jsonl"
    path.write_bytes(lines[:-cut])
    whole = lines[:-cut].count(b"\n")
    assert read_file(path)["event_id"].to_pylist() == [1, 2, 3][:whole]
    path.write_bytes(lines[:-cut] + b"\0" * cut)
    assert read_file(path).num_rows == whole


def test_damage_before_a_whole_line_is_an_error(workspace):
    append(workspace, rows(10, 3))
    (path,) = journal_folder(workspace).glob("*.jsonl")
    lines = path.read_bytes()
    path.write_bytes(lines.replace(b'"track_id":110', b'"track_id":111'))
    with pytest.raises(ArtifactError, match=r"jsonl: line 2 is damaged.*crescendo sequences"):
        fold(workspace)
    (path,) = journal_folder(workspace).glob("sealed/*/*.jsonl")
    path.write_bytes(lines)
    assert fold(workspace) == 3


def test_a_null_is_refused(workspace):
    bad = live(10).set_column(2, EVENTS.field("track_id"), pa.nulls(1, pa.int64()))
    with pytest.raises(InputError, match="track_id is null in 1 of 1 live events"):
        append(workspace, bad)
    assert fold(workspace) == 0


def test_an_ingest_that_replaces_the_log_loses_no_live_event(workspace):
    append(workspace, rows(10, 3))
    fold(workspace)
    shutil.rmtree(workspace.events)
    write_events(workspace, [*SOURCE_EVENTS, event(11, 9, 99, 5)])
    assert fold(workspace) == 2
    assert sorted(log(workspace)) == [1, 2, 10, 11, 12]
    assert log(workspace)[11]["track_id"] == 99


def test_a_workspace_without_a_log_gets_one(tmp_path):
    workspace = Workspace(tmp_path / "w")
    assert fold(workspace) == 0
    append(workspace, live(10))
    assert fold(workspace) == 1
    assert sorted(log(workspace)) == [10]


def test_the_manifest_lists_the_part_and_counts_the_log(workspace):
    folder = workspace.tracks.parent
    with write_artifact(folder, Manifest(kind="tables", id="tables", rows={"tracks": 5})) as new:
        shutil.copytree(workspace.events, new / "events")
    append(workspace, pa.concat_tables([live(10), live(11, user_id=99)]))
    fold(workspace)
    manifest = read_manifest(folder, kind="tables", made_by="ingest")
    assert manifest.rows == {"tracks": 5, "events": 4, "users": 3}
    assert manifest.info["live_events"] == 2
    assert len(manifest.files) == 2
    # As after a kill between the part's rename and the manifest's: the next fold lists it.
    written = json.loads((folder / MANIFEST).read_text())
    written["files"] = {k: v for k, v in written["files"].items() if "live" not in k}
    (folder / MANIFEST).write_text(json.dumps(written))
    assert fold(workspace) == 0
    assert len(read_manifest(folder, kind="tables", made_by="ingest").files) == 2


def test_since_finds_events_wherever_they_are(workspace):
    append(workspace, live(10))
    fold(workspace)
    moment = now()
    append(workspace, live(11))
    fold(workspace)
    append(workspace, live(12))
    assert since(workspace, moment)["event_id"].to_pylist() == [11, 12]
    assert since(workspace, now()).num_rows == 0
    assert since(Workspace(workspace.root / "elsewhere"), moment).num_rows == 0


def test_removed_events_do_not_come_back(workspace):
    append(workspace, pa.concat_tables([rows(10, 3), rows(20, 2, user_id=8)]))
    fold(workspace)
    append(workspace, live(13))
    assert remove(workspace, user_ids=[8], event_ids=[11]) == 3
    assert remove(workspace, user_ids=[8], event_ids=[11]) == 0
    shutil.rmtree(workspace.events)
    assert fold(workspace) == 3
    assert sorted(log(workspace)) == [10, 12, 13]
