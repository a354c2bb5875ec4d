"""The sources of sequence and statistics features against brute force over random logs."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo import schema
from feature_repo.artifacts import parquet_files, read_manifest
from feature_repo.errors import InputError
from feature_repo.event_journal import append
from feature_repo.stores.event_windows import EventWindows
from feature_repo.workspace import Workspace
from ray_jobs import sequence_log, sequence_stats
from ray_jobs.sequence_log import build_with, event_blocks, run_here, run_on_ray
from ray_jobs.sequences import SequenceOptions, deletions, deletions_folder, events_id, sequences
from tests.event_logs import START, big_log, event, write_events

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
# Few users, tracks and moments: ties, repeats and late arrivals meet often.
LOGS = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.integers(1, 4),
        st.integers(0, 12),
        st.sampled_from(schema.ACTIONS),
        st.none() | st.integers(0, 10),
    ),
    min_size=1,
    max_size=30,
)


def visible_at(row):
    return max(row["event_timestamp"], row["ingested_at"] or row["event_timestamp"])


def read_log(workspace):
    return pq.read_table(parquet_files(workspace.feature_source(schema.USER_SEQUENCE)))


def counts_of(workspace, view):
    return pq.read_table(parquet_files(workspace.feature_source(view)))


def windows(log, user, moment, length):
    """Rows of a log that a reader at the moment is shown, newest last."""
    order = ["user_id", "listened_at", "event_id"]
    log = log.sort_by([(name, "ascending") for name in order])
    columns = [log[name].cast(pa.int64()).to_numpy() for name in (*order[:2], "event_timestamp")]
    asked = np.array([user]), np.array([(moment - EPOCH) // MICROSECOND])
    return log.take(EventWindows(*columns).last(*asked, length).rows_W).to_pylist()


@settings(deadline=None, max_examples=30)
@given(log=LOGS, length=st.integers(1, 5))
def test_sequence_is_what_was_visible_before_the_moment(tmp_path_factory, log, length):
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    events = [
        event(number, user, track, minute, action, late)
        for number, (user, track, minute, action, late) in enumerate(log)
    ]
    write_events(workspace, events)
    result = sequences(workspace, SequenceOptions(length=length))
    listens = [row for row in events if row["action"] in schema.LISTEN_ACTIONS]
    written = read_log(workspace)
    assert written.schema == schema.EVENT_LOG
    assert result["users"] == len({row["user_id"] for row in listens})
    assert result["rows"][schema.USER_SEQUENCE] == len(listens) == written.num_rows
    for user in (1, 2, 3):
        for minute in range(24):
            moment = START + timedelta(minutes=minute)
            seen = [r for r in listens if r["user_id"] == user and visible_at(r) < moment]
            seen.sort(key=lambda row: (row["event_timestamp"], row["event_id"]))
            found = windows(written, user, moment, length)
            assert [row["event_id"] for row in found] == [r["event_id"] for r in seen[-length:]]
            for row, expected in zip(found, seen[-length:], strict=True):
                assert row["listened_at"] == expected["event_timestamp"]
                assert row["event_timestamp"] == visible_at(expected) + MICROSECOND
                assert row["track_id"] == expected["track_id"]
                assert row["action"] == schema.ACTION_CODES[expected["action"]]


def assert_is_an_event_log(folder):
    """Sorted within each file, every user in one of them, no event twice."""
    users, ids = [], []
    for path in parquet_files(folder):
        table = pq.read_table(path)
        assert table.schema == schema.EVENT_LOG
        user = table["user_id"].to_numpy()
        seen = table["event_timestamp"].cast(pa.int64()).to_numpy()
        assert np.array_equal(np.lexsort((seen, user)), np.arange(len(user)))
        users.append(np.unique(user))
        ids.append(table["event_id"].to_numpy())
    together = np.concatenate(users)
    assert len(np.unique(together)) == len(together)
    ids = np.concatenate(ids)
    assert len(np.unique(ids)) == len(ids)


@pytest.fixture
def big_workspace(tmp_path):
    workspace = Workspace(tmp_path)
    big_log(workspace, events=60_000, users=700, files=3)
    return workspace


def build(workspace, run, target, deleted=(), *, buckets=5):
    target.mkdir()
    rows = buckets * sequence_log.BUCKET_ROWS
    ids = np.array(sorted(deleted), dtype=np.int64)
    built = build_with(run, event_blocks(workspace.events), rows, ids, target)
    assert [path.name for path in sorted(target.iterdir())] == [
        f"part-{bucket:05d}.parquet" for bucket in range(buckets)
    ]
    assert_is_an_event_log(target)
    return built


def test_many_files_are_one_log(big_workspace, tmp_path):
    """Whatever the number of files, the listens are those of the events, each once."""
    events = pq.read_table(parquet_files(big_workspace.events)).to_pandas()
    kept = events[events["action"] != "skip"]
    for buckets in (1, 5):
        target = tmp_path / f"log-{buckets}"
        built = build(big_workspace, run_here, target, buckets=buckets)
        log = pq.read_table(parquet_files(target)).to_pandas().set_index("event_id").sort_index()
        expected = kept.set_index("event_id").sort_index()
        assert (built.users, built.listens, built.repeated) == (
            kept["user_id"].nunique(),
            len(kept),
            0,
        )
        assert log.index.equals(expected.index)
        for name in ("user_id", "track_id"):
            assert (log[name] == expected[name]).all()
        arrived = expected["ingested_at"].fillna(expected["event_timestamp"])
        visible = np.maximum(arrived, expected["event_timestamp"]) + MICROSECOND
        assert (log["event_timestamp"] == visible).all()


def test_an_event_that_comes_again_counts_once(big_workspace, tmp_path):
    """Its first arrival, wherever the second lies."""
    path = big_workspace.events / "part-2.parquet"
    events = pq.read_table(path)
    later = [
        {**row, "ingested_at": visible_at(row) + timedelta(days=1), "track_id": row["track_id"] + 1}
        for row in events.slice(0, 500).to_pylist()
    ]
    build(big_workspace, run_here, tmp_path / "before")
    pq.write_table(
        pa.Table.from_pylist(later, events.schema), big_workspace.events / "again.parquet"
    )
    built = build(big_workspace, run_here, tmp_path / "after")
    assert built.repeated == sum(row["action"] != "skip" for row in later)
    for before, after in zip(
        parquet_files(tmp_path / "before"), parquet_files(tmp_path / "after"), strict=True
    ):
        assert pq.read_table(before).equals(pq.read_table(after))


def test_ray_data_builds_the_same_files(big_workspace, tmp_path, ray_local):
    deleted = range(0, 60_000, 7)
    here = build(big_workspace, run_here, tmp_path / "here", deleted)
    there = build(big_workspace, run_on_ray, tmp_path / "there", deleted)
    assert here == there
    for one, other in zip(
        parquet_files(tmp_path / "here"), parquet_files(tmp_path / "there"), strict=True
    ):
        assert one.read_bytes() == other.read_bytes()


def test_deleted_events_are_in_no_feature(tmp_path):
    """Named in tables/deletions: the sequence, the counts and the log's id are as without them."""
    events = [event(n, 1 + n % 2, n, n * 60 * 24) for n in range(20)]
    gone = {3, 4, 11}
    with_all, without = Workspace(tmp_path / "all"), Workspace(tmp_path / "without")
    write_events(with_all, events)
    write_events(without, [row for row in events if row["event_id"] not in gone])
    before = events_id(with_all)
    deletions_folder(with_all).mkdir()
    pq.write_table(
        pa.table({"event_id": sorted(gone)}), deletions_folder(with_all) / "asked.parquet"
    )
    assert events_id(with_all) != before
    assert deletions(with_all).tolist() == sorted(gone)
    results = [sequences(workspace, SequenceOptions()) for workspace in (with_all, without)]
    assert results[0] == {**results[1], "deleted": 3}
    for view in (schema.USER_SEQUENCE, schema.USER_STATS, schema.TRACK_STATS):
        tables = [
            pq.read_table(parquet_files(workspace.feature_source(view)))
            for workspace in (with_all, without)
        ]
        assert tables[0].equals(tables[1])


