"""Balanced codes: no code of a level is given to more than its share of the rows.

`balance` is the largest share over the even share: at most ceil(balance * N / K) rows have a code.
1 is exactly even, 2 lets a code have twice its even share. k-means puts no limit.

A fitted level is balanced by a few rounds of Lloyd's algorithm in which the rows are placed nearest
first in codes of limited room (`models.placement`) and the means follow. That costs some error: a
row near a full code goes to one farther away. It is for the fitted rows only: a new item gets its
nearest code, as the full codes' shares of later items are not known.

Shape suffixes: N rows, M rows of one chunk, D dims, P dims of a point (D, or 2 D with a prefix),
K codes.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from models.kmeans import KMeans
from models.option_checks import is_number
from models.placement import place
from models.rows import Centroids, Prefix, chunks

ROUNDS = 5
"""Most rounds of one level. On 12,086 real embeddings (64-d) and 128 codes it then has 1.8% more
error than k-means at `balance` 1 and 0.2% more at 1.2; on well separated clusters of other sizes
than the codes may have, 10 to 20% more: such clusters have to be cut."""
TOLERANCE = 1e-3
"""The rounds end when one lowers the objective by less than this share."""


def check_balance(balance: object) -> None:
    """ValueError unless it is None (off) or a finite number of at least 1."""
    if balance is not None and not (is_number(balance) and balance >= 1):
        raise ValueError(f"balance must be a number of at least 1, or None, got {balance!r}")


def capacity(rows: int, codes: int, balance: float) -> int:
    """Most rows that one code may have: ceil(balance * rows / codes)."""
    return math.ceil(balance * rows / codes)


def balanced(x_ND: Tensor, found: KMeans, balance: float, prefix: Prefix | None = None) -> KMeans:
    """A fitted level with balanced codes, and centroids and objective that go with them.

    `x_ND` and `prefix` are those of the fit, which is returned as it is where no code has too many
    rows. Otherwise the rounds' best state; its codes are not those of the nearest centroids.
    """
    k, device = len(found.centroids.x_KD), x_ND.device
    most = capacity(len(x_ND), k, balance)
    if int(torch.bincount(found.codes_N).max()) <= most:
        return found
    room_K = torch.full((k,), most, device=device)
    first_N = torch.zeros(len(x_ND), dtype=torch.int64, device=device)
    best: KMeans | None = None
    prefix_KD = found.centroids.prefix_KD
    centroids = Centroids(
        x_KD=found.centroids.x_KD.to(device),
        prefix_KD=None if prefix_KD is None else prefix_KD.to(device),
    )
    for _ in range(ROUNDS):
        distances = _Distances(x_ND, centroids, prefix)
        codes_N = place(distances, first_N, k, room_K)
        centroids, objective = _means(x_ND, codes_N, centroids, prefix)
        done = best is not None and best.objective - objective < TOLERANCE * objective
        if best is None or objective < best.objective:
            best = replace(found, centroids=centroids, codes_N=codes_N, objective=objective)
        if done:
            break
    assert best is not None
    return best


class _Distances:
    """Squared distances (M, K) of some rows [x ; alpha p] to the centroids."""

    def __init__(self, x_ND: Tensor, centroids: Centroids, prefix: Prefix | None) -> None:
        self.x_ND, self.prefix = x_ND, prefix
        weight = 0.0 if prefix is None else prefix.weight
        c_KP = _joined(centroids.x_KD, centroids.prefix_KD, weight)
        self.centre_P = c_KP.double().mean(0).float()  # near the points: small numbers, less lost
        self.c_KP = c_KP - self.centre_P
        self.norm_K = self.c_KP.square().sum(1)

    def __call__(self, index_M: Tensor) -> Tensor:
        p_MD = None if self.prefix is None else self.prefix.rows(index_M)
        weight = 0.0 if self.prefix is None else self.prefix.weight
        x_MP = _joined(self.x_ND[index_M], p_MD, weight) - self.centre_P
        distance_MK = torch.addmm(self.norm_K, x_MP, self.c_KP.T, alpha=-2)
        return distance_MK.add_(x_MP.square().sum(1, keepdim=True)).clamp_min_(0)


def _joined(x_MD: Tensor, p_MD: Tensor | None, weight: float) -> Tensor:
    return x_MD if p_MD is None else torch.cat([x_MD, weight * p_MD], 1)


def _means(
    x_ND: Tensor, codes_N: Tensor, old: Centroids, prefix: Prefix | None
) -> tuple[Centroids, float]:
    """Means of the rows of each code (a code without rows keeps its own), and their objective."""
    k = len(old.x_KD)
    count_K1 = torch.bincount(codes_N, minlength=k).double()[:, None]

    halves = [(lambda part: x_ND[part], old.x_KD, 1.0)]
    if prefix is not None and old.prefix_KD is not None:
        halves.append((prefix.rows, old.prefix_KD, prefix.weight))
    means, objective = [], 0.0
    for rows, old_KD, weight in halves:
        sums_KD = torch.zeros(old_KD.shape, dtype=torch.float64, device=x_ND.device)
        for part in chunks(x_ND):
            sums_KD.index_add_(0, codes_N[part], rows(part).double())
        mean_KD = (sums_KD / count_K1.clamp_min(1)).float()
        means.append(torch.where(count_K1 > 0, mean_KD, old_KD))
        for part in chunks(x_ND):
            apart_MD = rows(part) - means[-1][codes_N[part]]
            objective += weight**2 * float(apart_MD.square().sum(dtype=torch.float64))
    return Centroids(x_KD=means[0], prefix_KD=means[1] if len(means) > 1 else None), objective
