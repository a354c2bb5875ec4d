"""Lloyd's k-means over points [x ; alpha * p]; p is the prefix of PSRQ, or absent: plain k-means.

The means of the prefix half come from counts of (earlier code, new code) pairs (`models.means`) and
its distances from tables (`models.centroid_scores`): the prefix never exists as a matrix. On the
CPU every search is exact, and skips the rows that cannot change (`models.bounds`); on a CUDA device
float16 products choose the codes while the centroids move, and the last search is exact (`models.
cuda_rows`). Rows that do not fit a device stream through it, and workers may split them.

Shape suffixes: N rows, M rows of one part, S pooled rows, D dims, K codes.
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from models.bounds import Bounds
from models.centroid_scores import CentroidScores
from models.cuda_graph import Replayed
from models.kmeans_start import initial_centroids
from models.means import Means, squared_distances
from models.nearest import NearestCentroid
from models.rows import Centroids, Prefix, check_rows, prefix_sum
from models.shards import Shards
from models.threads import only_each

if TYPE_CHECKING:
    from models.cuda_rows import PackedRows


@dataclass(frozen=True, kw_only=True)
class KMeans:
    """A fit. `objective` = sum over rows of ||x - c||^2 + alpha^2 ||p - c_p||^2 for `codes_N`."""

    centroids: Centroids
    codes_N: Tensor
    """Of this worker's rows, on their device; int64."""
    objective: float
    objectives: tuple[float, ...]
    """The same sum after each centroid update: the fit's curve, never increasing (float16 products
    may lift it by their rounding)."""
    iterations: int
    converged: bool
    repaired: int
    """How often an empty cluster was moved to a far point."""


def kmeans(
    x_ND: Tensor,
    k: int,
    *,
    prefix: Prefix | None = None,
    start: Centroids | None = None,
    iterations: int = 25,
    tolerance: float = 1e-4,
    seed: int = 0,
    device: torch.device | None = None,
    part_rows: int | None = None,
    group: dist.ProcessGroup | None = None,
) -> KMeans:
    """Lloyd's algorithm from `start`, or from `initial_centroids(..., seed)`.

    Ends after `iterations` centroid updates, when no code moved, or when an update lowered the
    objective by less than `tolerance` of itself (0: never for that reason). `device`: where the
    work is done, by default where the rows are; rows elsewhere stream through it, `part_rows` at a
    time. `group`: workers that hold one run of the rows each. Raises ValueError for rows that
    `check_rows` refuses, k < 1, or a `start` of another shape.
    """
    x_ND = check_rows(x_ND)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    device = device or x_ND.device
    shards = Shards(len(x_ND), group)
    centroids = start or initial_centroids(
        x_ND, k, prefix=prefix, seed=seed, device=device, shards=shards
    )
    if centroids.x_KD.shape != (k, x_ND.shape[1]):
        raise ValueError(f"start must be {(k, x_ND.shape[1])}, got {tuple(centroids.x_KD.shape)}")
    if (centroids.prefix_KD is None) != (prefix is None):
        raise ValueError("start needs prefix centroids exactly when the points have a prefix")
    rows = _Rows(x_ND, centroids, prefix, device, part_rows or len(x_ND), shards)
    objectives: list[float] = []
    repaired, converged = 0, False
    with only_each() if device.type == "cpu" else nullcontext():
        while len(objectives) < iterations and not converged:
            objective, moved, filled = rows.iterate()
            if moved + filled == 0:
                converged = True
                break
            repaired += filled
            objectives.append(objective)
            converged = len(objectives) > 1 and objectives[-2] - objective < tolerance * objective
        codes_N = rows.last_search()
        return KMeans(
            centroids=rows.centroids,
            codes_N=codes_N,
            objective=rows.objective(),
            objectives=tuple(objectives),
            iterations=len(objectives),
            converged=converged,
            repaired=repaired,
        )


