"""Cross-entropies over a catalogue against torch's own and against expectations."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from models.item_cross_entropy import (
    draw_items,
    draw_probabilities,
    full_cross_entropy,
    sampled_cross_entropy,
)


def matrices(positions=23, items=31, width=6, seed=0, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(positions, width, generator=random, dtype=dtype, requires_grad=True)
    table = torch.randn(items, width, generator=random, dtype=dtype, requires_grad=True)
    targets = torch.randint(1, items, (positions,), generator=random)
    return hidden, table, targets


@pytest.mark.parametrize("logits_at_once", [1, 100, 10_000])
def test_chunks_give_the_plain_loss_and_gradients(logits_at_once):
    hidden, table, targets = matrices()
    plain = cross_entropy((hidden @ table.T)[:, 1:], targets - 1, reduction="sum")
    (3 * plain).backward()
    expected = hidden.grad.clone(), table.grad.clone()
    hidden.grad = table.grad = None
    ours = full_cross_entropy(hidden, table, targets, logits_at_once=logits_at_once)
    (3 * ours).backward()
    assert float(ours) == pytest.approx(float(plain), rel=1e-6)
    torch.testing.assert_close(hidden.grad, expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(table.grad, expected[1], atol=1e-5, rtol=1e-5)
    assert not table.grad[0].any()  # the padding is no candidate


def test_no_gradients_are_taken_where_none_are_asked_for():
    hidden, table, targets = matrices()
    with torch.no_grad():
        loss = full_cross_entropy(hidden, table, targets)
    assert not loss.requires_grad
    assert float(loss) == pytest.approx(float(full_cross_entropy(hidden, table, targets)), rel=1e-6)


def test_one_type_for_both_matrices():
    hidden, table, targets = matrices()
    with pytest.raises(ValueError, match=r"one type, got torch\.float64 and torch\.float32"):
        full_cross_entropy(hidden, table.float(), targets)


def test_drawing_follows_popularity_and_never_draws_the_padding():
    counts = torch.tensor([99, 0, 1, 2, 5])
    q = draw_probabilities(counts)
    np.testing.assert_allclose(q, [0, 1 / 12, 2 / 12, 3 / 12, 6 / 12])
    drawn = draw_items(q, 60_000, torch.Generator().manual_seed(0))
    shares = np.bincount(drawn, minlength=5) / len(drawn)
    np.testing.assert_allclose(shares, q, atol=0.01)


def test_the_sum_inside_the_sampled_loss_is_unbiased():
    """E[exp(loss) exp(s_t)] over draws is sum_i exp(s_i), the full softmax's."""
    hidden, table, targets = matrices(positions=4, items=12, width=3)
    hidden, table = hidden.detach(), table.detach()
    q = draw_probabilities(torch.arange(12))
    scores = hidden @ table.T
    full = scores[:, 1:].exp().sum(1)
    random, total, rounds = torch.Generator().manual_seed(3), torch.zeros(4), 4000
    for _ in range(rounds):
        drawn = draw_items(q, 5, random)
        for position in range(4):
            one = slice(position, position + 1)
            loss = sampled_cross_entropy(
                hidden[one], table[targets[one]], table[drawn], targets[one], drawn, q[drawn].log()
            )
            total[position] += float((loss + scores[position, targets[position]]).exp())
    np.testing.assert_allclose(total / rounds, full, rtol=0.05)


def test_many_draws_come_near_the_full_loss():
    hidden, table, targets = matrices(positions=16, items=40, width=4)
    full = full_cross_entropy(hidden, table, targets)
    q = draw_probabilities(torch.zeros(40))
    drawn = draw_items(q, 20_000, torch.Generator().manual_seed(0))
    ours = sampled_cross_entropy(
        hidden, table[targets], table[drawn], targets, drawn, q[drawn].log()
    )
    assert float(ours) == pytest.approx(float(full), rel=0.02)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_rows_that_are_added_change_nothing():
    hidden, table, targets = matrices(dtype=torch.float32)
    answers = []
    for device in ("cpu", "cuda"):
        # Leaves of their own: of a tensor that is on the device already `to` makes none.
        h, t = (one.detach().to(device).requires_grad_() for one in (hidden, table))
        loss = full_cross_entropy(h, t, targets.to(device), logits_at_once=100)
        loss.backward()
        answers.append([loss.detach().cpu(), h.grad.cpu(), t.grad.cpu()])
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
