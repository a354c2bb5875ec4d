"""Materialization against brute force: ranges, chunks, late rows, replaced sources, checks.

The logs lie far ahead of any clock, so that the moment of a run is that of their last listen.
"""

import json
import shutil
from dataclasses import replace
from datetime import datetime
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from feast import RepoConfig
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo import schema
from feature_repo.errors import ArtifactError, InputError
from feature_repo.online import packed_store
from feature_repo.scratch import only_writer
from feature_repo.store import open_store
from feature_repo.workspace import Workspace
from ray_jobs.materialize import materialize
from ray_jobs.materialize_check import check, expected_of
from ray_jobs.materialize_options import MaterializeOptions
from ray_jobs.materialize_range import store_identity
from ray_jobs.materialize_registry import merge_intervals
from ray_jobs.materialize_source import ViewSource
from ray_jobs.watermarks import folder, read_progress, read_watermark, read_watermarks
from tests.view_sources import (
    LENGTH,
    PAST_HOURS,
    PLAIN,
    SEQUENCE,
    apply_views,
    at,
    expected_state,
    listen,
    online_state,
    packed_settings,
    plain_row,
    random_rows,
    write_both,
    write_source,
)

DAYS = 24.0
OPTIONS = MaterializeOptions()


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "workspace")


@pytest.fixture(scope="module")
def log():
    """Rows of 20 days, ending with one of user 1 in each source."""
    plain, listens = random_rows(0, 40, 900, 20 * DAYS)
    plain.append(plain_row(1, 20 * DAYS + 1, 77))
    listens.append(listen(10_000, 1, 20 * DAYS + 1))
    return plain, listens


def until(rows, hours):
    return [row for row in rows if row["event_timestamp"] <= at(hours)]


def published(workspace, plain, listens):
    write_both(workspace, plain, listens)
    return apply_views(workspace, packed_settings())


def run(workspace, **options):
    return materialize(workspace, MaterializeOptions(**options))["views"]


def view_and_source(workspace, name):
    store = open_store(workspace)
    return store, packed_store(store), ViewSource(workspace, store.get_feature_view(name))


def test_the_first_run_brings_the_newest_of_everything(workspace, log):
    store = published(workspace, *log)
    result = materialize(workspace, OPTIONS)
    moment = max(row["event_timestamp"] for row in log[1])
    assert result["as_of"] == moment.isoformat()
    assert online_state(store) == expected_state(*log, moment)
    assert result["views"][PLAIN]["reason"] == "first time"
    for name, expected in zip((PLAIN, SEQUENCE), expected_state(*log, moment), strict=True):
        view = result["views"][name]
        assert view["rows"] == view["entities"] == view["online"] == len(expected)
        mark = read_watermark(workspace, name)
        assert mark.moment == moment
        assert mark.entities == len(expected)


def test_rows_of_the_future_wait_for_their_moment(workspace, log):
    plain, listens = log
    store = published(workspace, [*plain, plain_row(2, 25 * DAYS, 5)], listens)
    run(workspace)
    assert online_state(store)[0] == expected_state(plain, listens, at(21 * DAYS))[0]
    write_source(workspace, SEQUENCE, [*listens, listen(10_001, 3, 26 * DAYS)])
    run(workspace)
    assert online_state(store)[0][2]["plays"] == 5


def test_a_later_run_reads_back_to_the_bound_and_misses_nothing_in_it(workspace, log):
    """Grows day by day, each day with rows that came up to a day late."""
    store = published(workspace, *(until(rows, 15 * DAYS) for rows in log))
    run(workspace)
    for day in range(16, 21):
        # Of every day before, one row arrived a day later than it is dated.
        late = range(16, day + 1)
        plain = [plain_row(3, (n - 1) * DAYS - 1.6, n) for n in late] + until(log[0], day * DAYS)
        listens = [listen(20_000 + n, 3, (n - 1) * DAYS - 1.6) for n in late]
        listens += until(log[1], day * DAYS)
        moment = max(row["event_timestamp"] for row in listens)
        write_both(workspace, plain, listens)
        views = run(workspace, late_bound_h=48)
        assert online_state(store) == expected_state(plain, listens, moment)
        for name in (PLAIN, SEQUENCE):
            if day > 16:  # the first of these runs has a watermark whose bound was 24 h
                assert views[name]["reason"] == "since the watermark"
                assert views[name]["from"] > at((day - 4) * DAYS).isoformat()
                assert views[name]["late_rows"] == 0


def test_rows_later_than_the_bound_are_counted_and_brought_in(workspace, log):
    plain, listens = log
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


