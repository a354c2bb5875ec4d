"""Sequence views from the event log: against a loop and stock Feast over snapshots; no peeking."""

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo import schema
from feature_repo.errors import InputError
from feature_repo.offline import point_in_time
from feature_repo.stores.asof import latest_rows
from tests.feature_repo.stores.asof_repo import (
    LENGTH,
    OURS,
    SNAPSHOTS,
    START,
    STOCK,
    answer,
    entity_rows,
    minute,
    open_repo,
    write,
)

LISTS = [f"{schema.USER_SEQUENCE}:{name}" for name in schema.SEQUENCE_COLUMNS]
MICROSECOND = timedelta(microseconds=1)
EVENTS = st.lists(
    st.tuples(st.integers(1, 3), st.integers(0, 12), st.just(0) | st.integers(0, 10)), max_size=30
)
MOMENTS = st.lists(
    st.tuples(st.none() | st.integers(1, 4), st.just("a"), st.integers(-1, 25)),
    min_size=1,
    max_size=12,
)


def log_rows(events):
    """(user, happened, late by) in minutes -> rows of an event log, in its order."""
    rows = [
        {
            "user_id": user,
            "event_timestamp": minute(happened + late) + MICROSECOND,
            "listened_at": minute(happened),
            "event_id": number * 7 % 101,
            "track_id": number % 5,
            "action": 1 + number % 3,
        }
        for number, (user, happened, late) in enumerate(events)
    ]
    return sorted(rows, key=lambda row: (row["user_id"], row["event_timestamp"]))


