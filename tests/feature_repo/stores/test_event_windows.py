"""Windows of an event log against a loop over its rows, and the streams that must not peek."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.stores.event_windows import EventWindows, count_below, ragged

# Few users and moments: ties, late rows and unknown users meet often.
EVENTS = st.lists(
    st.tuples(
        st.integers(1, 3),  # user
        st.integers(0, 15),  # listened
        st.integers(0, 9) | st.just(0),  # late by
    ),
    max_size=40,
)
QUERIES = st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 30)), min_size=1, max_size=25)
LENGTHS = st.sampled_from([1, 2, 3, 5, 20])


def sorted_log(events):
    """(user, listened, event id, visible) in the order of a log."""
    return sorted(
        (user, listened, number, listened + late + 1)
        for number, (user, listened, late) in enumerate(events)
    )


def index_of(log):
    columns = np.array(log, dtype=np.int64).reshape(-1, 4)
    return EventWindows(columns[:, 0], columns[:, 1], columns[:, 3])


def brute_force(log, user, moment, length):
    """Positions of the last `length` rows that the user's reader may see at the moment."""
    seen = [row for row, (u, _, _, visible) in enumerate(log) if u == user and visible <= moment]
    return seen[-length:]


def answers(log, queries, length):
    users, moments = (np.array(column, dtype=np.int64) for column in zip(*queries, strict=True))
    windows = index_of(log).last(users, moments, length)
    bounds = windows.offsets_Q1
    return [windows.rows_W[a:b].tolist() for a, b in pairwise(bounds)]


@settings(max_examples=400, deadline=None)
@given(events=EVENTS, queries=QUERIES, length=LENGTHS)
def test_windows_equal_a_loop_over_the_rows(events, queries, length):
    log = sorted_log(events)
    expected = [brute_force(log, user, moment, length) for user, moment in queries]
    assert answers(log, queries, length) == expected


@settings(max_examples=300, deadline=None)
@given(events=EVENTS, queries=QUERIES)
def test_the_rows_time_is_that_of_the_newest_visible_row(events, queries):
    log = sorted_log(events)
    users, moments = (np.array(column, dtype=np.int64) for column in zip(*queries, strict=True))
    expected = [
        max((seen for u, _, _, seen in log if u == user and seen <= moment), default=-1)
        for user, moment in queries
    ]
    assert index_of(log).seen_us(users, moments).tolist() == expected


@settings(max_examples=200, deadline=None)
@given(events=EVENTS, planted=EVENTS, queries=QUERIES, length=LENGTHS)
def test_rows_that_are_visible_later_never_change_an_answer(events, planted, queries, length):
    """Ties and late arrivals included: whatever is visible after the moment is not there."""
    for user, moment in queries:
        later = [
            (u, listened, max(late, moment - listened))
            for u, listened, late in planted
            if listened + max(late, moment - listened) + 1 > moment
        ]
        before, after = sorted_log(events), sorted_log(events + later)
        ids = {
            name: [log[row][1:3] for row in answers(log, [(user, moment)], length)[0]]
            for name, log in (("before", before), ("after", after))
        }
        assert ids["before"] == ids["after"]


@pytest.mark.parametrize("length", [1, 20, 100, 1000])
@pytest.mark.parametrize("late_share", [0.0, 0.05, 1.0])
def test_long_histories(length, late_share):
    random = np.random.default_rng(length)
    events = [
        (int(user), int(listened), int(late))
        for user, listened, late in zip(
            random.integers(0, 4, 6000),
            random.integers(0, 3000, 6000),
            random.integers(1, 3000, 6000) * (random.random(6000) < late_share),
            strict=True,
        )
    ]
    log = sorted_log(events)
    queries = list(
        zip(random.integers(0, 5, 60).tolist(), random.integers(0, 6500, 60).tolist(), strict=True)
    )
    expected = [brute_force(log, user, moment, length) for user, moment in queries]
    assert answers(log, queries, length) == expected


def test_a_bulk_of_hidden_rows_is_walked_over():
    """A user's whole history arrives late but its oldest row: the answer lies at its far end."""
    log = sorted_log([(1, 0, 0), *((1, second, 10_000) for second in range(1, 2000))])
    assert answers(log, [(1, 5000), (1, 0), (1, 1), (1, 11_500)], 3) == [
        [0],
        [],
        [0],
        brute_force(log, 1, 11_500, 3),
    ]


def test_an_empty_log_knows_nobody():
    assert answers([], [(1, 5), (2, 6)], 4) == [[], []]


def test_an_unsorted_log_is_refused():
    users, listened = np.array([1, 1, 2]), np.array([5, 4, 1])
    with pytest.raises(ValueError, match="row 1 is not in order"):
        EventWindows(users, listened, listened + 1)


def test_a_row_visible_before_it_happened_is_refused():
    users, listened = np.array([1, 1]), np.array([5, 6])
    with pytest.raises(ValueError, match="row 1 is visible at 6 us"):
        EventWindows(users, listened, np.array([6, 6]))


def test_length_must_be_positive():
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        index_of([]).last(np.array([1]), np.array([1]), 0)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), max_size=8), max_size=8), st.data())
def test_bisections_equal_numpys(groups, data):
    values = np.array([value for group in groups for value in sorted(group)], dtype=np.int64)
    ends = np.cumsum([len(group) for group in groups]).astype(np.int64)
    begins = ends - np.array([len(group) for group in groups], dtype=np.int64)
    needles = np.array(
        data.draw(st.lists(st.integers(-1, 10), min_size=len(groups), max_size=len(groups))),
        dtype=np.int64,
    )
    expected = [
        begin + np.searchsorted(values[begin:end], needle)
        for begin, end, needle in zip(begins, ends, needles, strict=True)
    ]
    assert count_below(values, begins, ends, needles).tolist() == expected


def test_ragged_ranges():
    assert ragged(np.array([5, 9, 0]), np.array([2, 0, 3])).tolist() == [5, 6, 0, 1, 2]
    assert ragged(np.array([], dtype=np.int64), np.array([], dtype=np.int64)).tolist() == []
