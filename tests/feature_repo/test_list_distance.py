"""Inserts and deletes between two lists, against the textbook table."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.list_distance import inserts_and_deletes

LISTS = st.lists(st.integers(0, 5), max_size=80)


def fewest_edits(served, expected):
    """The table of the fewest inserts plus deletes, cell by cell."""
    above = list(range(len(expected) + 1))
    for row, item in enumerate(served, start=1):
        line = [row]
        for column, other in enumerate(expected, start=1):
            edits = above[column - 1] if item == other else 1 + min(above[column], line[-1])
            line.append(edits)
        above = line
    return above[-1]


@settings(deadline=None)
@given(served=LISTS, expected=LISTS)
def test_counts_are_the_fewest(served, expected):
    inserts, deletes = inserts_and_deletes(served, expected)
    assert inserts >= 0
    assert deletes >= 0
    assert inserts + deletes == fewest_edits(served, expected)
    assert len(served) - inserts == len(expected) - deletes


def test_each_kind_is_told_from_the_other():
    assert inserts_and_deletes([1, 2, 3], [1, 2, 3]) == (0, 0)
    assert inserts_and_deletes([1, 2, 2, 3], [1, 2, 3]) == (1, 0)
    assert inserts_and_deletes([1, 3], [1, 2, 3]) == (0, 1)
    assert inserts_and_deletes([2, 1], [1, 2]) == (1, 1)
    assert inserts_and_deletes([], ["a", "b"]) == (0, 2)


def test_long_lists_of_many_words_of_bits():
    items = list(range(1000))
    moved = items[700:] + items[:700]
    assert inserts_and_deletes(moved, items) == (300, 300)
    rest = sorted(random.Random(0).sample(items, 900))
    assert inserts_and_deletes(rest, items) == (0, 100)
