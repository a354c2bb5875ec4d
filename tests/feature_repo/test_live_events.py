"""Live events end in the row that the whole log gives: any order, any writers."""

import random
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from pydantic import ValidationError

from feature_repo import schema
from feature_repo.errors import ArtifactError, InputError
from feature_repo.event_journal import fold, since
from feature_repo.journal_files import LINES
from feature_repo.live_events import MAX_AHEAD, LiveEvent, LiveEvents, _record
from feature_repo.live_rows import arrivals, listen_rows
from feature_repo.stores.packed_live import Listen
from feature_repo.tombstones import forget_events, forget_users
from tests.feature_repo.live_store import (
    SQLITE,
    START,
    expected_rows,
    listen,
    live_store,
    logged_events,
    microseconds,
    online_rows,
    redis_settings,
    statuses,
)

LENGTH = 5
redis = pytest.mark.redis


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=redis)])
def settings(request):
    if request.param == "sqlite":
        return SQLITE
    return redis_settings(request.getfixturevalue("redis_server"))


@pytest.fixture
def opened(tmp_path, settings):
    return live_store(tmp_path / "w", settings, LENGTH)


@pytest.fixture
def live(opened):
    live = LiveEvents(*opened)
    yield live
    live.close()


def test_a_listen_is_in_the_row_when_its_receipt_says_so(live, opened):
    workspace, store = opened
    events = [listen(1), listen(2, user_id=8), listen(3, action="skip"), listen(4, user_id=-9)]
    assert statuses(live.take(events)) == ["accepted"] * 4
    assert online_rows(store, [7, 8, -9, 10]) == expected_rows(events, LENGTH)
    assert fold(workspace) == 4
    assert sorted(logged_events(workspace), key=lambda e: e.event_id) == events


def test_a_row_is_stamped_as_the_event_log_is():
    """One microsecond after the later of what happened and what arrived, on both ways online."""
    arrived_us = microseconds(datetime(2026, 3, 1, 0, 0, 10, tzinfo=UTC))
    listens = [
        {**_record(event), "ingested_at": arrived_us} for event in (listen(2), listen(100, 8))
    ]
    skip = {**_record(listen(3, action="skip")), "ingested_at": arrived_us}
    columns = pa.Table.from_pylist([*listens, skip], schema=LINES).cast(schema.EVENTS)
    rows = listen_rows(columns).to_pylist()
    happened = [START + timedelta(seconds=3), START + timedelta(seconds=101)]
    visible_us = [arrived_us + 1, microseconds(happened[1]) + 1]
    assert [microseconds(row["event_timestamp"]) for row in rows] == visible_us
    assert [row["user_id"] for row in rows] == [7, 8]
    assert [[rows[1][name] for name in schema.SEQUENCE_COLUMNS]] == [
        [[0], [microseconds(happened[1])], [schema.ACTION_CODES["play"]], [100]]
    ]
    found = arrivals(listens)
    assert {user: found[user].event_us for user in found} == dict(
        zip((7, 8), visible_us, strict=True)
    )
    assert found[8].listens == [
        Listen(
            timestamp_us=microseconds(happened[1]),
            event_id=100,
            track_id=0,
            action=schema.ACTION_CODES["play"],
        )
    ]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_any_order_with_duplicates_and_late_ones_is_the_whole_log(live, opened, seed):
    workspace, store = opened
    chance = random.Random(seed)
    events = [
        listen(
            n,
            user_id=chance.choice([7, 8, 9]),
            action=chance.choice(schema.ACTIONS),
            event_timestamp=START + timedelta(seconds=chance.randrange(40)),  # many ties
        )
        for n in range(90)
    ]
    given = events + chance.sample(events, 40)
    chance.shuffle(given)
    while given:
        size = chance.randrange(1, 12)
        assert set(statuses(live.take(given[:size]))) == {"accepted"}
        given = given[size:]
        if chance.random() < 0.2:
            fold(workspace)
    assert online_rows(store, [7, 8, 9]) == expected_rows(events, LENGTH)
    fold(workspace)
    # What a nightly rebuild sees is the same log, and so the same rows.
    assert sorted(e.event_id for e in logged_events(workspace)) == list(range(90))
    assert expected_rows(logged_events(workspace), LENGTH) == expected_rows(events, LENGTH)


