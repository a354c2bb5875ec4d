"""Several processes write to the same rows at once: nothing is lost, the newest stays."""

import multiprocessing
import traceback

import numpy as np
import pytest
from feast import FeatureStore
from feast.types import Int64

from feature_repo import schema
from feature_repo.online import packed_store
from tests.feature_repo.stores.packed_repos import (
    PACKED_SQLITE,
    listens,
    packed_redis,
    read_listens,
    repository,
    sequence_view,
    table,
    view,
)

WRITERS, EVENTS = 4, 60


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def online(request):
    if request.param == "sqlite":
        return {**PACKED_SQLITE, "timeout_s": 60.0}
    return packed_redis(request.getfixturevalue("redis_server"), timeout_s=30.0)


def run_at_once(work, store, item):
    """`work(writer, store, view)` in WRITERS processes that begin together; all must succeed.

    The parent's store goes along with the fork, so its open connections must not be used there.
    """
    context = multiprocessing.get_context("fork")
    begin, failures = context.Barrier(WRITERS), context.SimpleQueue()

    def child(writer):
        try:
            begin.wait(60)
            work(writer, store, item)
        except BaseException:
            failures.put(traceback.format_exc())

    processes = [context.Process(target=child, args=(writer,)) for writer in range(WRITERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert failures.empty(), failures.get()


def events_of(writer):
    """Every writer has events of its own and repeats of its neighbour's, in its own order."""
    own = [(1, 1000 * writer + n, n * WRITERS + writer, n, 1) for n in range(EVENTS)]
    other = (writer + 1) % WRITERS
    theirs = [(1, 1000 * other + n, n * WRITERS + other, n, 1) for n in range(0, EVENTS, 3)]
    return [(own + theirs)[n] for n in np.random.default_rng(writer).permutation(len(own + theirs))]


def push_events(writer, store, item):
    online = packed_store(store)
    for event in events_of(writer):
        online.write_table(store.config, item, listens([event]))


@pytest.mark.parametrize("length", [25, 1000])
def test_no_listen_of_any_writer_is_lost(tmp_path, online, length):
    store = repository(tmp_path, online, [sequence_view(tmp_path, length)])
    item = store.get_feature_view(schema.USER_SEQUENCE)
    packed_store(store).write_table(store.config, item, listens([(1, 9999, 5000, 1, 1)]))
    run_at_once(push_events, store, item)
    every = {event[1:] for writer in range(WRITERS) for event in events_of(writer)}
    every.add((9999, 5000, 1, 1))
    expected = sorted(every, key=lambda event: (event[1], event[0]))[-length:]
    fresh = FeatureStore(repo_path=str(tmp_path))
    assert read_listens(fresh, item, 1) == expected
    assert read_listens(store, item, 1) == expected


def write_rows(writer, store, item):
    random = np.random.default_rng(writer)
    for _ in range(EVENTS):
        seconds = random.integers(0, 10_000, 8)
        rows = table(np.arange(8), seconds.tolist(), plays=seconds)
        packed_store(store).write_table(store.config, item, rows)


def test_the_newest_row_of_all_writers_stays(tmp_path, online):
    store = repository(tmp_path, online, [view(tmp_path, "stats", {"plays": Int64})])
    item = store.get_feature_view("stats")
    run_at_once(write_rows, store, item)
    newest = np.zeros(8, dtype=int)
    for writer in range(WRITERS):
        random = np.random.default_rng(writer)
        for _ in range(EVENTS):
            newest = np.maximum(newest, random.integers(0, 10_000, 8))
    columns = packed_store(store).read_columns(store.config, [(item, ["plays"])], np.arange(8))
    assert columns["stats:plays"].values.tolist() == newest.tolist()
