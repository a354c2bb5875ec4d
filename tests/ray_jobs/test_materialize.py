"""Materialization against brute force: ranges, late rows, replaced sources, what is newer online.

The logs lie far ahead of any clock, so that the moment of a run is that of their last listen.
"""

from datetime import datetime

import pyarrow as pa
import pytest

from feature_repo import schema
from feature_repo.errors import InputError
from feature_repo.online import packed_store
from feature_repo.scratch import only_writer
from ray_jobs.materialize import materialize
from ray_jobs.materialize_options import MaterializeOptions
from ray_jobs.watermarks import folder, read_watermark
from tests.ray_jobs.materialized import DAYS, published, run
from tests.view_sources import (
    LENGTH,
    PAST_HOURS,
    PLAIN,
    SEQUENCE,
    at,
    expected_state,
    listen,
    online_state,
    plain_row,
    until,
    write_both,
    write_source,
)

pytest_plugins = ["tests.ray_jobs.materialized"]


def test_the_first_run_brings_the_newest_of_everything(workspace, twenty_days):
    store = published(workspace, *twenty_days)
    result = materialize(workspace, MaterializeOptions())
    moment = max(row["event_timestamp"] for row in twenty_days[1])
    assert result["as_of"] == moment.isoformat()
    assert online_state(store) == expected_state(*twenty_days, moment)
    assert result["views"][PLAIN]["reason"] == "first time"
    for name, expected in zip((PLAIN, SEQUENCE), expected_state(*twenty_days, moment), strict=True):
        view = result["views"][name]
        assert view["rows"] == view["entities"] == view["online"] == len(expected)
        mark = read_watermark(workspace, name)
        assert mark.moment == moment
        assert mark.entities == len(expected)


def test_rows_of_the_future_wait_for_their_moment(workspace, twenty_days):
    plain, listens = twenty_days
    store = published(workspace, [*plain, plain_row(2, 25 * DAYS, 5)], listens)
    run(workspace)
    assert online_state(store)[0] == expected_state(plain, listens, at(21 * DAYS))[0]
    write_source(workspace, SEQUENCE, [*listens, listen(10_001, 3, 26 * DAYS)])
    run(workspace)
    assert online_state(store)[0][2]["plays"] == 5


def test_a_later_run_reads_back_to_the_bound_and_misses_nothing_in_it(workspace, twenty_days):
    """Grows day by day, each day with rows that came up to a day late."""
    store = published(workspace, *(until(rows, 15 * DAYS) for rows in twenty_days))
    run(workspace)
    for day in range(16, 21):
        # Of every day before, one row arrived a day later than it is dated.
        late = range(16, day + 1)
        plain = [plain_row(3, (n - 1) * DAYS - 1.6, n) for n in late] + until(
            twenty_days[0], day * DAYS
        )
        listens = [listen(20_000 + n, 3, (n - 1) * DAYS - 1.6) for n in late]
        listens += until(twenty_days[1], day * DAYS)
        moment = max(row["event_timestamp"] for row in listens)
        write_both(workspace, plain, listens)
        views = run(workspace, late_bound_h=48)
        assert online_state(store) == expected_state(plain, listens, moment)
        for name in (PLAIN, SEQUENCE):
            if day > 16:  # the first of these runs has a watermark whose bound was 24 h
                assert views[name]["reason"] == "since the watermark"
                assert views[name]["from"] > at((day - 4) * DAYS).isoformat()
                assert views[name]["late_rows"] == 0


def test_rows_later_than_the_bound_are_counted_and_brought_in(workspace, twenty_days):
    plain, listens = twenty_days
    store = published(workspace, plain, listens)
    run(workspace)
    plain = [*plain, plain_row(500, 3, 9)]
    listens = [*listens, *(listen(30_000 + n, 500, 2 + n) for n in range(3))]
    write_both(workspace, plain, listens)
    views = run(workspace)
    assert views[PLAIN]["late_rows"] == 1
    assert views[SEQUENCE]["late_rows"] == 3
    assert "3 rows came later than the lateness bound" in views[SEQUENCE]["reason"]
    assert read_watermark(workspace, SEQUENCE).late_rows == 3
    assert online_state(store) == expected_state(plain, listens, at(21 * DAYS))
    assert run(workspace)[SEQUENCE]["late_rows"] == 0