def test_nothing_new_writes_nothing_and_changes_nothing(workspace, log):
    store = published(workspace, *log)
    run(workspace, late_bound_h=0)
    before = online_state(store)
    views = run(workspace, late_bound_h=0)
    assert [view["rows"] for view in views.values()] == [0, 0]
    assert online_state(store) == before
    # Written again with the same rows in other files: still the same settled part.
    write_source(workspace, PLAIN, log[0], parts=3)
    assert run(workspace, late_bound_h=0)[PLAIN]["reason"] == "since the watermark"


@pytest.mark.parametrize("chunk_rows", [1, 100])
def test_chunks_of_any_size_give_the_same_state(workspace, log, chunk_rows):
    store = published(workspace, *(until(rows, 3 * DAYS) for rows in log))
    run(workspace, chunk_rows=chunk_rows)
    moment = max(row["event_timestamp"] for row in until(log[1], 3 * DAYS))
    expected = expected_state(*(until(rows, 3 * DAYS) for rows in log), moment)
    assert online_state(store) == expected
    assert read_progress(workspace, PLAIN) is None


@settings(max_examples=40, deadline=None)
@given(
    hours=st.lists(st.integers(0, 30), min_size=1, max_size=60),
    chunk_rows=st.integers(1, 10),
    span=st.tuples(st.integers(-2, 10), st.integers(11, 32)),
)
def test_chunks_split_the_range_within_their_size(tmp_path_factory, hours, chunk_rows, span):
    workspace = Workspace(tmp_path_factory.mktemp("chunks"))
    write_source(workspace, PLAIN, [plain_row(n, hour, 1) for n, hour in enumerate(hours)])
    start, end = at(span[0]), at(span[1])
    chunks = ViewSource(workspace, _View()).chunks(start, end, chunk_rows)
    inside = [at(hour) for hour in hours if start < at(hour) <= end]
    if len(hours) <= chunk_rows:
        assert chunks == [end]
        return
    if not inside:
        assert chunks == []
        return
    assert chunks[-1] == end
    assert chunks == sorted(set(chunks))
    assert chunks[0] > start
    for first, last in zip([start, *chunks], chunks, strict=False):
        held = [moment for moment in inside if first < moment <= last]
        assert len(held) <= chunk_rows or len(set(held)) == 1


class _View:
    """What ViewSource needs of a view to count rows."""

    name = PLAIN

    class batch_source:
        timestamp_field = "event_timestamp"


def test_a_newer_pushed_row_is_never_overwritten(workspace, log):
    store = published(workspace, *log)
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
        ids = expected_state(*log, moment)[1][4]
        assert listens[4] == [*ids, 40_000][-LENGTH:]


