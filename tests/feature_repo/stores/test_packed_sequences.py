"""Sequence views on both packed stores: writes merge, whatever comes in whatever order."""

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
from feast.types import Int64

from feature_repo import schema
from feature_repo.errors import InputError
from feature_repo.online import packed_store
from tests.feature_repo.stores.packed_repos import (
    PACKED_SQLITE,
    START,
    listens,
    packed_redis,
    read_listens,
    repository,
    sequence_view,
    view,
)


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def online(request):
    """`online_store` of feature_store.yaml, for each packed store."""
    if request.param == "sqlite":
        return PACKED_SQLITE
    return packed_redis(request.getfixturevalue("redis_server"))


def test_pushes_append_listens_in_any_order_and_once(tmp_path, online):
    store = repository(tmp_path, online, [sequence_view(tmp_path, 3)])
    item = store.get_feature_view(schema.USER_SEQUENCE)
    events = [(7, 1, 5, 11, 1), (7, 2, 3, 12, 2), (7, 3, 9, 13, 1), (7, 4, 4, 14, 1)]
    for event in [*events, *events[::-1]]:
        store.push("listening_events", listens([event]).to_pandas())
    assert read_listens(store, item, 7) == [(4, 4, 14, 1), (1, 5, 11, 1), (3, 9, 13, 1)]
    columns = packed_store(store).read_columns(
        store.config, [(item, [schema.SEQUENCE_ACTIONS])], np.array([7, 8])
    )
    newest = START + timedelta(seconds=9)
    assert columns.event_us[item.name].tolist() == [int(newest.timestamp() * 1e6), 0]
    assert columns.found[item.name].tolist() == [True, False]


def test_pushes_and_a_rebuild_end_in_the_same_bytes(tmp_path, online):
    """Random events of a few users: one by one, in shuffled batches, or as whole windows."""
    random = np.random.default_rng(5)
    events = [
        (int(u), n, int(s), int(random.integers(1, 50)), 1)
        for n, (u, s) in enumerate(random.integers(0, [4, 60], (200, 2)))
    ]
    store = repository(tmp_path, online, [sequence_view(tmp_path, 20)])
    item, packed = store.get_feature_view(schema.USER_SEQUENCE), packed_store(store)
    rows = []
    for way in range(3):
        packed.delete_rows(store.config, item, np.arange(4))
        shuffled = [events[n] for n in random.permutation(len(events))]
        step = (1, 37, len(events))[way]
        for start in range(0, len(shuffled), step):
            packed.write_table(store.config, item, listens(shuffled[start : start + step]))
        keys = [(packed.packed(store.config, item), np.arange(4))]
        rows.append(packed._fetch(store.config, keys)[0])
        for user_id in range(4):
            expected = sorted((s, e, t, a) for u, e, s, t, a in events if u == user_id)[-20:]
            expected = [(e, s, t, a) for s, e, t, a in expected]
            assert read_listens(store, item, user_id) == expected
    assert rows[0] == rows[1] == rows[2]


def test_a_replaced_sequence_forgets_what_was_there(tmp_path, online):
    store = repository(tmp_path, online, [sequence_view(tmp_path, 3)])
    item = store.get_feature_view(schema.USER_SEQUENCE)
    packed = packed_store(store)
    packed.write_table(store.config, item, listens([(1, 1, 9, 5, 1)]))
    later = listens([(1, 3, 3, 7, 1), (1, 2, 2, 6, 1), (1, 3, 3, 7, 1)])
    packed.write_table(store.config, item, later, replace=True)
    assert read_listens(store, item, 1) == [(2, 2, 6, 1), (3, 3, 7, 1)]


def test_sequence_lists_must_be_parallel(tmp_path, online):
    store = repository(tmp_path, online, [sequence_view(tmp_path, 3)])
    item = store.get_feature_view(schema.USER_SEQUENCE)
    rows = listens([(1, 1, 9, 5, 1)])
    column = rows.column_names.index(schema.SEQUENCE_ACTIONS)
    for value, message in (([[1, 2]], "differ in length"), ([None], "null lists")):
        lists = pa.array(value, pa.list_(pa.int64()))
        with pytest.raises(InputError, match=message):
            packed_store(store).write_table(
                store.config, item, rows.set_column(column, schema.SEQUENCE_ACTIONS, lists)
            )


def test_a_sequence_view_has_its_four_lists_and_a_whole_number(tmp_path, online):
    item = sequence_view(tmp_path, 3)
    item.tags[schema.SEQUENCE_LENGTH_TAG] = "many"
    with pytest.raises(InputError, match="whole number above 0, got 'many'"):
        repository(tmp_path, online, [item])
    item = view(tmp_path, "stats", {"plays": Int64})
    item.tags[schema.SEQUENCE_LENGTH_TAG] = "3"
    with pytest.raises(InputError, match="a sequence view has exactly"):
        repository(tmp_path, online, [item])
