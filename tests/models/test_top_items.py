"""Top items against a full sort in numpy, and the hard cases."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import top_items as module
from models.top_items import top_items


def plain(vectors, matrix, histories, count):
    """Rows and float64 scores of each user, by a full sort: ties to the smaller row."""
    found = []
    for vector, seen in zip(vectors, histories, strict=True):
        scores = matrix.astype("f8") @ vector.astype("f8")
        order = sorted(
            (row for row in range(1, len(matrix)) if row not in seen),
            key=lambda row: (-scores[row], row),
        )
        found.append([(row, scores[row]) for row in order[:count]])
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.lists(st.integers(1, 29), max_size=40), max_size=7),
    st.integers(1, 40),
    st.integers(30, 200),
)
def test_finds_what_a_full_sort_finds(seed, histories, count, at_once):
    random = np.random.default_rng(seed)
    # Whole numbers: no rounding, and many ties.
    vectors = random.integers(-2, 3, (len(histories), 4)).astype("f4")
    matrix = random.integers(-2, 3, (30, 4)).astype("f4")
    seen = np.array([row for history in histories for row in history], dtype=np.int32)
    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(module.SCORES_AT_ONCE, "cpu", at_once)  # chunks of one user to six
        found = top_items(torch.from_numpy(vectors), torch.from_numpy(matrix), seen, lengths, count)
    assert found.rows_UK.shape == found.scores_UK.shape == (len(histories), min(count, 29))
    every = plain(vectors, matrix, histories, len(matrix))
    for rows, scores, expected in zip(*found, every, strict=True):
        held = rows > 0
        assert held.sum() == min(count, len(expected))
        assert not held[held.sum() :].any()
        assert np.isneginf(scores[~held]).all()
        # Among equal scores torch promises no order: each row has its own score, and once.
        assert scores[held].tolist() == [score for _, score in expected[:count]]
        assert [dict(expected)[row] for row in rows[held]] == scores[held].tolist()
        assert len(set(rows[held])) == held.sum()


def test_scores_belong_to_their_rows():
    random = np.random.default_rng(0)
    vectors, matrix = random.standard_normal((5, 8)), random.standard_normal((50, 8))
    histories = [[1, 2], [], [49, 3, 3], [7], [8]]
    seen, lengths = np.concatenate(histories).astype(np.int64), [len(h) for h in histories]
    found = top_items(
        torch.from_numpy(vectors), torch.from_numpy(matrix), seen, np.array(lengths), 10
    )
    for rows, scores, expected in zip(*found, plain(vectors, matrix, histories, 10), strict=True):
        assert rows.tolist() == [row for row, _ in expected]
        np.testing.assert_allclose(scores, [score for _, score in expected], rtol=1e-6)


def test_a_count_that_is_none_is_refused():
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        top_items(torch.ones(1, 2), torch.ones(3, 2), np.zeros(0), np.zeros(1, int), 0)