def lists_of(rows, length=LENGTH):
    """The four lists of some log rows; None where there is no row."""
    newest = sorted(rows, key=lambda row: (row["listened_at"], row["event_id"]))[-length:]
    if not newest:
        return dict.fromkeys(schema.SEQUENCE_COLUMNS)
    micros = [(row["listened_at"] - START) // MICROSECOND for row in newest]
    start_us = int(START.timestamp()) * 1_000_000
    return {
        schema.SEQUENCE_TRACK_IDS: [row["track_id"] for row in newest],
        schema.SEQUENCE_TIMESTAMPS: [start_us + us for us in micros],
        schema.SEQUENCE_ACTIONS: [row["action"] for row in newest],
        schema.SEQUENCE_EVENT_IDS: [row["event_id"] for row in newest],
    }


def seen(rows, user, moment):
    return [row for row in rows if row["user_id"] == user and row["event_timestamp"] <= moment]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repo")
    return folder, open_repo(folder, OURS), open_repo(folder, STOCK)


@settings(max_examples=40, deadline=None)
@given(events=EVENTS, asked=MOMENTS)
def test_lists_equal_a_loop_over_the_log(stores, events, asked):
    folder, ours, _ = stores
    rows = log_rows(events)
    write(folder, schema.USER_SEQUENCE, rows, schema.EVENT_LOG)
    found = answer(ours, entity_rows(asked), LISTS)
    for (user, _, at), row in zip(asked, found, strict=True):
        expected = lists_of(seen(rows, user, minute(at)))
        assert {name: row[name] for name in expected} == expected


@settings(max_examples=15, deadline=None)
@given(events=EVENTS, asked=MOMENTS)
def test_lists_equal_stock_over_snapshots(stores, events, asked):
    folder, ours, stock = stores
    rows = log_rows(events)
    write(folder, schema.USER_SEQUENCE, rows, schema.EVENT_LOG)
    snapshots = [
        {"user_id": user, "event_timestamp": at, **lists_of(seen(rows, user, at))}
        for user, at in {(row["user_id"], row["event_timestamp"]) for row in rows}
    ]
    write(folder, "snapshots", snapshots, SNAPSHOTS)
    stored = answer(
        stock, entity_rows(asked), [f"snapshots:{name}" for name in schema.SEQUENCE_COLUMNS]
    )
    assert answer(ours, entity_rows(asked), LISTS) == stored


@settings(max_examples=30, deadline=None)
@given(
    events=EVENTS,
    planted=st.lists(st.tuples(st.integers(1, 3), st.integers(-20, 20), st.integers(0, 30))),
    asked=MOMENTS,
)
def test_what_becomes_visible_later_never_changes_an_answer(stores, events, planted, asked):
    """The future, ties, and late arrivals, planted after every moment that is asked for."""
    folder, ours, _ = stores
    last = max(at for _, _, at in asked)
    later = [(user, last + shift, max(late, -shift)) for user, shift, late in planted]
    answers = []
    for log in (events, events + later):
        write(folder, schema.USER_SEQUENCE, log_rows(log), schema.EVENT_LOG)
        answers.append(answer(ours, entity_rows(asked), LISTS))
    assert answers[0] == answers[1]


@settings(max_examples=15, deadline=None)
@given(events=EVENTS)
def test_an_impression_sees_neither_its_own_event_nor_a_tie(stores, events):
    """Asked for at an event's own moment, it and those of the same moment are not there."""
    folder, ours, _ = stores
    rows = log_rows(events)
    if not rows:
        return
    write(folder, schema.USER_SEQUENCE, rows, schema.EVENT_LOG)
    asked = entity_rows([(row["user_id"], "a", 0.0) for row in rows])
    asked["event_timestamp"] = [row["listened_at"] for row in rows]
    for row, found in zip(rows, answer(ours, asked, LISTS), strict=True):
        assert all(
            us < int(row["listened_at"].timestamp()) * 1_000_000
            for us in found[schema.SEQUENCE_TIMESTAMPS] or []
        )


@settings(max_examples=20, deadline=None)
@given(events=EVENTS, start=st.integers(-1, 12), span=st.integers(0, 12))
def test_latest_rows_are_windows_of_the_range(stores, events, start, span):
    folder, ours, _ = stores
    rows = log_rows(events)
    write(folder, schema.USER_SEQUENCE, rows, schema.EVENT_LOG)
    view = ours.get_feature_view(schema.USER_SEQUENCE)
    after, upto = minute(start), minute(start + span)
    parts = list(latest_rows(ours.config, view, after, upto, chunk_rows=2))
    assert all(part.num_rows <= 2 for part in parts)
    found = {row["user_id"]: row for row in pa.concat_tables(parts).to_pylist()}
    expected = {}
    for user in (1, 2, 3):
        mine = [row for row in seen(rows, user, upto) if row["event_timestamp"] > after]
        if mine:
            newest = max(row["event_timestamp"] for row in mine)
            expected[user] = {"user_id": user, "event_timestamp": newest, **lists_of(mine)}
    assert found == expected


@settings(max_examples=20, deadline=None)
@given(events=EVENTS, start=st.integers(-1, 12), span=st.integers(0, 12))
def test_pulled_rows_are_whole_windows(stores, events, start, span):
    """What stock engines read: a snapshot for every change, and the newest of them."""
    folder, ours, _ = stores
    rows = log_rows(events)
    write(folder, schema.USER_SEQUENCE, rows, schema.EVENT_LOG)
    view = ours.get_feature_view(schema.USER_SEQUENCE)
    since, upto = minute(start), minute(start + span)
    offline = ours._get_provider().offline_store
    names = list(schema.SEQUENCE_COLUMNS)
    latest = offline.pull_latest_from_table_or_query(
        ours.config, view.batch_source, ["user_id"], names, "event_timestamp", None, since, upto
    ).to_arrow()
    every = offline.pull_all_from_table_or_query(
        ours.config, view.batch_source, ["user_id"], names, "event_timestamp", None, since, upto
    ).to_arrow()
    changes = {
        (row["user_id"], row["event_timestamp"]): lists_of(
            seen(rows, row["user_id"], row["event_timestamp"])
        )
        for row in rows
        if since <= row["event_timestamp"] <= upto
    }
    found = {(row.pop("user_id"), row.pop("event_timestamp")): row for row in every.to_pylist()}
    assert found == changes
    newest = dict(sorted(changes))
    assert {(row["user_id"], row["event_timestamp"]) for row in latest.to_pylist()} == set(
        newest.items()
    )
    for row in latest.to_pylist():
        key = (row.pop("user_id"), row.pop("event_timestamp"))
        assert row == changes[key]


def test_a_time_to_live_hides_the_windows_of_users_who_went_quiet(stores):
    folder, ours, _ = stores
    write(folder, schema.USER_SEQUENCE, log_rows([(1, 0, 4), (1, 3, 0)]), schema.EVENT_LOG)
    view = ours.get_feature_view(schema.USER_SEQUENCE)
    view.ttl = timedelta(minutes=5)
    ours.apply([view])
    try:
        asked = entity_rows([(1, "a", 9), (1, "a", 10)])
        asked.loc[0, "event_timestamp"] += MICROSECOND
        asked["event_timestamp"] = asked["event_timestamp"].astype("datetime64[us, UTC]")
        tracks = [row[schema.SEQUENCE_TRACK_IDS] for row in answer(ours, asked, LISTS)]
        assert tracks == [[0, 1], None]
    finally:
        view.ttl = None
        ours.apply([view])


def test_a_log_that_is_larger_than_the_memory_is_mapped(tmp_path):
    random = np.random.default_rng(0)
    count = 800_000
    user = np.sort(random.integers(0, 5000, count))
    listened = random.integers(0, 10**12, count)
    visible = listened + 1 + random.integers(0, 10**10, count) * (random.random(count) < 0.1)
    stamps = pa.timestamp("us", tz="UTC")
    table = pa.table(
        [
            user,
            pa.array(visible, type=stamps),
            pa.array(listened, type=stamps),
            np.arange(count),
            random.integers(0, 1000, count),
            random.integers(1, 4, count),
        ],
        schema=schema.EVENT_LOG,
    )
    (tmp_path / schema.USER_SEQUENCE).mkdir()
    pq.write_table(table, tmp_path / schema.USER_SEQUENCE / "part.parquet")
    asked = entity_rows([(int(u), "a", 0.0) for u in random.integers(0, 5001, 400)])
    asked["event_timestamp"] = random.integers(0, 10**12, 400).astype("datetime64[us]")
    small = {**OURS, "memory_limit_mb": 64}  # 38 MB of columns
    found, mapped = (answer(open_repo(tmp_path, o), asked, LISTS) for o in (OURS, small))
    assert found == mapped
    times = asked["event_timestamp"].to_numpy().astype(np.int64)
    order = np.lexsort((np.arange(count), listened))
    for row, us in zip(found[:50], times[:50], strict=True):
        mine = order[(user[order] == row["user_id"]) & (visible[order] <= us)][-LENGTH:]
        assert (row[schema.SEQUENCE_EVENT_IDS] or []) == mine.tolist()


def test_point_in_time_names_the_setting_where_the_store_cannot_build_sequences(stores):
    folder, ours, stock = stores
    rows = log_rows([(1, 0, 0), (1, 1, 0)])
    write(folder, schema.USER_SEQUENCE, rows, schema.EVENT_LOG)
    write(folder, "snapshots", [], SNAPSHOTS)
    asked = entity_rows([(1, "a", 5), (2, "a", 5)])
    features = [schema.SEQUENCE_TRACK_IDS]
    with pytest.raises(InputError, match=r"offline_store duckdb cannot do; set offline_store.type"):
        list(point_in_time(stock, asked, schema.USER_SEQUENCE, features))
    (plain,) = point_in_time(stock, asked, "snapshots", features)
    assert plain[features[0]].to_pylist() == [None, None]
    (found,) = point_in_time(ours, asked, schema.USER_SEQUENCE, features)
    assert found.column_names == [*asked.columns, *features]
    assert found[features[0]].to_pylist() == [[0, 1], None]


def test_bad_sequence_views_are_refused(stores):
    folder, ours, _ = stores
    write(folder, schema.USER_SEQUENCE, log_rows([(1, 0, 0)]), schema.EVENT_LOG)
    rows = entity_rows([(1, "a", 5)])
    with pytest.raises(InputError, match="joins on int64 ids; user_id of the entity rows is"):
        answer(ours, rows.assign(user_id="u1"), LISTS)
    view = ours.get_feature_view(schema.USER_SEQUENCE)
    view.tags = {schema.SEQUENCE_LENGTH_TAG: "-3"}
    ours.apply([view])
    try:
        with pytest.raises(InputError, match="must be a number of at least 1, got '-3'"):
            answer(ours, rows, LISTS)
    finally:
        view.tags = {schema.SEQUENCE_LENGTH_TAG: str(LENGTH)}
        ours.apply([view])


def test_a_source_that_is_no_event_log_is_refused(stores):
    folder, ours, _ = stores
    write(folder, schema.USER_SEQUENCE, [], SNAPSHOTS)
    with pytest.raises(InputError, match=r"listened_at"):
        answer(ours, entity_rows([(1, "a", 5)]), LISTS)
    nulls = pa.schema([field.with_nullable(True) for field in schema.EVENT_LOG])
    rows = log_rows([(1, 0, 0)])
    write(folder, schema.USER_SEQUENCE, [{**rows[0], "track_id": None}], nulls)
    with pytest.raises(InputError, match="is no event log: track_id is int64 with 1 nulls"):
        answer(ours, entity_rows([(1, "a", 5)]), LISTS)
