"""The means of clusters over a whole fit: float64 sums, to which only rows that moved are added.

A float64 sum of float32 values of like magnitude is exact, so nothing drifts, the order of rows,
chunks and workers does not matter, and the mean of equal rows is that row: the residual of a
duplicate is 0, not rounding noise. The prefix half needs no row at all: counts of (earlier code,
code) pairs times the earlier books.

Shape suffixes: N rows, M rows of one chunk, D dims, K codes, J earlier levels, C codes of an
earlier level, E rows that moved, U clusters of a chunk.
"""

import math

import torch
from torch import Tensor

from models.rows import Centroids, Prefix, chunks, prefix_sum, small_chunks
from models.shards import Shards
from models.threads import each, product

DIMS = 384
"""Dims of a row that one thread of a CPU sum adds at once: 256 clusters of them stay in cache."""


class Means:
    """Sums and counts of K clusters on one device, over all workers of `shards`."""

    def __init__(
        self, x_ND: Tensor, k: int, prefix: Prefix | None, device: torch.device, shards: Shards
    ) -> None:
        self.prefix, self.shards = prefix, shards
        d = x_ND.shape[1]
        self.sums_KD = torch.zeros(k, d, dtype=torch.float64, device=device)
        self.counts_K = torch.zeros(k, dtype=torch.int64, device=device)
        self.pairs_JCK: Tensor | None = None
        if prefix is not None:
            most = max(len(book) for book in prefix.books)
            self.pairs_JCK = torch.zeros(
                len(prefix.books), most, k, dtype=torch.int64, device=device
            )
        n = max(1, shards.total)
        sums, squares = zip(
            *each(lambda part: _moments(x_ND[part]), small_chunks(x_ND)), strict=True
        )
        self.mean_D = shards.sum(torch.stack(sums).sum(0)).to(device) / n
        self.data_total = self._scatter(x_ND, float(shards.sum(torch.stack(squares).sum())))
        """sum ||x - mean||^2, without the prefix half."""
        self.total = self.data_total
        self.prefix_mean_D = self.mean_D
        if prefix is not None:
            self.prefix_mean_D, scatter = self._prefix_moments(prefix)
            self.total += prefix.weight**2 * scatter

    def _scatter(self, x_ND: Tensor, total: float) -> float:
        """sum ||x - mean||^2, as sum ||x||^2 - n ||mean||^2 where that keeps seven digits."""
        scatter = total - self.shards.total * float(self.mean_D.square().sum())
        if scatter > 1e-9 * total:
            return scatter
        mean_D = self.mean_D.to(x_ND.device)
        parts = [(x_ND[part].double() - mean_D).square().sum() for part in chunks(x_ND)]
        return float(self.shards.sum(torch.stack(parts).sum()))

    def _prefix_moments(self, prefix: Prefix) -> tuple[Tensor, float]:
        """Mean (D,) of p and sum ||p - mean||^2, from counts of codes and of pairs of codes.

        With books centred by how often their codes occur, sum ||p - mean||^2 =
        sum_ij sum_cc' n_ij(c, c') b_i[c].b_j[c'].
        """
        device = self.sums_KD.device
        mean_D, scatter, books = torch.zeros_like(self.mean_D), 0.0, []
        for j, book in enumerate(prefix.books):
            code_N = prefix.codes_NJ[:, j]
            count_C = self.shards.sum(torch.bincount(code_N, minlength=len(book))).double()
            b_CD = book.to(count_C.device).double()
            mean = count_C @ b_CD / max(1, self.shards.total)
            books.append(b_CD - mean)
            mean_D += mean.to(device)
            scatter += float((count_C[:, None] * books[j].square()).sum())
            for i in range(j):
                pair_N = prefix.codes_NJ[:, i] * len(book) + code_N
                size = len(prefix.books[i]) * len(book)
                count_CC = self.shards.sum(torch.bincount(pair_N, minlength=size))
                inner_CC = books[i] @ books[j].T
                scatter += 2 * float((count_CC.view_as(inner_CC) * inner_CC).sum())
        return mean_D, max(0.0, scatter)

    def move(self, x_ND: Tensor, codes_NJ: Tensor | None, was_N: Tensor, now_N: Tensor) -> Tensor:
        """Takes rows out of clusters `was_N` (-1: none) and into `now_N`. Returns how many moved.

        `codes_NJ`: the rows' codes in the prefix's books. On a CUDA device nothing waits: rows that
        stay are sorted to the end, and skipped there.
        """
        changed_N = was_N != now_N
        if x_ND.is_cuda:
            self._move_cuda(x_ND, codes_NJ, torch.where(changed_N, now_N, len(self.counts_K)), 1)
            leaves_N = changed_N & (was_N >= 0)
            self._move_cuda(x_ND, codes_NJ, torch.where(leaves_N, was_N, len(self.counts_K)), -1)
        else:
            moved_E = changed_N.nonzero()[:, 0]
            codes_EJ = None if codes_NJ is None else codes_NJ.index_select(0, moved_E)
            self._move_cpu(x_ND, codes_EJ, moved_E, was_N[moved_E], now_N[moved_E])
        return changed_N.sum()

    def _sorted(self, key_E: Tensor) -> tuple[Tensor, Tensor]:
        narrow = torch.int16 if len(self.counts_K) < 2**15 else torch.int32
        key_E, order_E = key_E.to(narrow).sort(stable=True)
        return key_E, order_E

    def _move_cuda(self, x_ND: Tensor, codes_NJ: Tensor | None, key_N: Tensor, sign: int) -> None:
        from models.cuda_sums import move_rows

        key_N, row_N = self._sorted(key_N)
        move_rows(
            self.sums_KD, self.counts_K, self.pairs_JCK, x_ND, codes_NJ, key_N, row_N, sign=sign
        )

    def _move_cpu(
        self, x_ND: Tensor, codes_EJ: Tensor | None, row_E: Tensor, was_E: Tensor, now_E: Tensor
    ) -> None:
        self._count(codes_EJ, now_E, 1)
        left_E = was_E >= 0
        self._count(None if codes_EJ is None else codes_EJ[left_E], was_E[left_E], -1)
        from models.cpu_kernels import move_rows  # numba: only where rows are moved on a CPU

        rows, was, now = row_E.numpy(), was_E.numpy(), now_E.numpy()
        sums, x, d = self.sums_KD.numpy(), x_ND.contiguous().numpy(), self.sums_KD.shape[1]

        def move(first: int) -> None:
            move_rows(sums, x, rows, was, now, first, min(first + DIMS, d))

        each(move, range(0, d, DIMS))

    def _count(self, codes_EJ: Tensor | None, key_E: Tensor, sign: int) -> None:
        """Adds `sign` to the counts of clusters `key_E`, and of their pairs."""
        sign_E = torch.full_like(key_E, sign)
        self.counts_K.scatter_add_(0, key_E, sign_E)
        if self.pairs_JCK is not None and codes_EJ is not None:
            for j, pairs_CK in enumerate(self.pairs_JCK):
                pair_E = codes_EJ[:, j] * len(self.counts_K) + key_E
                pairs_CK.view(-1).scatter_add_(0, pair_E, sign_E)

    def _prefix_sums(self) -> Tensor:
        """Sum (K, D) of p over each cluster = sum_j sum_c pairs_j[c, k] book_j[c]."""
        assert self.prefix is not None
        assert self.pairs_JCK is not None
        sums_KD = torch.zeros_like(self.sums_KD)
        pairs_JCK = self.shards.sum(self.pairs_JCK).double()
        for pairs_CK, book in zip(pairs_JCK, self.prefix.books, strict=True):
            sums_KD += product(pairs_CK[: len(book)].T, book.to(sums_KD.device).double())
        return sums_KD

    def centroids(self, old: Centroids) -> tuple[Centroids, Tensor]:
        """The means (an empty cluster keeps its old centroid), and the objective at them."""
        count_K1 = self.shards.sum(self.counts_K).double()[:, None]
        mean_KD = self.shards.sum(self.sums_KD) / count_K1.clamp_min(1)
        x_KD = torch.where(count_K1 > 0, mean_KD.float(), old.x_KD)
        # sum ||x - c||^2 = total - sum_k n_k ||c_k - mean||^2 for the means c_k of a partition
        objective = self.total - (count_K1 * (mean_KD - self.mean_D).square()).sum()
        if self.prefix is None or old.prefix_KD is None:
            return Centroids(x_KD=x_KD), objective.clamp_min(0)
        mean_KD = self._prefix_sums() / count_K1.clamp_min(1)
        between = (count_K1 * (mean_KD - self.prefix_mean_D).square()).sum()
        objective = objective - self.prefix.weight**2 * between
        prefix_KD = torch.where(count_K1 > 0, mean_KD.float(), old.prefix_KD)
        return Centroids(x_KD=x_KD, prefix_KD=prefix_KD), objective.clamp_min(0)

    def objective(self, centroids: Centroids) -> float:
        """The sum of squared distances of the rows to the centroids of their clusters.

        sum ||x - c||^2 = sum ||x - m||^2 - sum_k (c_k - m).(2 (S_k - n_k m) - n_k (c_k - m)), m the
        mean and S_k a cluster's sum; nothing is read but sums. NaN where that keeps few digits.
        """
        count_K1 = self.shards.sum(self.counts_K).double()[:, None]
        gain = self._gain(centroids.x_KD, self.mean_D, self.shards.sum(self.sums_KD), count_K1)
        if centroids.prefix_KD is not None and self.prefix is not None:
            sums_KD = self._prefix_sums()
            found = self._gain(centroids.prefix_KD, self.prefix_mean_D, sums_KD, count_K1)
            gain += self.prefix.weight**2 * found
        objective = self.total - float(gain)
        return objective if objective > 1e-6 * self.total else math.nan

    @staticmethod
    def _gain(c_KD: Tensor, mean_D: Tensor, sums_KD: Tensor, count_K1: Tensor) -> Tensor:
        c_KD = c_KD.double() - mean_D
        return (c_KD * (2 * (sums_KD - count_K1 * mean_D) - count_K1 * c_KD)).sum()


def _moments(x_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the rows (D,), and of all squares, in float64."""
    x_MD = x_MD.double()
    flat = x_MD.view(-1)
    return torch.ones(len(x_MD), dtype=x_MD.dtype, device=x_MD.device) @ x_MD, flat @ flat


def squared_distances(
    x_ND: Tensor, codes_N: Tensor, centroids: Centroids, prefix: Prefix | None
) -> Tensor:
    """Squared distance (N,) float64 of every row to its code's centroid; 0 for equal rows."""
    parts = []
    for part in chunks(x_ND):
        code_M = codes_N[part]
        apart_MD = x_ND[part] - centroids.x_KD.index_select(0, code_M)
        distance_M = apart_MD.square().sum(1).double()
        if prefix is not None and centroids.prefix_KD is not None:
            p_MD = prefix_sum(prefix.books, prefix.codes_NJ[part])
            apart_MD = p_MD - centroids.prefix_KD.index_select(0, code_M)
            distance_M += prefix.weight**2 * apart_MD.square().sum(1)
        parts.append(distance_M)
    return torch.cat(parts)
