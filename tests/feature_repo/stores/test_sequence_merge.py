"""Merging windows of listens, against sorting the union of the logs in plain Python."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.stores.sequence_merge import Windows, merge, windows_of

USERS = 3

# (user, event id, time, track, action). Few values, so that ties and repeats are common; the
# same event id may come with other contents.
listen = st.tuples(
    st.integers(0, USERS - 1),
    st.integers(-3, 6),
    st.integers(-2, 4),
    st.integers(0, 2),
    st.integers(1, 2),
)
log = st.lists(listen, max_size=25)
lengths = st.integers(1, 6)


def columns(rows):
    if not rows:
        return np.zeros(0, dtype="i8"), np.zeros((4, 0), dtype="i8")
    user, event, time, track, action = np.array(rows, dtype="i8").T
    return user, np.stack([track, time, action, event])


def window(rows, length, users=USERS):
    return windows_of(*columns(rows), users, length)


def by_user(windows):
    """[(time, event, track, action), ...] of each user."""
    track, time, action, event = windows.listens_4E.tolist()
    listens = list(zip(time, event, track, action, strict=True))
    ends = np.cumsum(windows.counts_U).tolist()
    starts = [0, *ends[:-1]]
    return [listens[start:end] for start, end in zip(starts, ends, strict=True)]


def brute_force(rows, length, users=USERS):
    found = []
    for user in range(users):
        events = {}
        for _, event, time, track, action in (row for row in rows if row[0] == user):
            events[event] = max(events.get(event, (time, track, action)), (time, track, action))
        ordered = sorted(
            (time, event, track, action) for event, (time, track, action) in events.items()
        )
        found.append(ordered[-length:])
    return found


@given(log, lengths)
def test_windows_equal_brute_force(rows, length):
    assert by_user(window(rows, length)) == brute_force(rows, length)


@given(log, log, lengths)
def test_a_merge_is_the_window_of_the_union_in_either_order(a, b, length):
    merged = merge(window(a, length), window(b, length), length)
    assert by_user(merged) == brute_force(a + b, length)
    assert by_user(merge(window(b, length), window(a, length), length)) == by_user(merged)


@given(log, log, log, lengths)
def test_a_merge_is_associative_and_may_be_repeated(a, b, c, length):
    wa, wb, wc = (window(rows, length) for rows in (a, b, c))
    left = merge(merge(wa, wb, length), wc, length)
    right = merge(wa, merge(wb, wc, length), length)
    assert by_user(left) == by_user(right) == brute_force(a + b + c, length)
    assert by_user(merge(left, wb, length)) == by_user(left)


@pytest.mark.parametrize("length", [20, 100, 1000])
def test_real_lengths_equal_brute_force(length):
    random = np.random.default_rng(length)
    count, users = 6 * length, 4
    rows = np.stack(
        [
            random.integers(0, users, count),
            random.permutation(count) - count // 2,
            random.integers(0, count // 3, count),
            random.integers(0, 50, count),
            random.integers(1, 4, count),
        ],
        axis=1,
    ).tolist()
    parts = [rows[: count // 2], rows[count // 3 :]]
    a, b = (window(part, length, users) for part in parts)
    assert by_user(merge(a, b, length)) == brute_force(rows, length, users)


def test_windows_in_order_with_an_event_twice_are_put_right():
    rows = [(0, 5, 1, 7, 1), (0, 9, 2, 8, 1), (0, 5, 3, 7, 1)]
    assert by_user(window(rows, 10, 1)) == [[(2, 9, 8, 1), (3, 5, 7, 1)]]


def test_more_users_than_sixteen_bits_hold():
    users = (1 << 16) + 3
    rows = [(users - 1, 2, 1, 9, 1), (2, 1, 1, 8, 1), (users - 1, 1, 1, 7, 1)]
    found = windows_of(*columns(rows), users, 5)
    assert np.flatnonzero(found.counts_U).tolist() == [2, users - 1]
    assert found.listens_4E[0].tolist() == [8, 7, 9]


def test_taken_users_keep_their_windows():
    windows = window([(0, 1, 1, 1, 1), (2, 2, 1, 2, 1), (2, 3, 2, 3, 1)], 5)
    assert by_user(windows.take(np.array([2, 1, 0]))) == [by_user(windows)[u] for u in (2, 1, 0)]


def test_windows_of_different_users_are_refused():
    a = Windows(counts_U=np.zeros(2, dtype="i8"), listens_4E=np.zeros((4, 0), dtype="i8"))
    b = Windows(counts_U=np.zeros(3, dtype="i8"), listens_4E=np.zeros((4, 0), dtype="i8"))
    with pytest.raises(ValueError, match="2 and of 3 users"):
        merge(a, b, 5)
