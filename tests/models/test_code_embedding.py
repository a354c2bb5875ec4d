"""Sums of code embeddings: against torch's EmbeddingBag, values and gradients."""

import torch

from models.batch import MISSING_CODE
from models.code_embedding import CodeEmbedding

LEVELS, CODES, WIDTH = 3, 5, 4


def test_values_and_gradients_equal_an_embedding_bags():
    torch.manual_seed(0)
    ours = CodeEmbedding(LEVELS, CODES, WIDTH)
    codes = torch.randint(CODES, (6, 7, LEVELS))
    codes[2, 3] = MISSING_CODE
    bag = torch.nn.EmbeddingBag(LEVELS * CODES + 1, WIDTH, mode="sum", padding_idx=ours.padding_row)
    bag.load_state_dict({"weight": ours.table.weight.detach()})
    rows = codes + torch.arange(LEVELS) * CODES
    rows[codes == MISSING_CODE] = ours.padding_row
    expected = bag(rows.flatten(0, 1)).view(6, 7, WIDTH)
    summed = ours(codes)
    torch.testing.assert_close(summed, expected)
    assert not summed[2, 3].any()
    towards = torch.randn_like(summed)
    (summed * towards).sum().backward()
    (expected * towards).sum().backward()
    torch.testing.assert_close(ours.table.weight.grad, bag.weight.grad)
    assert not ours.table.weight.grad[ours.padding_row].any()
