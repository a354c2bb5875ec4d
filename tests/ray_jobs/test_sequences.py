"""The sources of sequence and statistics features against brute force over random logs."""

from datetime import UTC, datetime, timedelta

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo import schema
from feature_repo.artifacts import parquet_files
from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from ray_jobs.sequences import SequenceOptions, sequences
from tests.event_logs import START, event, write_events

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
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


def newest_row(rows, key, entity, moment):
    """The row that a point-in-time join (<=) finds: the newest not after the moment."""
    mine = [row for row in rows if row[key] == entity and row["event_timestamp"] <= moment]
    return max(mine, key=lambda row: row["event_timestamp"], default=None)


@settings(deadline=None, max_examples=60)
@given(log=LOGS, length=st.integers(1, 5))
def test_sequence_is_what_was_visible_before_the_moment(tmp_path_factory, log, length):
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    events = [
        event(number, user, track, minute, action, late)
        for number, (user, track, minute, action, late) in enumerate(log)
    ]
    write_events(workspace, events)
    sequences(workspace, SequenceOptions(length=length))
    rows = pq.read_table(parquet_files(workspace.feature_source(schema.USER_SEQUENCE))).to_pylist()
    for user in (1, 2, 3):
        for minute in range(24):
            moment = START + timedelta(minutes=minute)
            seen = [
                row
                for row in events
                if row["user_id"] == user
                and row["action"] in schema.LISTEN_ACTIONS
                and visible_at(row) < moment
            ]
            seen.sort(key=lambda row: (row["event_timestamp"], row["event_id"]))
            expected = [row["track_id"] for row in seen[-length:]]
            found = newest_row(rows, "user_id", user, moment)
            assert (found[schema.SEQUENCE_TRACK_IDS] if found else []) == expected
            if found:
                times = [
                    (row["event_timestamp"] - EPOCH) // timedelta(microseconds=1)
                    for row in seen[-length:]
                ]
                actions = [schema.ACTION_CODES[row["action"]] for row in seen[-length:]]
                assert found[schema.SEQUENCE_TIMESTAMPS] == times
                assert found[schema.SEQUENCE_ACTIONS] == actions


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


def test_missing_events_name_the_command(tmp_path):
    with pytest.raises(InputError, match="ingest"):
        sequences(Workspace(tmp_path), SequenceOptions())


def test_length_must_be_positive():
    with pytest.raises(InputError, match="length must be at least 1, got 0"):
        SequenceOptions(length=0)
