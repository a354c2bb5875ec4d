"""Lloyd's k-means over points [x ; alpha * p]; p is the prefix of PSRQ, or absent: plain k-means.

The means of the prefix half come from counts of (earlier code, new code) pairs, and its distances
from tables (`models.nearest`): the prefix never exists as a matrix.

Shape suffixes: N rows, M rows of one chunk, S sampled rows, D dims, K codes, J earlier levels,
T k-means++ trials.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.nearest import (
    CHUNK_ELEMENTS,
    EPS,
    Centroids,
    Prefix,
    check_rows,
    chunks,
    mean_and_scatter,
    nearest,
)

INIT_ROWS_PER_CODE = 64
INIT_ROWS_MIN = 8_192
"""k-means++ looks at max(INIT_ROWS_MIN, k * INIT_ROWS_PER_CODE) sampled rows at most."""


@dataclass(frozen=True, kw_only=True)
class KMeans:
    """A fit. `objective` = sum over rows of ||x - c||^2 + alpha^2 ||p - c_p||^2 for `codes_N`."""

    centroids: Centroids
    codes_N: Tensor
    objective: float
    objectives: tuple[float, ...]
    """The same sum after each centroid update: the fit's curve, never increasing."""
    iterations: int
    converged: bool
    repaired: int
    """How often an empty cluster was moved to a far point."""


def initial_centroids(
    x_ND: Tensor, k: int, *, prefix: Prefix | None = None, seed: int = 0
) -> Centroids:
    """Greedy k-means++ on a seeded sample of rows: k rows, far apart in [x ; alpha * p].

    With fewer than k distinct rows each is a centroid, and the rest are copies of centroid 0:
    unused, because a tie goes to the lowest index.
    """
    generator = torch.Generator().manual_seed(seed)
    limit = max(INIT_ROWS_MIN, k * INIT_ROWS_PER_CODE)
    index_S = torch.arange(len(x_ND))
    if len(x_ND) > limit:
        index_S = torch.randperm(len(x_ND), generator=generator)[:limit].sort().values
    # Distances do not change when the data, or book 0, is centred: only their rounding does.
    sample_SD = x_ND[index_S] - x_ND[index_S].double().mean(0).float()
    norm_S = sample_SD.square().sum(1)
    if prefix is not None:
        books = (prefix.books[0] - prefix.books[0].mean(0), *prefix.books[1:])
        taken = Prefix(codes_NJ=prefix.codes_NJ[index_S], books=books, weight=prefix.weight)
        for part in chunks(sample_SD):
            norm_S[part] += taken.weight**2 * taken.rows(part).square().sum(1)
    noise = 4 * EPS * (x_ND.shape[1] + 8)

    def distances(pick_T: Tensor) -> Tensor:
        """Squared distances (S, T); what rounding alone explains is 0: a duplicate."""
        cross_ST = sample_SD @ sample_SD[pick_T].T
        if prefix is not None:
            target_TD = taken.rows(pick_T)
            for j, book in enumerate(taken.books):
                cross_ST += taken.weight**2 * (book @ target_TD.T)[taken.codes_NJ[:, j]]
        size_ST = norm_S[:, None] + norm_S[pick_T]
        squared_ST = size_ST - 2 * cross_ST
        return torch.where(squared_ST > noise * size_ST, squared_ST, 0.0).double()

    first = torch.randint(len(index_S), (1,), generator=generator)
    picks, nearest_S = [int(first)], distances(first)[:, 0]
    trials = 2 + int(math.log(k))
    while len(picks) < k:
        mass_S = nearest_S.cumsum(0)
        if mass_S[-1] <= 0:
            break
        draw_T = torch.rand(trials, generator=generator, dtype=torch.float64) * mass_S[-1]
        pick_T = torch.searchsorted(mass_S, draw_T, right=True).clamp_max(len(index_S) - 1)
        after_ST = torch.minimum(nearest_S[:, None], distances(pick_T))
        best = int(after_ST.sum(0).argmin())
        picks.append(int(pick_T[best]))
        nearest_S = after_ST[:, best]
    picks += picks[:1] * (k - len(picks))
    chosen_K = index_S[torch.tensor(picks)]
    return Centroids(
        x_KD=x_ND[chosen_K].clone(), prefix_KD=None if prefix is None else prefix.rows(chosen_K)
    )


