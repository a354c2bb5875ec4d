"""Kendall's tau of histories against scipy's, user by user."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from models import forgetting as module
from models.forgetting import forgetting, tau_b


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=9),
        min_size=1,
        max_size=6,
    )
)
def test_tau_b_is_scipys_with_ties_and_padding(users):
    longest = max(map(len, users))
    near = torch.zeros(2, len(users), longest, dtype=torch.float64)
    there_CT = torch.zeros(len(users), longest, dtype=torch.bool)
    for place, pairs in enumerate(users):
        near[:, place, : len(pairs)] = torch.tensor(pairs, dtype=torch.float64).T
        near[:, place, len(pairs) :] = 7  # padding that would be concordant if it counted
        there_CT[place, : len(pairs)] = True
    expected = [kendalltau(*zip(*pairs, strict=True)).statistic for pairs in users]
    np.testing.assert_allclose(tau_b(near[0], near[1], there_CT).numpy(), expected, atol=1e-12)


def world(seed: int, *, users: int = 40, items: int = 30):
    """Two spaces of the same items, the second the first with noise, and histories in them."""
    random = np.random.default_rng(seed)
    first = random.normal(size=(items + 1, 6)).astype("f4")
    second = first @ random.normal(size=(6, 9)).astype("f4") * 0.2
    second += random.normal(size=second.shape).astype("f4") * 0.3
    lengths_U = random.integers(0, 12, users)
    rows_P = random.integers(1, items + 1, lengths_U.sum()).astype(np.int32)
    targets_U = random.integers(1, items + 1, users).astype(np.int32)
    return torch.from_numpy(first), torch.from_numpy(second), rows_P, lengths_U, targets_U


def one_by_one(first, second, rows_P, lengths_U, targets_U, by):
    """The definition: scipy's tau of the two lists of distances, each user alone."""
    found, start = [], 0
    for length, target in zip(lengths_U, targets_U, strict=True):
        rows = rows_P[start : start + length]
        start += length
        near = []
        for table in (first.double().numpy(), second.double().numpy()):
            if by == "cosine":
                table = table / np.linalg.norm(table, axis=1, keepdims=True)
            near.append([np.sum((table[row] - table[target]) ** 2) for row in rows])
        found.append(kendalltau(*near).statistic if length >= 2 else np.nan)
    return np.array(found)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.sampled_from(["distance", "cosine"]))
def test_every_users_tau_is_scipys(seed, by):
    made = world(seed)
    found = forgetting(*made, by=by)
    np.testing.assert_allclose(found.tau_U, one_by_one(*made, by), atol=1e-12)


def test_chunks_change_nothing(monkeypatch):
    made = world(3)
    whole = forgetting(*made).tau_U
    monkeypatch.setattr(module, "CHUNK_VALUES", 300)
    np.testing.assert_array_equal(forgetting(*made).tau_U, whole)


def test_a_turned_and_stretched_space_forgets_nothing():
    first, _, *rest = world(4)
    turn, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))
    found = forgetting(first, first @ turn * 3, *rest)
    assert found.mean == pytest.approx(1)
    assert found.spread == pytest.approx(0)


def test_an_unrelated_space_keeps_nothing():
    random = np.random.default_rng(5)
    first, other = (torch.from_numpy(random.normal(size=(500, 8))) for _ in range(2))
    lengths_U = np.full(600, 10)
    rows_P, targets_U = random.integers(0, 500, 6000), random.integers(0, 500, 600)
    found = forgetting(first, other, rows_P, lengths_U, targets_U)
    # The mean of 600 taus of ten independent places has s.d. sqrt(25 / 405 / 600) = .01.
    assert abs(found.mean) < 0.04
    assert found.left_out == 0


def test_users_without_a_tau_are_counted():
    table = torch.tensor([[0.0], [1.0], [2.0], [4.0]])
    same = torch.zeros(4, 1)
    histories = np.array([1, 1, 2, 3, 1, 1]), np.array([1, 3, 0, 2]), np.array([1, 3, 1, 3])
    found = forgetting(table, table, *histories)  # one item; two; none; one item twice
    np.testing.assert_array_equal(np.isnan(found.tau_U), [True, False, True, True])
    assert found.plain() == {"tau": 1.0, "spread": 0.0, "users": 1, "left_out": 3}
    nothing = forgetting(table, same, *histories)
    assert np.isnan(nothing.mean)
    assert np.isnan(nothing.spread)
    assert nothing.left_out == 4


def test_histories_that_do_not_fit_are_refused():
    table = torch.ones(4, 2)
    rows, lengths, targets = np.array([1, 2]), np.array([2]), np.array([3])
    with pytest.raises(ValueError, match="same items, got 4 and 3"):
        forgetting(table, table[:3], rows, lengths, targets)
    with pytest.raises(ValueError, match="1 lengths of together 2 do not fit 1 places"):
        forgetting(table, table, rows[:1], lengths, targets)
    with pytest.raises(ValueError, match="target rows must be 0 to 3, got 4 to 4"):
        forgetting(table, table, rows, lengths, np.array([4]))
