"""Codes of a batch that share its rows evenly: optimal transport by Sinkhorn's iterations.

    P = argmin <P, C> - epsilon H(P)   over plans (B, K) with row sums 1 / B, column sums 1 / K
    P = diag(u) G diag(v),  G = exp(-C / epsilon);  v = 1 / (K G'u) and u = 1 / (B G v) in turn
    code_b = argmax_k P_bk

(Cuturi 2013, arXiv 1306.0895.) C is the squared distance of a row to a code, brought to the range
-1 to 1 of its batch: epsilon .003 and 50 iterations are those of the paper's section 3. A code that
no row is near to then takes the rows nearest to it, instead of none. The iterations end with the
rows' sums, so that the columns' are near 1 / K, not equal to it.

Used while an MM-RQ-VAE is trained, for the codes of its last level. Never to give an item its ID:
such a code depends on the other rows of the batch.

Shape suffixes: B rows of a batch, K codes.
"""

import torch
from torch import Tensor

EPSILON = 0.003
ITERATIONS = 50


def transport_plan(distance_BK: Tensor) -> Tensor:
    """P (B, K) float64 of squared distances; of equal distances the even plan."""
    cost_BK = distance_BK.double()
    half_range = (cost_BK.max() - cost_BK.min()).clamp_min(1e-300) / 2
    # A row's own factor is absorbed by u: with its least cost taken off, G lies in [e^-667, 1], and
    # with the largest v at 1 none of its sums below can leave the range of float64.
    cost_BK = (cost_BK - cost_BK.amin(1, keepdim=True)) / half_range
    g_BK = torch.exp(-cost_BK / EPSILON)
    rows = len(g_BK)
    u_B = torch.ones_like(g_BK[:, 0])
    for _ in range(ITERATIONS):
        v_K = 1 / (u_B @ g_BK)
        v_K = v_K / v_K.max()
        u_B = 1 / (rows * (g_BK @ v_K))
    return u_B[:, None] * g_BK * v_K


def sinkhorn_codes(distance_BK: Tensor) -> Tensor:
    """Codes (B,) int64: of each row the one that the plan gives the most of it."""
    return transport_plan(distance_BK).argmax(1)