def test_a_source_that_lost_rows_is_read_whole_and_replace_takes_them_out(workspace, log):
    # In the past: what is dated after the making of its source would count as newer than it.
    past = at(0) - at(PAST_HOURS)
    plain, listens = (
        [
            {name: value - past if isinstance(value, datetime) else value for name, value in pairs}
            for pairs in (row.items() for row in rows)
        ]
        for rows in log
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


def test_vanished_entities_are_counted_and_removed_when_asked(workspace):
    listens = [listen(n, n % 4 + 1, PAST_HOURS + n) for n in range(12)]
    plain = [plain_row(user, PAST_HOURS + user, user) for user in range(1, 5)]
    store = published(workspace, plain, listens)
    run(workspace)
    left = [row for row in plain if row["user_id"] != 3]
    write_both(workspace, left, [row for row in listens if row["user_id"] != 3])
    views = run(workspace)
    for name in (PLAIN, SEQUENCE):
        assert (views[name]["vanished"], views[name]["removed"], views[name]["online"]) == (1, 0, 4)
        assert read_watermark(workspace, name).vanished == 1
    views = run(workspace, remove_vanished=True)
    for name in (PLAIN, SEQUENCE):
        assert (views[name]["vanished"], views[name]["removed"], views[name]["online"]) == (0, 1, 3)
    assert set(online_state(store)[0]) == set(online_state(store)[1]) == {1, 2, 4}


def test_an_empty_source_removes_nobody(workspace):
    store = published(workspace, [plain_row(1, PAST_HOURS, 1)], [listen(1, 1, PAST_HOURS)])
    run(workspace)
    write_source(workspace, PLAIN, [])
    with pytest.raises(ArtifactError, match=r"has no row, its 1 online rows were not removed"):
        run(workspace, views=(PLAIN,), remove_vanished=True)
    assert set(online_state(store)[0]) == {1}


def test_an_online_store_that_lost_rows_is_filled_again(workspace, log):
    store = published(workspace, *log)
    run(workspace)
    online = packed_store(store)
    online.delete_rows(store.config, store.get_feature_view(PLAIN), np.arange(1, 11))
    views = run(workspace)
    assert views[PLAIN]["reason"] == "the online store holds 30 of 40 rows"
    assert online_state(store) == expected_state(*log, at(21 * DAYS))


def test_a_missing_entity_is_an_error_with_the_numbers(workspace, log):
    published(workspace, *log)
    run(workspace)
    store, online, source = view_and_source(workspace, PLAIN)
    online.delete_rows(store.config, source.view, np.array([7, 9]))
    with pytest.raises(ArtifactError) as raised:
        check(store, online, source, expected_of(source, at(21 * DAYS), seed=0))
    assert "2 of the source's 40 entities are not online, which holds 38 rows" in str(raised.value)
    assert "missing: 7, 9" in str(raised.value)
    assert "crescendo materialize --full" in str(raised.value)


@pytest.mark.parametrize("name", [PLAIN, SEQUENCE])
def test_a_wrong_value_is_an_error_that_names_it(workspace, log, name):
    published(workspace, *log)
    run(workspace)
    store, online, source = view_and_source(workspace, name)
    row = source.newest(np.array([8]), at(21 * DAYS)).to_pylist()[0]
    feature = source.view.features[0].name
    row[feature] = 4242 if name == PLAIN else [4242] * len(row[feature])
    columns = {key: pa.array([value]) for key, value in row.items()}
    online.write_table(store.config, source.view, pa.table(columns), replace=True)
    with pytest.raises(ArtifactError, match=rf"user_id 8 has {feature}=.*4242"):
        check(store, online, source, expected_of(source, at(21 * DAYS), seed=0))


def test_a_failed_check_leaves_the_watermark(workspace, log, monkeypatch):
    published(workspace, *(until(rows, 10 * DAYS) for rows in log))
    run(workspace)
    before = {mark.view: mark for mark in read_watermarks(workspace)}
    write_both(workspace, *log)

    def lossy(self, config, view, table, **_):
        return type(self).__base__.write_table(self, config, view, table.slice(1))

    with monkeypatch.context() as patch:
        store = open_store(workspace)
        patch.setattr(type(packed_store(store)), "write_table", lossy, raising=False)
        online = packed_store(store)
        for name in (PLAIN, SEQUENCE):
            view = store.get_feature_view(name)
            online.delete_rows(store.config, view, np.arange(1, 30))
        with pytest.raises(ArtifactError, match="not online"):
            run(workspace)
    assert {mark.view: mark for mark in read_watermarks(workspace)} == before
    assert read_progress(workspace, PLAIN) is None
    run(workspace)
    assert online_state(store) == expected_state(*log, at(21 * DAYS))


def test_another_store_and_other_fields_read_the_whole_source(workspace, log):
    store = published(workspace, *log)
    run(workspace)
    changed = packed_settings()
    changed["online_store"]["path"] = "other.db"
    store = apply_views(workspace, changed)
    assert run(workspace)[PLAIN]["reason"] in ("first time", "another store, or other fields")
    assert online_state(store) == expected_state(*log, at(21 * DAYS))


def test_the_identity_of_a_store_holds_no_password(workspace, log):
    store = published(workspace, *log)
    settings_ = packed_settings(redis="127.0.0.1:6379,password=hunter2")["online_store"]
    config = RepoConfig(
        project="p", provider="local", registry="registry.db", online_store=settings_
    )
    identity = store_identity(config, store.get_feature_view(PLAIN))
    assert "127.0.0.1:6379" in identity
    assert "hunter2" not in identity


@pytest.mark.parametrize("registry", ["file", "sql"])
def test_the_registry_holds_one_growing_interval(workspace, log, registry):
    plain, listens = log
    write_both(workspace, until(plain, 10 * DAYS), until(listens, 10 * DAYS))
    config = packed_settings()
    if registry == "sql":
        path = f"sqlite:///{workspace.root / 'registry_sql.db'}"
        config["registry"] = {"registry_type": "sql", "path": path}
    apply_views(workspace, config)
    for day in (10, 11, 12):
        write_both(workspace, until(plain, day * DAYS), until(listens, day * DAYS))
        result = materialize(workspace, OPTIONS)
        view = open_store(workspace).get_feature_view(PLAIN)
        ((start, end),) = view.materialization_intervals
        assert start.isoformat() == "1970-01-01T00:00:00+00:00"
        assert end.isoformat() == result["as_of"]
        assert view.most_recent_end_time == end


@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.integers(0, 10)).map(lambda p: (at(p[0]), at(sum(p)))),
        max_size=8,
    )
)
def test_merged_intervals_hold_the_same_moments(intervals):
    merged = merge_intervals(intervals)
    assert merged == sorted(merged)
    assert all(a[1] < b[0] for a, b in pairwise(merged))
    for hour in range(-1, 62):
        for moment in (at(hour), at(hour + 0.5)):
            inside = [any(s <= moment <= e for s, e in some) for some in (intervals, merged)]
            assert inside[0] == inside[1]