def test_live_events_are_folded_into_the_log_first(tmp_path):
    workspace = Workspace(tmp_path)
    write_events(workspace, [event(1, 7, 1, 0)])
    live = pa.Table.from_pylist([event(2, 7, 2, 5), event(1, 7, 9, 5)], schema.EVENTS)
    append(workspace, live)
    result = sequences(workspace, SequenceOptions())
    assert result["folded"] == 1  # event 1 is in the log already
    assert read_log(workspace)["track_id"].to_pylist() == [1, 2]
    manifest = read_manifest(
        workspace.feature_source(schema.USER_SEQUENCE), kind="feature_source", made_by="sequences"
    )
    assert manifest.parents["events"] == events_id(workspace)
    assert sequences(workspace, SequenceOptions())["folded"] == 0


def test_the_length_is_said_in_the_manifest_and_costs_nothing_on_disk(tmp_path):
    workspace = Workspace(tmp_path)
    write_events(workspace, [event(n, 1, n, n) for n in range(50)])
    files = []
    for length in (1, 1000):
        sequences(workspace, SequenceOptions(length=length))
        folder = workspace.feature_source(schema.USER_SEQUENCE)
        manifest = read_manifest(folder, kind="feature_source", made_by="sequences")
        assert manifest.options == {"length": length}
        files.append(manifest.files)
    assert files[0] == files[1]


