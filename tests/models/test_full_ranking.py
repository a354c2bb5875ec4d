"""Full ranking against a plain loop over sorted lists, ties and masks included."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from models import full_ranking
from models.full_ranking import (
    hits_and_gains,
    ranking_metrics,
    ranks_of_scores,
    ranks_of_vectors,
)


def rank_by_list(scores, target, seen):
    """Sorted by score, and of equals the target last."""
    left = [item for item in range(1, len(scores)) if item not in seen or item == target]
    left.sort(key=lambda item: (-scores[item], item == target))
    return left.index(target) + 1


@st.composite
def rankings(draw):
    users, items = draw(st.integers(0, 6)), draw(st.integers(2, 8))
    scores = draw(
        st.lists(
            st.lists(st.integers(-2, 2), min_size=items, max_size=items),
            min_size=users,
            max_size=users,
        )
    )
    targets = [draw(st.integers(1, items - 1)) for _ in range(users)]
    seen = [
        [item for item in draw(st.lists(st.integers(1, items - 1), max_size=9)) if item != target]
        for target in targets
    ]
    return np.array(scores, np.float32).reshape(users, items), np.array(targets, np.int64), seen


def packed(seen):
    flat = [item for one in seen for item in one]
    return np.array(flat, np.int64), np.array([len(one) for one in seen], np.int64)


@settings(max_examples=200, deadline=None)
@given(rankings())
def test_ranks_are_those_of_a_sorted_list(case):
    scores, targets, seen = case
    expected = [rank_by_list(*row) for row in zip(scores, targets, seen, strict=True)]
    assert ranks_of_scores(torch.from_numpy(scores.copy()), targets, *packed(seen)).tolist() == (
        expected
    )


@settings(max_examples=100, deadline=None)
@given(rankings(), st.integers(1, 20))
def test_chunks_of_users_change_nothing(case, at_once):
    scores, targets, seen = case
    # Item vectors of the identity: the products are the scores themselves.
    items = torch.eye(scores.shape[1])
    expected = [rank_by_list(*row) for row in zip(scores, targets, seen, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(full_ranking, "SCORES_AT_ONCE", at_once)
        found = ranks_of_vectors(torch.from_numpy(scores), items, targets, *packed(seen))
    assert found.tolist() == expected


def test_equal_scores_give_the_last_place():
    ranks = ranks_of_scores(torch.zeros(1, 6), np.array([2]), np.array([1, 1, 4]), np.array([3]))
    assert ranks.tolist() == [3]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.sampled_from([5, 10, 20]))
def test_metrics_are_scikit_learns(ranks, k):
    items = 40
    relevant = np.eye(items)[np.array(ranks) - 1]
    by_place = np.tile(np.arange(items, 0, -1.0), (len(ranks), 1))
    found = ranking_metrics(np.array(ranks), (k,))
    assert found[f"ndcg@{k}"] == pytest.approx(ndcg_score(relevant, by_place, k=k))
    assert found[f"hr@{k}"] == pytest.approx(np.mean(np.array(ranks) <= k))
    hit_U, gain_U = hits_and_gains(np.array(ranks), k)
    assert gain_U.tolist() == [1 / math.log2(r + 1) if r <= k else 0 for r in ranks]
    assert hit_U.tolist() == [float(r <= k) for r in ranks]


def test_no_users_have_no_metrics():
    assert all(math.isnan(value) for value in ranking_metrics(np.zeros(0, np.int64)).values())


def test_bad_input_is_named():
    nothing = (np.zeros(0, np.int64), np.zeros(2, np.int64))
    scores = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="targets must be 1 to 3, got 0 to 1"):
        ranks_of_scores(scores, np.array([0, 1]), *nothing)
    with pytest.raises(ValueError, match="the target of user 1 is in its own history"):
        ranks_of_scores(scores, np.array([2, 3]), np.array([2, 3]), np.array([0, 2]))
    scores[1, 2] = float("nan")
    with pytest.raises(ValueError, match="scores must be finite; those of user 1 are not"):
        ranks_of_scores(scores, np.array([1, 1]), *nothing)
    with pytest.raises(ValueError, match="k and ranks must be at least 1, got k=5, ranks from 0"):
        hits_and_gains(np.array([0, 2]), 5)