def kmeans(
    x_ND: Tensor,
    k: int,
    *,
    prefix: Prefix | None = None,
    start: Centroids | None = None,
    iterations: int = 25,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> KMeans:
    """Lloyd's algorithm from `start`, or from `initial_centroids(..., seed)`.

    Ends after `iterations` centroid updates, when no code moved, or when an update lowered the
    objective by less than `tolerance` of itself (0: never for that reason). Raises ValueError for
    rows that `check_rows` refuses, k < 1, or a `start` of another shape.
    """
    x_ND = check_rows(x_ND)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    centroids = start or initial_centroids(x_ND, k, prefix=prefix, seed=seed)
    if centroids.x_KD.shape != (k, x_ND.shape[1]):
        raise ValueError(f"start must be {(k, x_ND.shape[1])}, got {tuple(centroids.x_KD.shape)}")
    if (centroids.prefix_KD is None) != (prefix is None):
        raise ValueError("start needs prefix centroids exactly when the points have a prefix")
    means = _Means(x_ND, k, prefix)
    objectives: list[float] = []
    repaired, converged = 0, False
    codes_N = torch.full((len(x_ND),), -1)
    while True:
        found_N = nearest(x_ND, centroids, prefix)
        if converged or len(objectives) == iterations:
            break
        filled_N = _fill_empty(x_ND, found_N, centroids, prefix)
        if torch.equal(filled_N, codes_N):
            converged = True
            break
        codes_N = filled_N
        repaired += int((filled_N != found_N).sum())
        centroids, objective = means.update(codes_N, centroids)
        objectives.append(objective)
        if len(objectives) > 1:
            converged = objectives[-2] - objective < tolerance * objective
    return KMeans(
        centroids=centroids,
        codes_N=found_N,
        objective=float(_distances(x_ND, found_N, centroids, prefix).sum()),
        objectives=tuple(objectives),
        iterations=len(objectives),
        converged=converged,
        repaired=repaired,
    )


class _Means:
    """Cluster means of a whole fit: float64 sums, to which only rows that moved are added.

    A float64 sum of float32 values of like magnitude is exact, so nothing drifts, and the mean of
    equal rows is that row: the residual of a duplicate is 0, not rounding noise.
    """

    def __init__(self, x_ND: Tensor, k: int, prefix: Prefix | None) -> None:
        self.x_ND, self.prefix = x_ND, prefix
        self.codes_N = torch.full((len(x_ND),), -1)
        self.sums_KD = torch.zeros(k, x_ND.shape[1], dtype=torch.float64)
        self.mean_D, self.total = mean_and_scatter(x_ND)
        if prefix is not None:
            self.prefix_mean_D = self._prefix_sums(torch.zeros_like(self.codes_N), 1)[0]
            self.prefix_mean_D /= len(x_ND)
            for part in chunks(x_ND):
                p_MD = prefix.rows(part).double() - self.prefix_mean_D
                self.total += prefix.weight**2 * float(p_MD.square().sum())

    def _prefix_sums(self, codes_N: Tensor, k: int) -> Tensor:
        """Sums (k, D) of p over each cluster: counts of (earlier code, code) pairs times books."""
        assert self.prefix is not None
        sums_KD = torch.zeros(k, self.x_ND.shape[1], dtype=torch.float64)
        for j, book in enumerate(self.prefix.books):
            pair_N = self.prefix.codes_NJ[:, j] * k + codes_N
            count_JK = torch.bincount(pair_N, minlength=len(book) * k).view(len(book), k)
            sums_KD += count_JK.double().T @ book.double()
        return sums_KD

    def update(self, codes_N: Tensor, old: Centroids) -> tuple[Centroids, float]:
        """Means of `codes_N` (an empty cluster keeps its old centroid), and their objective."""
        changed_N = (codes_N != self.codes_N).nonzero()[:, 0]
        for index_M in changed_N.split(CHUNK_ELEMENTS // self.x_ND.shape[1] + 1):
            x_MD, was_M = self.x_ND[index_M].double(), self.codes_N[index_M]
            self.sums_KD.index_add_(0, codes_N[index_M], x_MD)
            had_M = was_M >= 0
            if had_M.any():
                self.sums_KD.index_add_(0, was_M[had_M], x_MD[had_M], alpha=-1)
        self.codes_N = codes_N
        k = len(self.sums_KD)
        count_K1 = torch.bincount(codes_N, minlength=k).double()[:, None]
        mean_KD = self.sums_KD / count_K1.clamp_min(1)
        x_KD = torch.where(count_K1 > 0, mean_KD.float(), old.x_KD)
        # sum ||x - c||^2 = total - sum_k n_k ||c_k - mean||^2 for the means c_k of a partition
        objective = self.total - float((count_K1 * (mean_KD - self.mean_D).square()).sum())
        if self.prefix is None or old.prefix_KD is None:
            return Centroids(x_KD=x_KD), max(0.0, objective)
        mean_KD = self._prefix_sums(codes_N, k) / count_K1.clamp_min(1)
        between = float((count_K1 * (mean_KD - self.prefix_mean_D).square()).sum())
        objective -= self.prefix.weight**2 * between
        prefix_KD = torch.where(count_K1 > 0, mean_KD.float(), old.prefix_KD)
        return Centroids(x_KD=x_KD, prefix_KD=prefix_KD), max(0.0, objective)


def _distances(
    x_ND: Tensor, codes_N: Tensor, centroids: Centroids, prefix: Prefix | None
) -> Tensor:
    """Squared distance (N,) of every row to its code's centroid; exactly 0 for equal rows."""
    parts = []
    for part in chunks(x_ND):
        distance_M = (x_ND[part] - centroids.x_KD[codes_N[part]]).square().sum(1).double()
        if prefix is not None and centroids.prefix_KD is not None:
            q_MD = prefix.rows(part) - centroids.prefix_KD[codes_N[part]]
            distance_M += prefix.weight**2 * q_MD.square().sum(1)
        parts.append(distance_M)
    return torch.cat(parts)


def _fill_empty(
    x_ND: Tensor, codes_N: Tensor, centroids: Centroids, prefix: Prefix | None
) -> Tensor:
    """`codes_N` with each empty cluster given the row farthest from its own centroid.

    Chosen one by one among the farthest rows, so that two empty clusters never get equal rows. A
    cluster stays empty when every row lies on its centroid: fewer distinct rows than clusters.
    """
    count_K = torch.bincount(codes_N, minlength=len(centroids.x_KD))
    empty = (count_K == 0).nonzero()[:, 0].tolist()
    if not empty:
        return codes_N
    distance_N = _distances(x_ND, codes_N, centroids, prefix) * (count_K[codes_N] > 1)
    pool_S = distance_N.sort(descending=True, stable=True).indices[: 8 * len(empty)]
    far_S, x_SD, codes_N = distance_N[pool_S], x_ND[pool_S], codes_N.clone()
    for code in empty:
        pick = int(far_S.argmax())
        if far_S[pick] <= 0:
            break
        codes_N[pool_S[pick]] = code
        to_pick_S = (x_SD - x_SD[pick]).square().sum(1).double()
        if prefix is not None:
            p_SD = prefix.rows(pool_S)
            to_pick_S += prefix.weight**2 * (p_SD - p_SD[pick]).square().sum(1)
        far_S = torch.minimum(far_S, to_pick_S)
    return codes_N