class _Rows:
    """This worker's rows during a fit: their codes, the sums of their clusters, the centroids."""

    def __init__(
        self,
        x_ND: Tensor,
        start: Centroids,
        prefix: Prefix | None,
        device: torch.device,
        part_rows: int,
        shards: Shards,
    ) -> None:
        self.x_ND, self.prefix, self.shards = x_ND, prefix, shards
        self.device, self.part_rows = device, part_rows
        self.codes_N = torch.full((len(x_ND),), -1, device=x_ND.device)
        self.means = Means(x_ND, len(start.x_KD), prefix, device, shards)
        self.centre_D = self.means.mean_D.float()
        mean_square = self.shards.total * float(self.centre_D.double().square().sum())
        self.shift = device.type == "cuda" or mean_square > self.means.data_total
        self.books = tuple(book.to(device) for book in prefix.books) if prefix else ()
        prefix_KD = None if start.prefix_KD is None else start.prefix_KD.to(device, copy=True)
        self.centroids = Centroids(x_KD=start.x_KD.to(device, copy=True), prefix_KD=prefix_KD)
        self.report = torch.zeros(3, dtype=torch.float64, device=device)
        """Objective, rows moved and empty clusters of the last step: one read of the device."""
        self.bounds: Bounds | None = None
        self.packed: PackedRows | None = None
        self.step = self._step
        if device.type == "cpu":
            self.bounds = Bounds(x_ND, prefix, self.centre_D, self.means.prefix_mean_D)
        elif x_ND.is_cuda and shards.group is None:
            self.step = Replayed(self._step, device)

    def iterate(self) -> tuple[float, int, int]:
        """One Lloyd iteration: the objective, rows moved, and empty clusters filled."""
        self.step()
        objective, moved, empty = self.report.tolist()
        if empty == 0:
            return objective, int(moved), 0
        filled = self._fill_empty()
        return float(self._update()), int(moved), filled

    def _step(self) -> None:
        moved = self._search()
        self.report[0] = self._update()
        self.report[1] = self.shards.sum(moved)
        self.report[2] = (self.shards.sum(self.means.counts_K) == 0).sum()

    def _update(self) -> Tensor:
        """Moves the centroids, in place, to the means of their rows. Returns the objective."""
        new, objective = self.means.centroids(self.centroids)
        if self.bounds is not None:
            self.bounds.shift(self._shift(new), self.codes_N)
        self.centroids.x_KD.copy_(new.x_KD)
        if self.centroids.prefix_KD is not None and new.prefix_KD is not None:
            self.centroids.prefix_KD.copy_(new.prefix_KD)
        return objective

    def _shift(self, new: Centroids) -> Tensor:
        """How far each centroid moves (K,), in [x ; alpha * p]."""
        moved_K = (new.x_KD.double() - self.centroids.x_KD.double()).square().sum(1)
        if self.prefix and new.prefix_KD is not None and self.centroids.prefix_KD is not None:
            apart_KD = new.prefix_KD.double() - self.centroids.prefix_KD.double()
            moved_K += self.prefix.weight**2 * apart_KD.square().sum(1)
        return moved_K.sqrt()

    def _nearest(self) -> NearestCentroid:
        scores = CentroidScores(
            self.centroids,
            self.books,
            self.prefix.weight if self.prefix else 0.0,
            centre_D=self.centre_D,
            prefix_centre_D=self.means.prefix_mean_D,
            shift=self.shift,
        )
        return NearestCentroid(scores)

    def _parts(self) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Rows on the device, part by part: where, x and the codes in the prefix's books."""
        for start in range(0, len(self.x_ND), self.part_rows):
            part = slice(start, min(start + self.part_rows, len(self.x_ND)))
            codes_MJ = self.prefix.codes_NJ[part].to(self.device) if self.prefix else None
            yield part, self.x_ND[part].to(self.device), codes_MJ

    def _search(self) -> Tensor:
        """New codes, and their clusters' sums. Returns how many of this worker's rows moved."""
        nearest = self._nearest()
        if self.bounds is not None:
            codes_N = self.bounds.search(nearest, self.x_ND, self.prefix, self.codes_N)
            codes_NJ = self.prefix.codes_NJ if self.prefix else None
            moved = self.means.move(self.x_ND, codes_NJ, self.codes_N, codes_N)
            self.codes_N = codes_N
            return moved
        from models.cuda_rows import CudaNearest, PackedRows

        search = CudaNearest(nearest.scores)
        moved = torch.zeros((), dtype=torch.int64, device=self.device)
        for part, x_MD, codes_MJ in self._parts():
            packed = self.packed or PackedRows(x_MD, codes_MJ, search)
            if self.part_rows >= len(self.x_ND):
                self.packed = packed  # all rows fit: packed once for the whole fit
            now_M = search.propose(packed)
            was_M = self.codes_N[part].to(self.device)
            moved += self.means.move(x_MD, codes_MJ, was_M, now_M)
            self.codes_N[part] = now_M.to(self.codes_N.device)
        return moved

    def last_search(self) -> Tensor:
        """The exact codes at the final centroids."""
        if self.bounds is not None:
            self._search()
            return self.codes_N
        self.packed = None
        nearest = self._nearest()
        for part, x_MD, codes_MJ in self._parts():
            now_M = nearest(x_MD, codes_MJ)
            self.means.move(x_MD, codes_MJ, self.codes_N[part].to(self.device), now_M)
            self.codes_N[part] = now_M.to(self.codes_N.device)
        return self.codes_N

    def _distances(self) -> Iterator[tuple[slice, Tensor]]:
        for part, x_MD, codes_MJ in self._parts():
            prefix = None
            if self.prefix and codes_MJ is not None:
                prefix = Prefix(codes_NJ=codes_MJ, books=self.books, weight=self.prefix.weight)
            code_M = self.codes_N[part].to(self.device)
            yield part, squared_distances(x_MD, code_M, self.centroids, prefix)

    def objective(self) -> float:
        """Of the rows' codes and centroids, from the clusters' sums where those say it exactly."""
        found = self.means.objective(self.centroids)
        if not math.isnan(found):
            return found
        local = sum(float(distance_M.sum()) for _, distance_M in self._distances())
        return float(self.shards.sum(torch.tensor(local, dtype=torch.float64)))

    def _fill_empty(self) -> int:
        """Gives each empty cluster the row farthest from its own centroid; returns how many.

        Chosen one by one among the farthest rows, so that two empty clusters never get equal rows.
        A cluster stays empty when every row lies on its centroid: fewer distinct rows than
        clusters.
        """
        count_K = self.shards.sum(self.means.counts_K).cpu()
        empty = (count_K == 0).nonzero()[:, 0].tolist()
        if not empty:
            return 0
        distance_N = torch.empty(len(self.x_ND), dtype=torch.float64)
        for part, distance_M in self._distances():
            distance_N[part] = distance_M.cpu()
        distance_N *= count_K[self.codes_N.cpu()] > 1
        far_S, row_S = self._farthest(distance_N, 8 * len(empty))
        x_SD = self.shards.gather(self.x_ND, row_S).cpu()
        p_SD = None
        if self.prefix:
            codes_SJ = self.shards.gather(self.prefix.codes_NJ, row_S).cpu()
            books = tuple(book.cpu() for book in self.books)
            p_SD = prefix_sum(books, codes_SJ)
        filled = 0
        for code in empty:
            pick = int(far_S.argmax())
            if far_S[pick] <= 0:
                break
            self._give(int(row_S[pick]), code)
            filled += 1
            to_pick_S = (x_SD - x_SD[pick]).square().sum(1).double()
            if self.prefix and p_SD is not None:
                to_pick_S += self.prefix.weight**2 * (p_SD - p_SD[pick]).square().sum(1)
            far_S = torch.minimum(far_S, to_pick_S)
        return filled

    def _farthest(self, distance_N: Tensor, pool: int) -> tuple[Tensor, Tensor]:
        """Distances and row numbers of the `pool` farthest rows of all workers; ties: first row."""
        order_N = distance_N.sort(descending=True, stable=True).indices[:pool]
        far = torch.full((pool,), -1.0, dtype=torch.float64)
        row = torch.zeros(pool, dtype=torch.int64)
        far[: len(order_N)] = distance_N[order_N]
        row[: len(order_N)] = order_N + self.shards.first
        far, row = self.shards.concatenate(far), self.shards.concatenate(row)
        best = far.sort(descending=True, stable=True).indices[: min(pool, self.shards.total)]
        best = best[far[best] >= 0]
        return far[best], row[best]

    def _give(self, row: int, code: int) -> None:
        local = row - self.shards.first
        if not 0 <= local < len(self.x_ND):
            return
        part = slice(local, local + 1)
        now = torch.tensor([code], device=self.device)
        codes_MJ = self.prefix.codes_NJ[part].to(self.device) if self.prefix else None
        was = self.codes_N[part].to(self.device)
        self.means.move(self.x_ND[part].to(self.device), codes_MJ, was, now)
        self.codes_N[part] = now.to(self.codes_N.device)
        if self.bounds is not None:
            self.bounds.forget(torch.tensor([local]))
