"""Cross-entropy of the next item over a catalogue, without holding all logits.

    all items    loss_p = log sum_i exp <h_p, v_i> - <h_p, v_t>
    sampled      loss_p = log(exp s_t + sum_{j in S, j != t} exp s_j / (n q_j)) - s_t

The first goes through the positions in chunks and takes the gradients in the same pass: softmax
minus one-hot is at hand there, and P x I numbers are never held. The second draws n items from q
for the whole batch (Bengio and Senecal 2008; the log-Q correction): what stands in the logarithm is
an unbiased estimate of the sum over all items, for the target's own term is exact and a drawn
target counts nothing. q is a little flatter than popularity: q_i ~ count_i + 1.

Shapes: P positions, C positions of a chunk, I rows of items with the padding (row 0, never a
target and never a candidate), N drawn items, D width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

LOGITS_AT_ONCE = 2**28
"""1 GB of float32."""
ROW_MULTIPLE = 64
"""Rows that are added to an item matrix on CUDA: with an odd number of rows, its products take a
kernel of an eighth of the speed (one H100: 95 of 500 ms of a training step)."""


def full_cross_entropy(
    hidden_PD: Tensor,
    items_ID: Tensor,
    targets_P: Tensor,
    *,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> Tensor:
    """Sum over the positions, a float32 scalar; differentiable in both matrices.

    Products in the matrices' own type, which has to be one; exponentials and sums in float32.
    """
    if hidden_PD.dtype != items_ID.dtype:
        raise ValueError(
            f"both matrices must have one type, got {hidden_PD.dtype} and {items_ID.dtype}"
        )
    loss: Tensor = _FullCrossEntropy.apply(hidden_PD, items_ID, targets_P, logits_at_once)
    return loss


class _FullCrossEntropy(Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_PD: Tensor, items_ID: Tensor, targets_P: Tensor, logits_at_once: int
    ) -> Tensor:
        needed = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        rows = len(items_ID)
        if items_ID.is_cuda:
            items_ID = functional.pad(items_ID, (0, 0, 0, -rows % ROW_MULTIPLE))
        loss = torch.zeros((), device=hidden_PD.device)
        grad_PD = torch.empty_like(hidden_PD) if needed else None
        # Sums of many chunks: in float32, as one product would add them up.
        grad_ID = torch.zeros_like(items_ID, dtype=torch.float32) if needed else None
        chunk = max(1, logits_at_once // len(items_ID))
        for at in range(0, len(hidden_PD), chunk):
            hidden_CD, targets_C = hidden_PD[at : at + chunk], targets_P[at : at + chunk]
            logits_CI = (hidden_CD @ items_ID.T).float()
            logits_CI[:, 0] = logits_CI[:, rows:] = -torch.inf
            scores_C1 = logits_CI.gather(1, targets_C.unsqueeze(1))
            total_C1 = logits_CI.logsumexp(1, keepdim=True)
            loss += (total_C1 - scores_C1).sum()
            if grad_PD is None or grad_ID is None:
                continue
            # d loss / d logits = softmax - onehot
            slope_CI = logits_CI.sub_(total_C1).exp_()
            slope_CI.scatter_add_(
                1, targets_C.unsqueeze(1), slope_CI.new_full((len(targets_C), 1), -1.0)
            )
            slope_CI = slope_CI.to(items_ID.dtype)
            torch.mm(slope_CI, items_ID, out=grad_PD[at : at + chunk])
            grad_ID += slope_CI.T @ hidden_CD
        if grad_PD is not None and grad_ID is not None:
            ctx.save_for_backward(grad_PD, grad_ID[:rows].to(items_ID.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_PD, grad_ID = ctx.saved_tensors
        return grad_PD * slope.to(grad_PD.dtype), grad_ID * slope.to(grad_ID.dtype), None, None


def draw_probabilities(counts_I: Tensor) -> Tensor:
    """q (I,) float64 over the rows: ~ count + 1, and 0 for the padding."""
    weights_I = counts_I.double() + 1
    weights_I[0] = 0
    return weights_I / weights_I.sum()


def draw_items(q_I: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Rows (N,) drawn with replacement; q and the generator on the host."""
    # By the cumulated probabilities: torch.multinomial takes 2^24 categories at most.
    edges_I = q_I.cumsum(0)
    uniform_N = torch.rand(count, dtype=torch.float64, generator=generator)
    # Over the last edge, which rounding leaves a little off 1.
    return torch.searchsorted(edges_I, uniform_N * edges_I[-1], right=True).clamp_(1, len(q_I) - 1)


def sampled_cross_entropy(
    hidden_PD: Tensor,
    target_items_PD: Tensor,
    drawn_items_ND: Tensor,
    targets_P: Tensor,
    drawn_N: Tensor,
    log_q_N: Tensor,
) -> Tensor:
    """Sum over the positions, a float32 scalar. `log_q_N`: log q of each drawn row."""
    scores_P1 = (hidden_PD * target_items_PD).float().sum(1, keepdim=True)
    logits_PN = (hidden_PD @ drawn_items_ND.T).float()
    # - log(n q_j); a drawn target counts nothing, its own term being there exactly.
    corrected_PN = logits_PN - (log_q_N.float() + torch.log(torch.tensor(float(len(drawn_N)))))
    corrected_PN = corrected_PN.masked_fill(targets_P.unsqueeze(1) == drawn_N, -torch.inf)
    total_P = torch.cat([scores_P1, corrected_PN], dim=1).logsumexp(1)
    return (total_P - scores_P1.squeeze(1)).sum()
