"""Batches of texts, and the means of packed sequences, against plain loops."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.encoders.packing import token_batches
from models.encoders.pooling import sequence_means


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 50))
def test_batches_hold_every_text_once_in_order_and_are_full(lengths, budget):
    batches = list(token_batches(lengths, budget))
    assert [i for batch in batches for i in batch] == list(range(len(lengths)))
    for batch in batches:
        tokens = sum(lengths[i] for i in batch)
        assert tokens <= budget or len(batch) == 1
        if batch.stop < len(lengths):
            assert tokens + lengths[batch.stop] > budget


@pytest.mark.parametrize(("lengths", "budget", "says"), [([1], 0, "budget"), ([3, 0], 9, "0 at 1")])
def test_impossible_batches_are_refused(lengths, budget, says):
    with pytest.raises(ValueError, match=says):
        list(token_batches(lengths, budget))


@pytest.mark.parametrize("skip_first", [False, True])
def test_means_of_packed_sequences_equal_those_one_by_one(skip_first):
    lengths = [2, 7, 3, 500]
    x_PD = torch.randn(sum(lengths), 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    parts = x_PD.double().split(lengths)
    expected_SD = torch.stack([part[int(skip_first) :].mean(0) for part in parts])
    found_SD = sequence_means(x_PD, torch.tensor(lengths), skip_first=skip_first)
    assert found_SD.dtype == torch.float32
    torch.testing.assert_close(found_SD.double(), expected_SD, rtol=1e-5, atol=1e-6)


def test_a_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 2, got 1"):
        sequence_means(torch.zeros(3, 2), torch.tensor([1, 2]), skip_first=True)
