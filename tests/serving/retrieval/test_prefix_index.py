"""Tracks that share a prefix, against plain Python over lists of codes."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.batch import MISSING_CODE
from serving.retrieval.prefix_index import PrefixIndex, is_among


@st.composite
def worlds(draw):
    families, levels = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    tracks = draw(st.integers(1, 30))
    ids = st.lists(st.integers(0, 2), min_size=levels, max_size=levels)
    codes = [[draw(st.one_of(st.none(), ids)) for _ in range(tracks)] for _ in range(families)]
    popularity = draw(st.permutations(range(tracks)))
    history = draw(st.lists(st.integers(0, tracks - 1), max_size=6))
    taken = sorted(draw(st.sets(st.integers(0, tracks - 1), max_size=8)))
    return codes, popularity, history, taken, draw(st.integers(0, 12)), levels


def plain(codes, popularity, history, taken, count, levels):
    """Ring by ring: deepest prefix, family by family, most listens, most popular."""
    found = []
    for depth in range(levels, 0, -1):
        for family in codes:
            votes = {}
            for row, own in enumerate(family):
                if own is None or row in taken or row in found:
                    continue
                shared = sum(
                    family[h] is not None and family[h][:depth] == own[:depth] for h in history
                )
                if shared:
                    votes[row] = shared
            ring = sorted(votes, key=lambda row: (-votes[row], popularity[row]))
            found += ring[: count - len(found)]
    return found


@settings(max_examples=300, deadline=None)
@given(worlds())
def test_equals_plain_python(world):
    codes, popularity, history, taken, count, levels = world
    missing = [MISSING_CODE] * levels
    dense = np.array([[own or missing for own in family] for family in codes])
    index = PrefixIndex(dense, np.array(popularity))
    rows = index.nearest(np.array(history, dtype=np.int64), count, np.array(taken, dtype=np.int64))
    assert rows.tolist() == plain(codes, popularity, history, taken, count, levels)


def test_codes_that_together_pass_64_bits():
    codes = np.random.default_rng(0).integers(0, 2**40, (1, 50, 3))
    codes[0, 25:, :2] = codes[0, :25, :2]
    index = PrefixIndex(codes, np.arange(50))
    assert index.nearest(np.array([7]), 5, np.array([7])).tolist() == [32]


def test_no_track_and_no_history():
    nothing = np.empty(0, dtype=np.int64)
    empty = PrefixIndex(np.empty((2, 0, 3), dtype=np.int64), nothing)
    assert empty.nearest(nothing, 5, nothing).tolist() == []
    assert (
        PrefixIndex(np.zeros((1, 4, 2), int), np.arange(4)).nearest(nothing, 5, nothing).tolist()
        == []
    )


@given(st.lists(st.integers(-5, 5)), st.sets(st.integers(-5, 5)))
def test_is_among(values, rising):
    found = is_among(np.array(values, dtype=np.int64), np.array(sorted(rising), dtype=np.int64))
    assert found.tolist() == [value in rising for value in values]
