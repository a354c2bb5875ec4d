"""Events on their way to the online store: what they explain, by brute force and for real."""

import itertools
import threading
import time
from datetime import UTC, datetime, timedelta

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo import schema
from feature_repo.read_log import ReadLog, ReadLogOptions
from ray_jobs.audit import AuditOptions, audit
from ray_jobs.audit_in_flight import may_have_been
from ray_jobs.replay import ReplayOptions, replayed_service
from ray_jobs.sequences import SequenceOptions, sequences


@settings(deadline=None, max_examples=400)
@given(
    moments=st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(1, 2)), max_size=6),
    length=st.integers(1, 4),
    served=st.none() | st.lists(st.tuples(st.integers(1, 2), st.integers(0, 5)), max_size=4),
    use_state=st.none() | st.sets(st.integers(0, 5)),
    only_tracks=st.booleans(),
)
def test_a_state_is_one_that_some_of_the_events_give(
    moments, length, served, use_state, only_tracks
):
    """Against trying every set of events. `served` is any list, or one of those states."""
    listens = [
        {
            "event_id": number,
            "track_id": track,
            "listened_us": moment,
            "action": 1,
            "came": came,
        }
        for number, (moment, came, track) in enumerate(moments)
    ]
    came = [listen for listen in listens if listen["came"]]
    features = schema.SEQUENCE_COLUMNS[:1] if only_tracks else schema.SEQUENCE_COLUMNS

    def row(those):
        newest = sorted(those, key=lambda a: (a["listened_us"], a["event_id"]))[-length:]
        columns = ("track_id", "listened_us", "action", "event_id")
        if not newest:
            return dict.fromkeys(schema.SEQUENCE_COLUMNS)
        return {
            name: [listen[column] for listen in newest]
            for name, column in zip(schema.SEQUENCE_COLUMNS, columns, strict=True)
        }

    there = [listen for listen in listens if not listen["came"]]
    old = row(there)
    states = [
        row(there + list(some))
        for size in range(len(came) + 1)
        for some in itertools.combinations(came, size)
    ]
    if use_state is not None:
        was = row(there + [listen for listen in came if listen["event_id"] in use_state])
    elif served is None:
        was = dict.fromkeys(schema.SEQUENCE_COLUMNS)
    else:
        was = row([])
        was |= {name: [1] * len(served) for name in schema.SEQUENCE_COLUMNS}
        was[schema.SEQUENCE_TRACK_IDS] = [track for track, _ in served]
        was[schema.SEQUENCE_EVENT_IDS] = [event_id for _, event_id in served]
    expected = any(all(state[name] == was[name] for name in features) for state in states)
    assert may_have_been(length, was, old, came, list(features)) == expected


def test_reads_among_events_that_are_being_taken_never_differ(tmp_path):
    """The real path at the real clock: two writers, one of them repeating the other's events."""
    from feature_repo.live_events import LiveEvent, LiveEvents
    from feature_repo.online import OnlineReader
    from feature_repo.store import open_store

    options = ReplayOptions(folder=tmp_path / "service", reads=1, length=4)
    with replayed_service(tmp_path / "service", options) as service:
        store = open_store(service.workspace)
        live = LiveEvents(service.workspace, store)
        names = [f"{schema.USER_SEQUENCE}:{name}" for name in schema.SEQUENCE_COLUMNS]
        reader = OnlineReader(store, names)
        log = ReadLog(service.workspace, schema.USER_SEQUENCE, "user_id", ReadLogOptions(share=1.0))
        begun = datetime.now(UTC)

        def write():
            for number in range(150):
                minutes = timedelta(minutes=(7 * number) % 50)  # out of order, often late
                live.take(
                    [
                        LiveEvent(
                            event_id=number,
                            user_id=number % 3,
                            track_id=number,
                            event_timestamp=begun - minutes,
                            action="play",
                        )
                    ]
                )

        writers = [threading.Thread(target=write) for _ in range(2)]
        for writer in writers:
            writer.start()
        while any(writer.is_alive() for writer in writers):
            columns = reader.read(np.arange(4))
            log.record(columns, time.time_ns() // 1000)
        columns = reader.read(np.arange(4))
        log.record(columns, time.time_ns() // 1000)
        log.close()
        live.close()
        sequences(service.workspace, SequenceOptions(length=4))
        asked = AuditOptions(until=datetime.now(UTC), grace_s=60.0)
        report = audit(service.workspace, asked)["views"][schema.USER_SEQUENCE]
    assert report["reads"] == log.written > 100
    assert report["entities"] == 4
    assert report["unequal"] == 0
    assert report["examples"] == []
