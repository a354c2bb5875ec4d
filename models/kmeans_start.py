"""Where k-means starts: k rows far apart, by k-means|| and then greedy k-means++ (both weighted).

k-means|| (Bahmani et al., 2012) draws a few thousand candidates in ROUNDS passes over a sample,
instead of k passes; k-means++ (Arthur and Vassilvitskii, 2007) picks k of them, and looks at a few
draws for each pick. Points are [x ; alpha * p]; as everywhere, p never exists as an (n, d) matrix.

Shape suffixes: S sampled rows, C candidates, T targets of one distance table, K codes, D dims,
J earlier levels.
"""

import math

import torch
from torch import Tensor

from models.cuda_graph import Replayed
from models.rows import EPS, Centroids, Prefix, chunks, prefix_sum
from models.shards import Shards

SAMPLE_PER_CODE = 32
SAMPLE_MIN = 8_192
"""The start looks at max(SAMPLE_MIN, k * SAMPLE_PER_CODE) sampled rows at most."""
ROUNDS = 4
"""Rounds of k-means||, each drawing about k candidates."""


def initial_centroids(
    x_ND: Tensor,
    k: int,
    *,
    prefix: Prefix | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    shards: Shards | None = None,
) -> Centroids:
    """k rows of [x ; alpha * p], of all workers' rows, on `device`.

    With fewer than k distinct rows each is a centroid, and the rest are copies of centroid 0:
    unused, because a tie goes to the lowest index.
    """
    device = device or x_ND.device
    shards = shards or Shards(len(x_ND))
    generator = torch.Generator().manual_seed(seed)
    limit = max(SAMPLE_MIN, k * SAMPLE_PER_CODE)
    index_S = torch.arange(shards.total)
    if shards.total > limit:
        index_S = torch.randperm(shards.total, generator=generator)[:limit].sort().values
    x_SD = shards.gather(x_ND, index_S).to(device)
    points = _Points(x_SD)
    if prefix is not None:
        books = tuple(book.to(device) for book in prefix.books)
        codes_SJ = shards.gather(prefix.codes_NJ, index_S).to(device)
        points = _Points(x_SD, books, codes_SJ, prefix.weight)
    picks = _plus_plus(points, *_candidates(points, k, generator), k, generator)
    if len(picks) < k:
        picks = _complete(points, picks, k)
    # CUDA adds up in any order, other machines round otherwise: all workers need one start.
    pick_K = shards.agree(torch.cat([picks, picks[:1].expand(k - len(picks))]))
    return Centroids(
        x_KD=x_SD[pick_K], prefix_KD=prefix_sum(books, codes_SJ[pick_K]) if prefix else None
    )