def test_nothing_new_writes_nothing_and_changes_nothing(workspace, twenty_days):
    store = published(workspace, *twenty_days)
    run(workspace, late_bound_h=0)
    before = online_state(store)
    views = run(workspace, late_bound_h=0)
    assert [view["rows"] for view in views.values()] == [0, 0]
    assert online_state(store) == before
    # Written again with the same rows in other files: still the same settled part.
    write_source(workspace, PLAIN, twenty_days[0], parts=3)
    assert run(workspace, late_bound_h=0)[PLAIN]["reason"] == "since the watermark"


def test_a_newer_pushed_row_is_never_overwritten(workspace, twenty_days):
    store = published(workspace, *twenty_days)
    run(workspace)
    online = packed_store(store)
    moment = at(21 * DAYS)
    pushed = {**plain_row(4, 20 * DAYS + 5, 123), "event_timestamp": moment}
    view = store.get_feature_view(PLAIN)
    online.write_table(store.config, view, pa.Table.from_pylist([pushed]))
    frame = {
        "user_id": [4],
        "event_timestamp": [moment],
        schema.SEQUENCE_TRACK_IDS: [[5]],
        schema.SEQUENCE_TIMESTAMPS: [[int(at(20.5 * DAYS).timestamp() * 1e6)]],
        schema.SEQUENCE_ACTIONS: [[1]],
        schema.SEQUENCE_EVENT_IDS: [[40_000]],
    }
    sequence = store.get_feature_view(SEQUENCE)
    online.write_table(store.config, sequence, pa.table(frame))
    for full in (False, True):
        run(workspace, full=full)
        plain, listens = online_state(store)
        assert plain[4] == pushed
        ids = expected_state(*twenty_days, moment)[1][4]
        assert listens[4] == [*ids, 40_000][-LENGTH:]


def test_a_source_that_lost_rows_is_read_whole_and_replace_takes_them_out(workspace, twenty_days):
    # In the past: what is dated after the making of its source would count as newer than it.
    past = at(0) - at(PAST_HOURS)
    plain, listens = (
        [
            {name: value - past if isinstance(value, datetime) else value for name, value in pairs}
            for pairs in (row.items() for row in rows)
        ]
        for rows in twenty_days
    )
    store = published(workspace, plain, listens)
    run(workspace)
    last = online_state(store)[1][5]
    newest = {row["user_id"]: row for row in sorted(plain, key=lambda r: r["event_timestamp"])}
    plain = [row for row in plain if row is not newest[5] or row["user_id"] != 5]
    gone = last[-2]
    listens = [row for row in listens if row["event_id"] != gone]
    write_both(workspace, plain, listens)
    views = run(workspace, late_bound_h=24)
    expected = expected_state(plain, listens, at(21 * DAYS))
    for name in (PLAIN, SEQUENCE):
        assert "lost 1 rows: --replace" in views[name]["reason"]
    assert gone in online_state(store)[1][5]
    assert run(workspace, replace=True)[SEQUENCE]["reason"] == "asked for"
    assert online_state(store) == expected


def test_replace_keeps_what_is_newer_than_the_source(workspace):
    """Listens pushed after the source was made stay, also for users whom it does not know."""
    early = [listen(n, user, PAST_HOURS + n) for n in range(6) for user in (1, 2)]
    early = [{**row, "event_id": n} for n, row in enumerate(early)]
    store = published(workspace, [plain_row(1, PAST_HOURS, 1)], early)
    run(workspace)
    online, view = packed_store(store), store.get_feature_view(SEQUENCE)
    for user in (1, 3):
        live = {
            "user_id": [user],
            "event_timestamp": [at(PAST_HOURS + 100)],
            schema.SEQUENCE_TRACK_IDS: [[5]],
            schema.SEQUENCE_TIMESTAMPS: [[int(at(PAST_HOURS + 99).timestamp() * 1e6)]],
            schema.SEQUENCE_ACTIONS: [[1]],
            schema.SEQUENCE_EVENT_IDS: [[900 + user]],
        }
        online.write_table(store.config, view, pa.table(live))
    views = run(workspace, replace=True, remove_vanished=True)
    listens = online_state(store)[1]
    assert listens[1][-1] == 901
    assert listens[3] == [903]
    assert (views[SEQUENCE]["newer"], views[SEQUENCE]["vanished"]) == (1, 0)


def test_two_runs_at_a_time_are_refused(workspace, twenty_days):
    published(workspace, *twenty_days)
    folder(workspace).mkdir()
    with only_writer(folder(workspace)), pytest.raises(InputError, match="another run is writing"):
        run(workspace)
    assert run(workspace)
