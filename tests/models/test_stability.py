"""Counts against numpy's own histogram, and the index against its definition and known values."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.stability import HALF_ROW, SCORE_BINS, code_counts, score_counts, stability_index


@given(arrays(np.float32, st.integers(0, 300), elements=st.floats(0, 1, width=32)))
def test_scores_are_counted_as_by_numpy(scores_N):
    edges = np.arange(SCORE_BINS + 1) / SCORE_BINS
    # The product is rounded: what lies within that of an edge may count on either side.
    inside = np.abs(scores_N[:, None] - edges[1:-1]).min(1, initial=1) > 1e-6
    expected, _ = np.histogram(scores_N[inside].astype(np.float64), bins=edges)
    np.testing.assert_array_equal(score_counts(scores_N[inside]), expected)
    assert score_counts(scores_N).sum() == len(scores_N)


def test_both_ends_are_counted():
    counts = score_counts(np.array([0.0, 1.0], dtype=np.float32))
    assert (counts[0], counts[-1], counts.sum()) == (1, 1, 2)


@pytest.mark.parametrize("score", [-0.1, -np.inf])
def test_what_is_no_probability_is_refused(score):
    with pytest.raises(ValueError, match="negative"):
        score_counts(np.array([0.5, score]))


@given(st.lists(st.tuples(st.integers(-1, 6), st.integers(-1, 6)), max_size=60))
def test_codes_are_counted_as_one_by_one(rows):
    codes_NF = np.array(rows, dtype=np.int64).reshape(-1, 2)
    counts = code_counts(codes_NF, 7)
    assert counts.shape == (2, 8)
    for family in range(2):
        for code in range(-1, 7):
            assert counts[family, code + 1] == sum(row[family] == code for row in rows)


def test_the_index_by_its_definition():
    trained, served = [30, 50, 20], [10, 40, 50]
    q = [(count + HALF_ROW) / (100 + 3 * HALF_ROW) for count in trained]
    p = [(count + HALF_ROW) / (100 + 3 * HALF_ROW) for count in served]
    expected = sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))
    found = stability_index(np.array(trained), np.array(served))
    assert found == pytest.approx(expected, rel=1e-12)
    assert found > 0.25


def test_the_index_of_equal_shares_is_zero_and_of_disjoint_ones_finite():
    counts = np.array([100, 200, 700])
    assert stability_index(counts, counts * 1000) == pytest.approx(0, abs=1e-4)
    assert 1 < stability_index(np.array([100, 0]), np.array([0, 100])) < 20


def test_other_bins_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\) bins, trained over \(2,\)"):
        stability_index(np.zeros(2), np.zeros(3))