def test_what_breaks_a_rule_is_rejected_and_the_rest_is_taken(live, opened):
    workspace, store = opened
    ahead = datetime.now(UTC) + MAX_AHEAD
    events = [
        listen(1),
        listen(2, event_timestamp=ahead + timedelta(seconds=60)),
        listen(3, event_timestamp=ahead - timedelta(seconds=30)),
        listen(4, event_timestamp=datetime(1989, 1, 1, tzinfo=UTC)),
        listen(1),
        listen(1, track_id=49),
    ]
    receipts = live.take(events)
    assert statuses(receipts) == [
        "accepted",
        "rejected",
        "accepted",
        "rejected",
        "accepted",
        "rejected",
    ]
    assert [receipt.reason for receipt in receipts if receipt.reason] == [
        "event_timestamp_in_the_future",
        "event_timestamp_out_of_range",
        "event_id_of_another_event",
    ]
    assert online_rows(store, [7]) == expected_rows([events[0], events[2]], LENGTH)
    assert since(workspace, START)["event_id"].to_pylist() == [1, 3]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"event_id": 2**63}, "less than"),
        ({"user_id": "7"}, "valid integer"),
        ({"track_id": 1.0}, "valid integer"),
        ({"action": "hum"}, "expected one of play, complete, skip, favourite"),
        ({"event_timestamp": "2026-01-01T00:00:00"}, "timezone"),
        ({"event_timestamp": 1767225600}, "does not say its unit"),
        ({"played_ratio": 1.5}, "less than or equal to 1"),
        ({"played_ratio": float("nan")}, "less than or equal to 1"),
        ({"mood": "good"}, "Extra inputs"),
    ],
)
def test_an_event_of_the_wrong_form_is_none(change, reason):
    with pytest.raises(ValidationError, match=reason):
        LiveEvent(**listen(1).model_dump() | change)


def test_what_was_forgotten_does_not_come_back(live, opened):
    workspace, store = opened
    live.take([listen(1), listen(2, user_id=8)])
    forget_users(workspace, [8], microseconds(datetime.now(UTC)))
    forget_events(workspace, [3])
    receipts = live.take([listen(4, user_id=8), listen(3), listen(5)])
    assert [receipt.reason for receipt in receipts] == ["forgotten", "forgotten", None]
    assert online_rows(store, [7]) == expected_rows([listen(1), listen(5)], LENGTH)
    # Event 2 was in the journal when its user was forgotten: no fold brings it into the log.
    assert fold(workspace) == 2
    assert sorted(e.event_id for e in logged_events(workspace)) == [1, 5]


@pytest.mark.slow
def test_several_processes_on_one_user_lose_no_listen(tmp_path, settings):
    workspace, store = live_store(tmp_path / "w", settings, length=1000)
    command = [sys.executable, "-m", "tests.feature_repo.live_store", str(workspace.root)]
    writers = [
        subprocess.Popen(
            [*command, str(first), "60"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for first in (0, 100, 200)
    ]
    try:
        for writer in writers:
            assert writer.stdout.readline() == "ready\n"
        for writer in writers:  # all at once from here on
            writer.stdin.write("go\n")
            writer.stdin.flush()
        assert [writer.wait(timeout=200) for writer in writers] == [0, 0, 0]
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    events = [listen(first + n) for first in (0, 100, 200) for n in range(60)]
    assert online_rows(store, [7]) == expected_rows(events, 1000)
    assert fold(workspace) == 180


def test_stores_that_cannot_merge_are_refused(tmp_path):
    workspace, store = live_store(tmp_path / "stock", {"type": "sqlite", "path": "o.db"}, LENGTH)
    with pytest.raises(InputError, match=r"rows are not packed; set online_store\.type"):
        LiveEvents(workspace, store)
    workspace, store = live_store(tmp_path / "w", SQLITE, LENGTH)
    store.delete_feature_view(schema.USER_SEQUENCE)
    with pytest.raises(ArtifactError, match="crescendo publish"):
        LiveEvents(workspace, store)


def test_no_event_is_no_work(live):
    assert live.take([]) == []
    assert listen_rows(schema.EVENTS.empty_table()).num_rows == 0
