"""The greedy choice, against what it promises."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.retrieval.diversity import UNKNOWN, kept

TRAITS = st.lists(st.tuples(st.integers(UNKNOWN, 3), st.integers(UNKNOWN, 2)), max_size=25)
MOST = st.one_of(st.none(), st.integers(1, 4))


@given(TRAITS, st.integers(1, 12), MOST, MOST)
def test_keeps_the_first_ones_within_the_limits(traits, count, of_artist, of_prefix):
    values = np.array(traits, dtype=np.int64).reshape(-1, 2)
    pairs = [(values[:, n], most) for n, most in enumerate((of_artist, of_prefix)) if most]
    places = kept(len(values), count, pairs).tolist()
    assert places == sorted(set(places))
    assert len(places) <= count
    for value, most in pairs:
        counted = Counter(value[places].tolist())
        counted.pop(UNKNOWN, None)
        assert all(number <= most for number in counted.values())
    # Greedy: whatever was passed over before the last one kept had a full artist or prefix.
    end = places[-1] if len(places) == count else len(values)
    for place in set(range(end)) - set(places):
        before = [earlier for earlier in places if earlier < place]
        assert any(
            value[place] != UNKNOWN and (value[before] == value[place]).sum() == most
            for value, most in pairs
        )


def test_refuses_what_keeps_nothing():
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        kept(3, 0, [])
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        kept(3, 1, [(np.zeros(3), 0)])
