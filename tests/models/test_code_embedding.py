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


def test_projected_sums_and_every_gradient_equal_the_plain_product():
    torch.manual_seed(0)
    ours = CodeEmbedding(LEVELS, CODES, WIDTH)
    weight_HD = torch.randn(6, WIDTH, requires_grad=True)
    codes = torch.randint(CODES, (8, 7, LEVELS))
    codes[2, 3], codes[4, 1, 0] = MISSING_CODE, MISSING_CODE
    towards_D, towards_H = torch.randn(8, 7, WIDTH), torch.randn(8, 7, 6)
    found = []
    for projected in (True, False):
        if projected:
            keys, products = ours.projected(codes, weight_HD)
        else:
            at = codes + torch.arange(LEVELS) * CODES
            present = (codes != MISSING_CODE).unsqueeze(-1)
            keys = (ours.table.weight[at.clamp(min=0)] * present).sum(-2)
            products = keys @ weight_HD.T
        loss = (keys * towards_D).sum() + (products * towards_H).sum()
        grads = torch.autograd.grad(loss, (ours.table.weight, weight_HD))
        found.append([keys, products, *grads])
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


def test_fewer_positions_than_rows_are_not_projected_through_the_table():
    codes = torch.zeros(2, 3, LEVELS, dtype=torch.int64)
    assert CodeEmbedding(LEVELS, CODES, WIDTH).projected(codes, torch.randn(6, WIDTH))[1] is None
