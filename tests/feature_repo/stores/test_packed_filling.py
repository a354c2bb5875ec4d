"""Many new rows at once in Redis: whoever else writes meanwhile, the rules of a write hold."""

import numpy as np
import pytest
from feast.types import Int64

from feature_repo import schema
from feature_repo.online import packed_store
from feature_repo.stores.packed_redis import SCRIPT_ROWS
from feature_repo.stores.redis_calls import RedisCalls
from tests.feature_repo.stores.packed_repos import (
    listens,
    packed_redis,
    read_listens,
    repository,
    sequence_view,
    table,
    view,
)

pytestmark = pytest.mark.redis

ROWS = 3 * SCRIPT_ROWS
IDS = np.arange(ROWS)
SENT_LAST = SCRIPT_ROWS + 7
"""A row of the second part."""


@pytest.fixture
def online(redis_server):
    return packed_redis(redis_server, timeout_s=30.0)


def before_fill(monkeypatch, act):
    """Does `act` once, when the second part is known to be new and about to be stored."""
    execute, seen = RedisCalls.execute, []

    def watched(self, *arguments):
        if arguments[0] == b"MSETNX":
            seen.append(len(seen))
            if len(seen) == 2:
                act()
        return execute(self, *arguments)

    monkeypatch.setattr(RedisCalls, "execute", watched)
    return seen


def stats(store, item):
    columns = packed_store(store).read_columns(store.config, [(item, ["plays"])], IDS)
    assert columns.found["stats"].all()
    return columns["stats:plays"].values.tolist()


@pytest.mark.parametrize(("second", "stays"), [(5, True), (4, False), (3, False)])
def test_a_row_that_came_in_between_is_compared_as_ever(
    tmp_path, online, monkeypatch, second, stays
):
    """Written at second 4 by the filling writer, at 5, 4 or 3 by the other one."""
    store = repository(tmp_path, online, [view(tmp_path, "stats", {"plays": Int64})])
    item = store.get_feature_view("stats")

    def other():
        packed_store(store).write_table(
            store.config, item, table([SENT_LAST], [second], plays=[-1])
        )

    parts = before_fill(monkeypatch, other)
    rows = table(IDS, [4.0] * ROWS, plays=IDS)
    packed_store(store).write_table(store.config, item, rows)
    assert len(parts) == 3
    expected = IDS.tolist()
    if stays:
        expected[SENT_LAST] = -1
    assert stats(store, item) == expected


def test_rows_that_are_there_are_not_taken_for_new(tmp_path, online):
    store = repository(tmp_path, online, [view(tmp_path, "stats", {"plays": Int64})])
    item = store.get_feature_view("stats")
    some = IDS[::100]
    seconds = np.where(some % 200 == 0, 9, 1)
    before = table(some, seconds.tolist(), plays=-some)
    packed_store(store).write_table(store.config, item, before)
    for _ in range(2):  # the second time every row is there
        packed_store(store).write_table(store.config, item, table(IDS, [4.0] * ROWS, plays=IDS))
        expected = np.where(IDS % 200 == 0, -IDS, IDS)
        assert stats(store, item) == expected.tolist()
    replaced = table(IDS, [0.0] * ROWS, plays=IDS + 1)
    packed_store(store).write_table(store.config, item, replaced, replace=True)
    assert stats(store, item) == (IDS + 1).tolist()


def test_a_listen_that_came_in_between_is_merged(tmp_path, online, monkeypatch):
    store = repository(tmp_path, online, [sequence_view(tmp_path, 3)])
    item = store.get_feature_view(schema.USER_SEQUENCE)
    live = (SENT_LAST, 9999, 50, 1, 1)

    def other():
        packed_store(store).write_table(store.config, item, listens([live]))

    parts = before_fill(monkeypatch, other)
    rows = [(int(user), int(user), 7, 2, 1) for user in IDS]
    packed_store(store).write_table(store.config, item, listens(rows))
    assert len(parts) == 3
    for user in (0, SENT_LAST - 1, SENT_LAST + 1, ROWS - 1):
        assert read_listens(store, item, user) == [(user, 7, 2, 1)]
    assert read_listens(store, item, SENT_LAST) == [(SENT_LAST, 7, 2, 1), live[1:]]
