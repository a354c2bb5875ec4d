"""Orders and neighbours under IDs, against scipy or a plain loop."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from models.sid_neighbours import (
    _nearest,
    co_listened_prefix_recall,
    kendall_tau_b,
)
from models.sid_usage import (
    prefix_ids,
)
from tests.models.blobs import blobs


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.floats(-2, 2)), min_size=2, max_size=80))
def test_tau_b_is_scipys(pairs):
    a, b = np.array(pairs).T
    expected = scipy.stats.kendalltau(a, b).statistic
    found, _ = kendall_tau_b(a, b)
    if math.isnan(expected):
        assert found is None
    else:
        assert found == pytest.approx(expected, abs=1e-9)


def test_tau_b_over_several_blocks():
    generator = np.random.default_rng(0)
    a = generator.normal(size=700).round(1)
    b = (a + generator.normal(size=700)).round(1)
    found, _ = kendall_tau_b(a, b)
    assert found == pytest.approx(scipy.stats.kendalltau(a, b).statistic)


@pytest.mark.parametrize("digits", [6, 0])
def test_the_error_of_tau_b_is_its_spread_over_samples(digits):
    """Without and with many ties."""
    generator = np.random.default_rng(0)
    taus, errors = [], []
    for _ in range(400):
        a = generator.normal(size=120)
        b = a + 0.7 * generator.normal(size=120)
        tau, error = kendall_tau_b(a.round(digits), b.round(digits))
        taus.append(tau)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(taus), rel=0.1)


def test_the_nearest_are_found_over_blocks_and_segments(monkeypatch):
    """Against a full sort, with the last block cut short."""
    monkeypatch.setattr("models.sid_neighbours.SEGMENT", 8)
    monkeypatch.setattr("models.sid_neighbours.CHUNK_ELEMENTS", 256 * 64)
    x, queries = blobs(64 * 3 + 13, 5, 9), blobs(300, 5, 9, seed=1)
    found = _nearest(queries, lambda part: x[part], len(x), 6)
    distance = ((queries.double()[:, None] - x.double()[None]) ** 2).sum(2)
    np.testing.assert_array_equal(found, distance.argsort(1)[:, :6].numpy())


def test_co_listened_prefix_recall_by_a_loop():
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 3, (50, 2))
    pairs = generator.integers(0, 50, (300, 2))
    found = co_listened_prefix_recall(prefix_ids(codes), pairs)
    for depth in (1, 2):
        shares = [
            np.mean([(codes[i, :depth] == codes[j, :depth]).all() for a, j in pairs if a == i])
            for i in np.unique(pairs[:, 0])
        ]
        assert found["recall"][depth - 1] == pytest.approx(np.mean(shares))
        every = [
            (codes[i, :depth] == codes[j, :depth]).all()
            for i, j in itertools.combinations(range(50), 2)
        ]
        assert found["chance"][depth - 1] == pytest.approx(np.mean(every))
        assert found["standard_error"][depth - 1] == pytest.approx(scipy.stats.sem(shares))
    assert found["items"] == len(np.unique(pairs[:, 0]))
    assert found["pairs"] == 300
    for wrong in (pairs[:0], pairs[:, :1], pairs + 50, pairs - 50):
        with pytest.raises(ValueError, match="co-listened pairs must be"):
            co_listened_prefix_recall(prefix_ids(codes), wrong)