class _Points:
    """Sampled points [x ; alpha * p] and their squared distances."""

    def __init__(
        self,
        x_SD: Tensor,
        books: tuple[Tensor, ...] = (),
        codes_SJ: Tensor | None = None,
        weight: float = 0.0,
    ) -> None:
        # Distances do not change when the data, or book 0, is centred: only their rounding does.
        self.x_SD = x_SD - x_SD.double().mean(0).float()
        self.norm_S = self.x_SD.square().sum(1)
        self.books, self.codes_SJ, self.weight = books, codes_SJ, weight
        if codes_SJ is not None:
            self.books = (books[0] - books[0].mean(0), *books[1:])
            for part in chunks(x_SD):
                p_MD = prefix_sum(self.books, codes_SJ[part])
                self.norm_S[part] += weight**2 * p_MD.square().sum(1)
        self.noise = 4 * EPS * (x_SD.shape[1] + 8)

    def __len__(self) -> int:
        return len(self.x_SD)

    def take(self, index_C: Tensor) -> "_Points":
        taken = object.__new__(_Points)
        taken.x_SD, taken.norm_S = self.x_SD.index_select(0, index_C), self.norm_S[index_C]
        taken.books, taken.weight, taken.noise = self.books, self.weight, self.noise
        taken.codes_SJ = None if self.codes_SJ is None else self.codes_SJ.index_select(0, index_C)
        return taken

    def squared_distances(self, rows: slice, pick_T: Tensor) -> Tensor:
        """(M, T) float32; what rounding alone explains is 0: a duplicate."""
        cross_MT = self.x_SD[rows] @ self.x_SD.index_select(0, pick_T).T
        if self.codes_SJ is not None:
            target_TD = prefix_sum(self.books, self.codes_SJ.index_select(0, pick_T))
            for j, book in enumerate(self.books):
                table_CT = self.weight**2 * (book @ target_TD.T)
                cross_MT += table_CT.index_select(0, self.codes_SJ[rows, j])
        size_MT = self.norm_S[rows, None] + self.norm_S[pick_T]
        squared_MT = size_MT - 2 * cross_MT
        return torch.where(squared_MT > self.noise * size_MT, squared_MT, 0.0)

    def nearest(self, pick_T: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distance (S,) to the nearest of the picked points, and its place in `pick_T`."""
        found = [
            self.squared_distances(part, pick_T).min(1) for part in chunks(self.x_SD, len(pick_T))
        ]
        return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def _candidates(points: _Points, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Places of candidates (C,) in the sample, and how many sampled points each stands for."""
    device = points.x_SD.device
    n = len(points)
    if n <= 2 * ROUNDS * k:  # hardly more points than candidates
        return torch.arange(n, device=device), torch.ones(n, device=device)
    picks = torch.randint(n, (1,), generator=generator).to(device)
    nearest_S, owner_S = points.nearest(picks)
    for _ in range(ROUNDS):
        # Each point joins with probability k d^2 / sum d^2.
        share_S = k * nearest_S.double() / nearest_S.double().sum().clamp_min(1e-300)
        draw_S = torch.rand(n, generator=generator, dtype=torch.float64).to(device)
        new_T = (draw_S < share_S).nonzero()[:, 0]
        if not len(new_T):
            continue
        distance_S, place_S = points.nearest(new_T)
        closer_S = distance_S < nearest_S
        owner_S = torch.where(closer_S, place_S + len(picks), owner_S)
        nearest_S = torch.minimum(nearest_S, distance_S)
        picks = torch.cat([picks, new_T])
    return picks, torch.bincount(owner_S, minlength=len(picks)).float()


def _complete(points: _Points, picks: Tensor, k: int) -> Tensor:
    """Distinct candidates were fewer than k: the farthest point joins, as long as there is one."""
    nearest_S, _ = points.nearest(picks)
    while len(picks) < k and nearest_S.max() > 0:
        picks = torch.cat([picks, nearest_S.argmax().view(1)])
        nearest_S = torch.minimum(nearest_S, points.nearest(picks[-1:])[0])
    return picks


def _plus_plus(
    points: _Points, place_C: Tensor, weight_C: Tensor, k: int, generator: torch.Generator
) -> Tensor:
    """Greedy k-means++ on weighted candidates: places of at most k distinct ones in the sample.

    Nothing is read back from the device until the last pick.
    """
    candidates = points.take(place_C)
    # All distances at once: at most (2 ROUNDS k)^2 values, and k small steps instead of k products.
    distance_CC = torch.cat(
        [
            candidates.squared_distances(part, torch.arange(len(place_C), device=place_C.device))
            for part in chunks(candidates.x_SD, len(place_C))
        ]
    )
    device, trials = place_C.device, 2 + int(math.log(k))
    draw_KT = torch.rand(k, trials, generator=generator, dtype=torch.float64).to(device)
    mass_C = weight_C.cumsum(0, dtype=torch.float64)
    first = torch.searchsorted(mass_C, draw_KT[0, :1] * mass_C[-1], right=True)
    pick_K = first.clamp_max(len(place_C) - 1).repeat(k)
    mass_K = torch.ones(k, dtype=torch.float64, device=device)
    nearest_C = distance_CC.index_select(0, pick_K[:1])[0]
    at = torch.ones(1, dtype=torch.int64, device=device)

    def step() -> None:
        mass_C = (nearest_C * weight_C).cumsum(0, dtype=torch.float64)
        draw_T = draw_KT.index_select(0, at)[0] * mass_C[-1]
        pick_T = torch.searchsorted(mass_C, draw_T, right=True).clamp_max(len(place_C) - 1)
        after_TC = torch.minimum(nearest_C, distance_CC.index_select(0, pick_T))
        best = (after_TC @ weight_C).argmin().view(1)
        pick_K.index_copy_(0, at, pick_T.index_select(0, best))
        mass_K.index_copy_(0, at, mass_C[-1:])
        nearest_C.copy_(after_TC.index_select(0, best)[0])
        at.add_(1)

    pick = Replayed(step, device)
    for _ in range(1, k):
        pick()
    return place_C[pick_K[: int((mass_K > 0).sum())]]
