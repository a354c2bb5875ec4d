"""The replay: its stream is what it says, served reads equal the log, and planted bugs do not."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo import schema
from feature_repo.errors import InputError
from feature_repo.read_log import READ_AT, served_reads
from feature_repo.stores.packed_layout import NO_CREATION
from feature_repo.stores.packed_live import ListenRows
from feature_repo.workspace import Workspace
from ray_jobs.audit import audit
from ray_jobs.ingest import IngestOptions, ingest
from ray_jobs.replay import ReplayOptions, audit_options, replay, replayed_service, stream
from ray_jobs.replay_stream import StreamOptions, plan_stream, read_moments
from ray_jobs.sequences import SequenceOptions, sequences
from tests.event_logs import event, write_events

USERS = 6


def random_log(seed=0, events=400):
    """Few users and moments, so that sequences fill and moments meet."""
    random = np.random.default_rng(seed)
    return [
        event(
            number,
            int(random.integers(1, USERS + 1)),
            int(random.integers(1, 30)),
            int(random.integers(0, 3000)),
            str(random.choice(schema.ACTIONS, p=[0.3, 0.4, 0.2, 0.1])),
        )
        for number in range(events)
    ]


def as_table(log):
    return pa.Table.from_pylist(log, schema=schema.EVENTS)


PLENTY = StreamOptions(late_share=0.3, duplicate_share=0.3, tied_share=0.3)


def us(column):
    return column.cast(pa.int64()).to_numpy()


# --- the stream -----------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1000),
    events=st.integers(1, 120),
    shares=st.tuples(*[st.sampled_from([0.0, 0.3, 1.0])] * 3),
)
def test_the_stream_brings_every_event_as_planted(seed, events, shares):
    late, duplicate, tied = shares
    options = StreamOptions(late_share=late, duplicate_share=duplicate, tied_share=tied, seed=seed)
    log = as_table(random_log(seed, events))
    pushes, planted = plan_stream(log, options)
    clocks = [push.clock_us for push in pushes]
    assert clocks == sorted(set(clocks))
    arrivals = pa.concat_tables([push.events for push in pushes])
    for push in pushes:
        assert us(push.events["event_timestamp"]).max() <= push.clock_us
    times = Counter(arrivals["event_id"].to_pylist())
    assert set(times) == set(range(events))
    assert len(arrivals) == events + planted.duplicates
    assert max(times.values()) <= 2
    if duplicate in (0.0, 1.0):
        assert planted.duplicates == duplicate * events
    # The two arrivals of an event say the same, and what the log said but for planted ties.
    rows = {row["event_id"]: row for row in log.to_pylist()}
    sent = {row["event_id"]: row for row in arrivals.to_pylist()}
    moved = 0
    for row in arrivals.to_pylist():
        assert row == sent[row["event_id"]]
        original = rows[row["event_id"]]
        for name in ("user_id", "track_id", "action"):
            assert row[name] == original[name]
        assert row["event_timestamp"] <= original["event_timestamp"]
    for event_id, row in sent.items():
        if row["event_timestamp"] < rows[event_id]["event_timestamp"]:
            moved += 1
            assert any(
                other["event_timestamp"] == row["event_timestamp"]
                for other in sent.values()
                if other["user_id"] == row["user_id"] and other["event_id"] != event_id
            )
    assert moved == planted.tied
    if late == 0 and duplicate == 0:
        stamps = us(arrivals["event_timestamp"])
        assert (np.diff(stamps) >= 0).all()
    if late == 1:
        assert planted.late == events


def test_the_same_seed_gives_the_same_stream_and_another_another():
    log = as_table(random_log())
    first, again = (plan_stream(log, PLENTY)[0] for _ in range(2))
    other, _ = plan_stream(log, replace(PLENTY, seed=1))
    assert [push.events.to_pylist() for push in first] == [p.events.to_pylist() for p in again]
    assert [push.events.to_pylist() for push in first] != [p.events.to_pylist() for p in other]


def test_reads_lie_between_pushes_and_at_both_edges():
    pushes, _ = plan_stream(as_table(random_log()), PLENTY)
    users = np.arange(1, USERS + 3)
    moments = list(read_moments(pushes, 5000, users, seed=0))
    assert [place for place, _, _ in moments] == list(range(len(pushes)))
    assert sum(len(moments_us) for _, moments_us, _ in moments) == 5000
    at_edges = Counter()
    for place, moments_us, ids in moments:
        assert len(ids) == len(moments_us)
        assert (np.diff(moments_us) >= 0).all()
        assert (moments_us > pushes[place].clock_us).all()
        at_edges["first"] += int((moments_us == pushes[place].clock_us + 1).sum())
        if place + 1 < len(pushes):
            assert (moments_us <= pushes[place + 1].clock_us).all()
            at_edges["last"] += int((moments_us == pushes[place + 1].clock_us).sum())
    assert min(at_edges.values()) > 1000
    assert {int(user) for _, _, ids in moments for user in ids} == set(users.tolist())


# --- the whole, and what it would catch -------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("source"))
    write_events(workspace, random_log())
    return workspace


SMALL = ReplayOptions(stream=PLENTY, reads=3000, length=5)


def check(result, reads):
    assert result["passed"]
    report = result["audit"]
    assert (report["reads"], report["later"]) == (reads, 0)
    assert (report["unequal"], report["in_flight"]) == (0, 0)
    assert set(report["features"]) == set(schema.SEQUENCE_COLUMNS)
    for counts in report["features"].values():
        assert counts["compared"] == counts["equal"] == reads
        assert counts["inserts"] == counts["deletes"] == 0
        assert counts["served_lengths"] == counts["offline_lengths"]


def test_every_read_of_a_replayed_log_equals_the_log(source):
    result = replay(source, SMALL)
    check(result, 3000)
    assert min(result["planted"].values()) > 20
    assert result["audit"]["entities"] == USERS + 1
    assert result["audit"]["features"][schema.SEQUENCE_TRACK_IDS]["served_lengths"]["max"] == 5


@pytest.mark.redis
def test_the_same_on_redis_which_is_left_empty(source, redis_server):
    import redis

    result = replay(source, replace(SMALL, stores=f"redis://{redis_server}/0"))
    check(result, 3000)
    host, port = redis_server.split(":")
    with redis.Redis(host=host, port=int(port)) as client:
        assert client.dbsize() == 0


@pytest.mark.slow
def test_no_read_of_real_listeners_differs(tmp_path, shared_data):
    workspace = Workspace(tmp_path)
    ingest(workspace, IngestOptions(source="30music-subset", path=shared_data("30music-subset")))
    result = replay(workspace, ReplayOptions(events=6000, reads=20_000))
    check(result, 20_000)


def replayed_with(source, folder, *, take=None, tamper=None):
    """The audit's report of a replay whose service takes events by `take(service, push)`, or
    whose read log is changed afterwards."""
    options = replace(SMALL, reads=1500, folder=folder)
    log = pq.read_table(source.events, schema=schema.EVENTS)
    pushes, _ = plan_stream(log, PLENTY)
    users = np.unique(log["user_id"].to_numpy())
    with replayed_service(folder, options) as service:
        changed = service if take is None else replace(service, take=lambda p: take(service, p))
        stream(changed, pushes, users, options)
        sequences(service.workspace, SequenceOptions(length=options.length))
        if tamper:
            for part in served_reads(service.workspace, schema.USER_SEQUENCE).iterdir():
                pq.write_table(tamper(pq.read_table(part)), part)
        return audit(service.workspace, audit_options())["views"][schema.USER_SEQUENCE]


def shifted(table, by_us):
    moments = pa.array(us(table[READ_AT]) + by_us).cast(schema.TIMESTAMP)
    return table.set_column(table.schema.get_field_index(READ_AT), READ_AT, moments)


@pytest.mark.parametrize("by_us", [-1, 1])
def test_reads_one_microsecond_off_are_caught(source, tmp_path, by_us):
    assert replayed_with(source, tmp_path / "on")["unequal"] == 0
    report = replayed_with(source, tmp_path / "off", tamper=lambda table: shifted(table, by_us))
    assert report["unequal"] > 100


def test_a_merge_that_counts_a_repeated_event_twice_is_caught(source, tmp_path, monkeypatch):
    def without_dedupe(rows, stored, arrivals):
        event_us, created_us, listens = (arrivals.event_us, NO_CREATION, [])
        if stored is not None:
            event_us, created_us, listens = rows.unpack(stored)
        every = sorted([*listens, *arrivals.listens])[-SMALL.length :]
        return rows.pack(max(event_us, arrivals.event_us), created_us, every)

    monkeypatch.setattr(ListenRows, "merged", without_dedupe)
    report = replayed_with(source, tmp_path)
    assert report["features"][schema.SEQUENCE_EVENT_IDS]["inserts"] > 100


def test_an_online_row_that_loses_an_event_is_caught(source, tmp_path):
    def forgetful(service, push):
        first = push.events.slice(0, 1)
        service.take(replace(push, events=push.events.slice(1)))
        # The journal has it, the online row not: a merge that another writer overwrote.
        service.journal(replace(push, events=first))

    report = replayed_with(source, tmp_path, take=forgetful)
    tracks = report["features"][schema.SEQUENCE_TRACK_IDS]
    assert report["unequal"] > 100
    assert tracks["deletes"] > 100


def test_a_row_in_the_order_of_arrival_is_caught(source, tmp_path, monkeypatch):
    def by_arrival(table):
        lists = {name: table[name].to_pylist() for name in schema.SEQUENCE_COLUMNS}
        for values in lists.values():
            for listens in values:
                if listens:
                    listens[-2:] = listens[:-3:-1]  # the last two change places
        for name, values in lists.items():
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, pa.array(values, table.schema.field(name).type))
        return table

    report = replayed_with(source, tmp_path, tamper=by_arrival)
    ids = report["features"][schema.SEQUENCE_EVENT_IDS]
    assert ids["mismatched"] > 1000
    assert ids["inserts"] == ids["deletes"] == ids["mismatched"]


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reads": 0}, "reads is 0; expected at least 1"),
        ({"events": 0}, "events is 0; expected at least 1"),
        ({"length": -1}, "length is -1; expected at least 1"),
        ({"stores": "stores.yaml"}, "stores is 'stores.yaml'; expected redis://HOST:PORT/DB"),
        ({"stores": "redis://h?project=p"}, "a replay has a project of its own"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        ReplayOptions(**options)


@pytest.mark.parametrize("name", ["late_share", "duplicate_share", "tied_share"])
def test_a_share_is_at_most_one(name):
    with pytest.raises(InputError, match=f"{name} is 1.1; expected a share from 0 to 1"):
        StreamOptions(**{name: 1.1})


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not empty; give another one"):
        ReplayOptions(folder=tmp_path)


def test_a_workspace_without_events_names_the_command(tmp_path):
    with pytest.raises(InputError, match="ingest"):
        replay(Workspace(tmp_path), SMALL)
