"""What an MM-RQ-VAE minimises beside its level losses: MMD and the alignment of modalities.

    MMD^2(X, Y) = mean k(x, x') + mean k(y, y') - 2 mean k(x, y)
    k(a, b) = exp(-||a - b||^2 / (2 s^2)),  s^2 = half the mean ||a - b||^2 of different rows of
              X and Y together, without gradient                             paper section 3
    InfoNCE(A, B) = -mean_i log(exp(cos(a_i, b_i) / t) / sum_j exp(cos(a_i, b_j) / t)),
              averaged with that of (B, A)

MMD compares the two sets of rows and not row by row (Gretton et al. 2012): it asks that the
reconstructions lie as the vectors do, not that each lies on its own. It costs: of Beauty's 12,087
collaborative vectors (centred, unit norm; 50 epochs, 4 levels of 256 codes) the relative mean
square error is 12.8 where MMD was minimised, .49 where it was itself, and Kendall's tau of pair
distances .10 and .40. Means go over all pairs, a row with itself too, so that MMD^2 is never below
0.

Open in the paper, chosen here: the direction (both) and the temperature of InfoNCE.

Shape suffixes: B and C rows, D dims, Z latent dims.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

TEMPERATURE = 0.1


def squared_distances(a_BD: Tensor, b_CD: Tensor) -> Tensor:
    """||a - b||^2 (B, C), by one product."""
    cross_BC = torch.addmm(b_CD.square().sum(1), a_BD, b_CD.T, alpha=-2)
    return cross_BC.add_(a_BD.square().sum(1)[:, None]).clamp_min_(0)


def mmd(x_BD: Tensor, y_BD: Tensor) -> Tensor:
    """MMD^2 of two sets of as many rows, a scalar of 0 to 2; 0 where all rows are equal."""
    found: Tensor = _Mmd.apply(x_BD, y_BD)
    return found


class _Mmd(torch.autograd.Function):
    """With its gradient written out: 2.7 times faster than what autograd makes of the formula.

    d MMD^2 / dy_j = c (sum_i k(x_i, y_j) (y_j - x_i) - sum_i k(y_i, y_j) (y_j - y_i)),
    c = 4 / (2 s^2 B^2), and the same for x with the two exchanged.
    """

    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, y_BD: Tensor) -> Tensor:
        xx_BB, yy_BB = squared_distances(x_BD, x_BD), squared_distances(y_BD, y_BD)
        xy_BB = squared_distances(x_BD, y_BD)
        rows = 2 * len(x_BD)
        total = xx_BB.sum() + yy_BB.sum() + 2 * xy_BB.sum()
        mean = (total / (rows * (rows - 1))).clamp_min(1e-30)  # 2 s^2 is this mean itself
        for pair_BB in (xx_BB, yy_BB, xy_BB):
            pair_BB.div_(-mean).exp_()
        ctx.save_for_backward(x_BD, y_BD, xx_BB, yy_BB, xy_BB, mean)
        return xx_BB.mean() + yy_BB.mean() - 2 * xy_BB.mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_BD, y_BD, xx_BB, yy_BB, xy_BB, mean = ctx.saved_tensors
        c = 4 * grads[0] / (mean * len(x_BD) ** 2)
        sides = ((x_BD, xx_BB, y_BD, xy_BB), (y_BD, yy_BB, x_BD, xy_BB.T))
        found: list[Tensor | None] = []
        for needed, (own_BD, own_BB, other_BD, both_BB) in zip(
            ctx.needs_input_grad, sides, strict=True
        ):
            if not needed:
                found.append(None)
                continue
            weight_B1 = (both_BB.sum(1) - own_BB.sum(1))[:, None]
            found.append(c * (weight_B1 * own_BD - both_BB @ other_BD + own_BB @ own_BD))
        return found[0], found[1]


def info_nce(a_BZ: Tensor, b_BZ: Tensor) -> Tensor:
    """A scalar: how far a row's own partner is from being the most similar of the batch, in nats.

    At most about log B where nothing is aligned; a batch of one row gives 0.
    """
    similarity_BB = normalize(a_BZ) @ normalize(b_BZ).T / TEMPERATURE
    own_B = torch.arange(len(a_BZ), device=a_BZ.device)
    return (cross_entropy(similarity_BB, own_B) + cross_entropy(similarity_BB.T, own_B)) / 2
