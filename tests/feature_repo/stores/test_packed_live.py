"""Listens merged user by user make the bytes that whole columns make, and the window by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo import schema
from feature_repo.errors import ArtifactError, InputError
from feature_repo.online import packed_store
from feature_repo.stores.packed_layout import NO_CREATION, OtherFieldsError
from feature_repo.stores.packed_live import Arrivals, Listen, ListenRows, merge_listens
from feature_repo.stores.packed_row import RowCodec
from feature_repo.stores.packed_sequences import SequenceRows
from feature_repo.stores.packed_view import PackedView
from feature_repo.stores.sequence_merge import windows_of
from tests.feature_repo.stores.packed_repos import (
    PACKED_SQLITE,
    packed_redis,
    repository,
    sequence_view,
)

CODEC = RowCodec((name, "INT64_LIST") for name in schema.SEQUENCE_COLUMNS)
INT64 = st.integers(-(2**63), 2**63 - 1)
FEW = st.integers(-3, 3)  # so that ids and times meet
LISTENS = st.lists(
    st.builds(Listen, timestamp_us=FEW | INT64, event_id=FEW | INT64, track_id=INT64, action=FEW),
    min_size=1,
    max_size=12,
)


def view_of(length, codec=CODEC):
    return PackedView(
        project="p",
        name="listens",
        codec=codec,
        join_keys=("user_id",),
        created_column=None,
        template=None,
        length=length,
    )


def by_columns(length, event_us, listens):
    """The same arrivals as `packed_sequences` merges them."""
    fields = ("track_id", "timestamp_us", "action", "event_id")
    listens_4E = np.array([[getattr(x, name) for x in listens] for name in fields], dtype="i8")
    windows = windows_of(np.zeros(len(listens), dtype="i8"), listens_4E, 1, length)
    return SequenceRows(
        codec=CODEC,
        length=length,
        event_us_U=np.array([event_us]),
        created_us_U=np.array([NO_CREATION]),
        windows=windows,
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(INT64, LISTENS), min_size=1, max_size=5), st.integers(1, 8))
def test_the_bytes_are_those_of_whole_columns(batches, length):
    rows = ListenRows(view_of(length))
    row = expected = None
    given_so_far: dict[int, Listen] = {}
    for event_us, listens in batches:
        row = rows.merged(row, Arrivals(event_us=event_us, listens=listens))
        (expected,) = by_columns(length, event_us, listens).merged_into([expected])
        assert row == expected
    for _, listens in batches:
        for x in listens:
            given_so_far[x.event_id] = max(x, given_so_far.get(x.event_id, x))
    newest_us = max(event_us for event_us, _ in batches)
    by_hand = sorted(given_so_far.values(), key=lambda x: (x.timestamp_us, x.event_id))
    assert rows.unpack(row) == (newest_us, NO_CREATION, by_hand[-length:])
    again = Arrivals(event_us=batches[0][0], listens=batches[0][1])
    assert rows.merged(row, again) == row


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def online(request):
    if request.param == "sqlite":
        return PACKED_SQLITE
    return packed_redis(request.getfixturevalue("redis_server"))


def test_many_users_at_once_with_and_without_a_row(tmp_path, online):
    """More users than one script of Redis takes; every third has a row already."""
    store = repository(tmp_path, online, [sequence_view(tmp_path, 3)])
    item = store.get_feature_view(schema.USER_SEQUENCE)
    packed = packed_store(store)
    rows = ListenRows(packed.packed(store.config, item))

    def listen(user, event_id):
        return Listen(timestamp_us=100 - event_id, event_id=event_id, track_id=user, action=1)

    def merge(users, event_ids):
        new = {
            user: Arrivals(event_us=event_ids[0], listens=[listen(user, n) for n in event_ids])
            for user in users
        }
        merge_listens(packed, store.config, rows, new)

    merge(range(0, 600, 3), [1, 2])
    merge(range(600), [3, 4])
    columns = packed.read_columns(
        store.config,
        [(item, [schema.SEQUENCE_EVENT_IDS, schema.SEQUENCE_TRACK_IDS])],
        np.arange(601),
    )
    events = columns[f"{item.name}:{schema.SEQUENCE_EVENT_IDS}"].to_pylist()
    assert events == [[3, 2, 1] if user % 3 == 0 else [4, 3] for user in range(600)] + [None]
    tracks = columns[f"{item.name}:{schema.SEQUENCE_TRACK_IDS}"].to_pylist()
    assert tracks[:2] == [[0] * 3, [1] * 2]
    assert columns.event_us[item.name].tolist() == [3] * 600 + [0]


def test_a_row_that_cannot_be_read_is_said():
    rows = ListenRows(view_of(5))
    new = Arrivals(event_us=1, listens=[Listen(1, 1, 1, 1), Listen(2, 2, 2, 2)])
    row = rows.merged(None, new)
    for cut in (row[:-8], row[:40], row[:16], row + bytes(32), row[:24] + b"\5" + row[25:]):
        with pytest.raises(ArtifactError, match="damaged"):
            rows.merged(cut, new)
    other = RowCodec([*CODEC.fields, ("more", "INT64")])
    with pytest.raises(OtherFieldsError):
        rows.merged(other.layout.word.to_bytes(8, "little", signed=True) + row[8:], new)
    with pytest.raises(InputError, match="no tag sequence_length"):
        ListenRows(view_of(None))
