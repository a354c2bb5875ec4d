"""How evenly IDs are used, and what they say of labels: against scikit-learn, a Counter, a loop."""

import itertools
from collections import Counter

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

from models.sid_usage import (
    collisions,
    expected_information,
    hourglass,
    prefix_ids,
    shared_information,
    usage,
)

labels = st.lists(st.tuples(st.integers(0, 5), st.integers(-3, 3)), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(labels)
def test_nmi_and_ami_are_scikit_learns(pairs):
    a, b = np.array(pairs).T
    found = shared_information(a, b)
    assert found["nmi"] == pytest.approx(normalized_mutual_info_score(a, b), abs=1e-9)
    assert found["ami"] == pytest.approx(adjusted_mutual_info_score(a, b), abs=1e-9)


@pytest.mark.parametrize(("rows", "a", "b"), [(30_000, 16, 256), (30_000, 3, 2), (400, 300, 20)])
def test_information_by_chance_is_scikit_learns(rows, a, b, monkeypatch):
    """Clusters of very unequal size, where the overlaps that are left out are many."""
    generator = np.random.default_rng(0)
    a_N = (generator.random(rows) ** 3 * a).astype(int)
    b_N = (generator.random(rows) ** 2 * b).astype(int)
    table = contingency_matrix(a_N, b_N, sparse=True).astype(np.int64)
    expected = expected_mutual_information(table, rows)
    counts = np.unique(a_N, return_counts=True)[1], np.unique(b_N, return_counts=True)[1]
    assert expected_information(*counts) == pytest.approx(expected, rel=1e-7)
    monkeypatch.setattr("models.sid_usage.OVERLAPS", 1)
    assert expected_information(*counts) == pytest.approx(expected, rel=1e-7)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=40))
def test_collisions_are_those_of_a_counter(rows):
    codes = np.array(rows)
    groups, n = Counter(rows), len(rows)
    assert collisions(prefix_ids(codes)[-1]) == {
        "distinct": len(groups),
        "collision_rate": pytest.approx(1 - len(groups) / n),
        "items_sharing": pytest.approx(sum(c for c in groups.values() if c > 1) / n),
        "largest_group": max(groups.values()),
    }


def test_prefix_ids_are_equal_where_prefixes_are():
    codes = np.random.default_rng(0).integers(0, 3, (40, 3))
    for depth, ids in enumerate(prefix_ids(codes), start=1):
        for i, j in itertools.combinations(range(40), 2):
            assert (ids[i] == ids[j]) == (tuple(codes[i, :depth]) == tuple(codes[j, :depth]))


def test_usage_on_known_counts():
    even = usage(np.full(8, 5))
    assert even["perplexity"] == pytest.approx(8)
    assert even["gini"] == pytest.approx(0)
    assert even["spread"] == 0
    one = usage(np.array([0, 0, 12, 0]))
    assert (one["used"], one["utilisation"]) == (1, 0.25)
    assert one["perplexity"] == pytest.approx(1)
    assert one["gini"] == pytest.approx(1 - 1 / 4)
    counts = np.random.default_rng(0).integers(0, 50, 31)
    difference = np.abs(counts[:, None] - counts[None]).mean() / (2 * counts.mean())
    found = usage(counts)
    assert found["gini"] == pytest.approx(difference)
    assert found["entropy"] == pytest.approx(scipy.stats.entropy(counts))


def test_hourglass_sees_a_narrow_middle():
    wide, narrow = usage(np.full(8, 5)), usage(np.array([40, 0, 0, 0, 0, 0, 0, 0]))
    found = hourglass([wide, narrow, wide])
    assert found["entropy"] == pytest.approx(-1)
    assert found["gini"] == pytest.approx(7 / 8)
    assert found["spread"] > 0
    assert hourglass([wide, narrow]) is None