def test_a_stock_store_is_written_by_feast_whole_and_says_so(workspace, log, capfd):
    write_both(workspace, *(until(rows, 10 * DAYS) for rows in log))
    config = packed_settings()
    config["online_store"] = {"type": "sqlite", "path": "online.db"}
    store = apply_views(workspace, config)
    run(workspace)
    write_both(workspace, *log)
    views = run(workspace)
    expected = expected_state(*log, at(21 * DAYS))
    assert views[PLAIN]["reason"] == "one of Feast's own online stores"
    assert views[PLAIN]["rows"] == len(expected[0])
    read = store.get_online_features(
        features=[f"{PLAIN}:plays", f"{SEQUENCE}:{schema.SEQUENCE_EVENT_IDS}"],
        entity_rows=[{"user_id": user} for user in expected[0]],
    ).to_dict()
    assert read["plays"] == [row["plays"] for row in expected[0].values()]
    assert read[schema.SEQUENCE_EVENT_IDS] == [expected[1].get(user) for user in expected[0]]
    assert "one of Feast's own online stores" in capfd.readouterr().out
    assert read_watermark(workspace, PLAIN).entities == len(expected[0])


def test_two_runs_at_a_time_are_refused(workspace, log):
    published(workspace, *log)
    folder(workspace).mkdir()
    with only_writer(folder(workspace)), pytest.raises(InputError, match="another run is writing"):
        run(workspace)
    assert run(workspace)


def test_a_source_replaced_in_the_middle_is_noticed(workspace, log, monkeypatch):
    published(workspace, *log)
    write_all = __import__("ray_jobs.materialize_chunks", fromlist=["write_all"]).write_all

    def replaced_meanwhile(tables, write, name):
        rows = write_all(tables, write, name)
        write_source(workspace, name, log[0][:100], parts=2)
        return rows

    monkeypatch.setattr("ray_jobs.materialize_chunks.write_all", replaced_meanwhile)
    with pytest.raises(ArtifactError, match=r"was replaced while it was materialized|not online"):
        run(workspace, views=(PLAIN,))
    assert read_watermark(workspace, PLAIN) is None


def test_errors_name_what_to_do(workspace, log):
    store = published(workspace, *log)
    with pytest.raises(ArtifactError, match="view nothing is not in the feature store"):
        run(workspace, views=("nothing",))
    run(workspace)
    mark = folder(workspace) / f"{PLAIN}.json"
    mark.write_text('{"view": 1}')
    with pytest.raises(ArtifactError, match=r"is not a watermark .*remove it"):
        run(workspace)
    mark.unlink()
    part = workspace.feature_source(PLAIN) / "part-0.parquet"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=r"part-0.parquet was changed.*crescendo sequences"):
        run(workspace)
    shutil.rmtree(workspace.feature_source(PLAIN))
    with pytest.raises(ArtifactError, match="no parquet file"):
        run(workspace)
    assert store


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"late_bound_h": -1}, "late_bound_h must be hours, at least 0, got -1"),
        ({"late_bound_h": float("nan")}, "late_bound_h"),
        ({"chunk_rows": 0}, "chunk_rows must be at least 1, got 0"),
    ],
)
def test_wrong_options(options, reason):
    with pytest.raises(InputError, match=reason):
        MaterializeOptions(**options)


def test_progress_of_another_plan_is_not_inherited(workspace, log):
    """A progress file of another source or start is ignored; one of this plan is gone on from."""
    from ray_jobs.watermarks import EPOCH, Progress, write_progress

    store = published(workspace, *log)
    source = ViewSource(workspace, store.get_feature_view(PLAIN))
    folder(workspace).mkdir()
    done = Progress(
        source=source.files,
        store=store_identity(store.config, source.view),
        start=EPOCH.isoformat(),
        done=at(30 * DAYS).isoformat(),
    )
    write_progress(workspace, PLAIN, replace(done, source={"part-0.parquet": "another"}))
    assert run(workspace)[PLAIN]["rows"] == 40
    (folder(workspace) / f"{PLAIN}.json").unlink()
    # This one claims what is not true here: nothing is written, and the check finds it.
    packed_store(store).delete_rows(store.config, source.view, np.arange(1, 41))
    write_progress(workspace, PLAIN, done)
    with pytest.raises(ArtifactError, match="40 of the source's 40 entities are not online"):
        run(workspace)
    assert run(workspace)[PLAIN]["rows"] == 40
    path = folder(workspace) / f"{PLAIN}.json"
    assert json.loads(path.read_text())["online"] == 40