def newest_row(rows, key, entity, moment):
    """The row that a point-in-time join (<=) finds: the newest not after the moment."""
    mine = [row for row in rows if row[key] == entity and row["event_timestamp"] <= moment]
    return max(mine, key=lambda row: row["event_timestamp"], default=None)


@settings(deadline=None, max_examples=25)
@given(log=LOGS)
def test_stats_count_the_whole_days_before(tmp_path_factory, log):
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    # Minutes become days, so that both windows open and close inside the log.
    events = [
        event(number, user, track, minute * 1440 * 3 + 30, action, late and late * 1440)
        for number, (user, track, minute, action, late) in enumerate(log)
    ]
    write_events(workspace, events)
    sequences(workspace, SequenceOptions())
    kinds = {
        "plays": lambda action: action != "skip",
        "completes": lambda action: action == "complete",
        "skips": lambda action: action == "skip",
        "favourites": lambda action: action == "favourite",
    }
    for view, key, prefix in (
        (schema.USER_STATS, "user_id", "user"),
        (schema.TRACK_STATS, "track_id", "track"),
    ):
        rows = pq.read_table(parquet_files(workspace.feature_source(view))).to_pylist()
        for entity in (1, 2, 3, 4):
            for day in range(0, 80, 3):
                moment = START + timedelta(days=day, hours=7)
                midnight = START + timedelta(days=day)
                found = newest_row(rows, key, entity, moment)
                for days in schema.STATS_WINDOWS_DAYS:
                    for kind, counts in kinds.items():
                        expected = sum(
                            midnight - timedelta(days=days) <= visible_at(row) < midnight
                            for row in events
                            if row[key] == entity and counts(row["action"])
                        )
                        got = found[f"{prefix}_{kind}_{days}d"] if found else 0
                        assert got == expected


def test_counts_of_slices_are_those_of_the_whole(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path)
    big_log(workspace, events=300, users=20, files=2)
    sequences(workspace, SequenceOptions())
    views = (schema.USER_STATS, schema.TRACK_STATS)
    whole = {view: counts_of(workspace, view) for view in views}
    monkeypatch.setattr(sequence_stats, "SLICE_DAYS", 7)
    sequences(workspace, SequenceOptions())
    for view, key in zip(views, ("user_id", "track_id"), strict=True):
        folder = workspace.feature_source(view)
        parts = [pq.read_table(path)[key].to_numpy() for path in parquet_files(folder)]
        assert len(parts) > 1
        assert all(before.max() < after.min() for before, after in pairwise(parts))
        assert counts_of(workspace, view).equals(whole[view])
        assert {path.name for path in folder.iterdir()} == {
            "manifest.json",
            *(f"part-{n:05d}.parquet" for n in range(len(parts))),
        }


def test_an_empty_log_has_no_counts(tmp_path):
    workspace = Workspace(tmp_path)
    write_events(workspace, [])
    assert sequences(workspace, SequenceOptions())["rows"][schema.USER_STATS] == 0
    assert len(parquet_files(workspace.feature_source(schema.USER_STATS))) == 1


def test_missing_events_name_the_command(tmp_path):
    with pytest.raises(InputError, match="ingest"):
        sequences(Workspace(tmp_path), SequenceOptions())


def test_length_must_be_positive():
    with pytest.raises(InputError, match="length must be at least 1, got 0"):
        SequenceOptions(length=0)
