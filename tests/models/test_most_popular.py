"""The most-popular list against the scores that it stands for, ranked one user at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.full_ranking import ranks_of_scores
from models.most_popular import most_popular_metrics, most_popular_ranks
from models.next_items import NextItems


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 9), max_size=9), min_size=1, max_size=8),
    st.sampled_from(["valid", "test"]),
)
def test_ranks_are_those_of_the_counts(lists, part):
    data = NextItems.from_sequences(lists, track_ids=range(1, 12))
    expected = []
    for batch in data.held_out(part).batches(length=99, batch_size=1):
        counts = torch.from_numpy(data.counts_I.astype(np.float32))[None]
        seen = (batch.targets_S, batch.seen_Q, batch.seen_lengths_S)
        expected += ranks_of_scores(counts, *seen).tolist()
    assert most_popular_ranks(data, part).tolist() == expected


def test_a_list_by_hand():
    # Listens in training: track 1 three, 2 two, 3 one, 4 none.
    data = NextItems.from_sequences([[1, 2, 3, 4], [1, 2, 4, 3], [1, 3, 2, 4]])
    # One track is left to each after three of four.
    assert most_popular_ranks(data, "test").tolist() == [1, 1, 1]
    # Left are 3 and 4, 3 and 4, 2 and 4; the targets are 3, 4, 2.
    assert most_popular_ranks(data, "valid").tolist() == [1, 2, 1]
    assert most_popular_metrics(data, "valid")["ndcg@5"] == pytest.approx(
        (1 + 1 / np.log2(3) + 1) / 3
    )
