"""The exact nearest centroid of points [x ; alpha * p], without building their second half.

The first half x is data; the second half p, the *prefix* of PSRQ (paper section 1), is a sum of one
row from each earlier codebook, so its inner products come from K x K tables.

Shape suffixes: N rows, M rows of one chunk, P (row, centroid) pairs, D dims, K codes,
J earlier levels.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST = 1e15
"""Largest magnitude accepted: beyond it squares of float32 overflow."""
CHUNK_ELEMENTS = 1 << 21
"""Values held at once by a chunked step: 8 MB of float32, so that a chunk stays in cache."""
EPS = 2.0**-23


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """The second half of every point: alpha * p with p = sum_j books[j][codes_NJ[:, j]].

    `codes_NJ` int64, `books` J tensors (K_j, D) float32, `weight` alpha > 0.
    """

    codes_NJ: Tensor
    books: tuple[Tensor, ...]
    weight: float

    def rows(self, index: Tensor | slice) -> Tensor:
        """Unscaled p of a few rows, (M, D)."""
        return prefix_sum(self.books, self.codes_NJ[index])


@dataclass(frozen=True, kw_only=True)
class Centroids:
    """`x_KD` centroids of the data half, `prefix_KD` unscaled centroids of the prefix half."""

    x_KD: Tensor
    prefix_KD: Tensor | None = None


def check_rows(x_ND: Tensor) -> Tensor:
    """`x_ND` as float32 (N, D); ValueError naming the first row that cannot be clustered."""
    if x_ND.ndim != 2 or x_ND.shape[0] == 0 or x_ND.shape[1] == 0:
        raise ValueError(
            f"vectors must be (rows, dims) with at least one of each, got {tuple(x_ND.shape)}"
        )
    x_ND = x_ND.to(torch.float32)
    bad_N = torch.cat([~(x_ND[part].abs().amax(1) <= LARGEST) for part in chunks(x_ND)])  # NaN too
    if bad_N.any():
        first, count = int(bad_N.nonzero()[0]), int(bad_N.sum())
        raise ValueError(
            f"row {first} holds a value that is not finite or beyond {LARGEST:g}; "
            f"{count} of {len(bad_N)} rows do"
        )
    return x_ND


def chunks(x_ND: Tensor, width: int = 0) -> Iterator[slice]:
    """Row slices of at most CHUNK_ELEMENTS values, counting `width` more values a row."""
    size = max(256, min(8192, CHUNK_ELEMENTS // max(1, x_ND.shape[1] + width)))
    for start in range(0, len(x_ND), size):
        yield slice(start, min(start + size, len(x_ND)))


def mean_and_scatter(x_ND: Tensor) -> tuple[Tensor, float]:
    """The mean (D,) and sum ||x - mean||^2, in float64."""
    mean_D = torch.stack([x_ND[part].double().sum(0) for part in chunks(x_ND)]).sum(0) / len(x_ND)
    return mean_D, sum(
        float((x_ND[part].double() - mean_D).square().sum()) for part in chunks(x_ND)
    )


def prefix_sum(books: tuple[Tensor, ...], codes_MJ: Tensor) -> Tensor:
    """p = X - X_l = sum of the codebook rows already subtracted (paper section 1), (M, D)."""
    p_MD = books[0][codes_MJ[:, 0]]
    for j in range(1, codes_MJ.shape[1]):
        p_MD = p_MD + books[j][codes_MJ[:, j]]
    return p_MD


class NearestCentroid:
    """argmin_k ||x - c_k||^2 + alpha^2 ||p - c_p,k||^2, prepared once for one set of centroids.

    The codes are those of float64 arithmetic, ties to the lowest index, and depend on nothing but
    the row: float32 products propose, and every centroid within their worst rounding error of the
    best is scored again in float64 by the formula above. So neither batch, chunk nor BLAS can
    change a code.
    """

    def __init__(
        self, centroids: Centroids, books: tuple[Tensor, ...] = (), weight: float = 0.0
    ) -> None:
        self.centroids, self.books, self.weight = centroids, books, weight
        c_KD = centroids.x_KD.double()
        # argmin ||x - c||^2 = argmax (x-m).(c-m) - ||c-m||^2/2 for any m; the mean keeps it small.
        self.centre_D = c_KD.mean(0).float()
        c_KD = c_KD - self.centre_D.double()
        self.c_DK = c_KD.float().T.contiguous()
        self.c_norm = float(c_KD.norm(dim=1).max())
        bias_K = -0.5 * c_KD.square().sum(1)
        tables: list[Tensor] = []
        if centroids.prefix_KD is not None:
            q_KD = centroids.prefix_KD.double()
            mean_D = q_KD.mean(0)
            q_KD = q_KD - mean_D
            bias_K = bias_K - 0.5 * weight**2 * q_KD.square().sum(1)
            # alpha^2 (p-m).(c_p-m) = sum_j alpha^2 book_j[code_j].(c_p-m), m folded into book 0
            tables = [
                weight**2 * (book.double() - mean_D * (j == 0)) @ q_KD.T
                for j, book in enumerate(books)
            ]
            tables[0] += bias_K
        self.tables = [table.float() for table in tables]
        self.bias_K = bias_K.float()
        self.table_norm = sum(float(t.abs().max()) for t in self.tables or [self.bias_K])
        # A copy of an earlier centroid loses every tie: leave it out, exact scoring is dearer.
        both_KD = (
            centroids.x_KD
            if centroids.prefix_KD is None
            else torch.cat([centroids.x_KD, centroids.prefix_KD], 1)
        )
        group_K = torch.unique(both_KD, dim=0, return_inverse=True)[1]
        index_K = torch.arange(len(group_K), device=group_K.device)
        first_K = torch.full_like(group_K, len(group_K)).scatter_reduce(0, group_K, index_K, "amin")
        self.copies = (first_K[group_K] != index_K).nonzero()[:, 0]

    def __call__(self, x_ND: Tensor, codes_NJ: Tensor | None = None) -> Tensor:
        """Codes (N,) int64 of float32 rows; `codes_NJ` are the rows' codes in `books`."""
        parts = [
            self._chunk(x_ND[part], None if codes_NJ is None else codes_NJ[part])
            for part in chunks(x_ND, self.c_DK.shape[1])
        ]
        return torch.cat(parts)

    def _chunk(self, x_MD: Tensor, codes_MJ: Tensor | None) -> Tensor:
        shifted_MD = x_MD - self.centre_D
        if self.tables and codes_MJ is not None:
            scores_MK = self.tables[0][codes_MJ[:, 0]]
            for j in range(1, len(self.tables)):
                scores_MK += self.tables[j][codes_MJ[:, j]]
            scores_MK.addmm_(shifted_MD, self.c_DK)
        else:
            scores_MK = torch.addmm(self.bias_K, shifted_MD, self.c_DK)
        scores_MK[:, self.copies] = -math.inf
        best_M, codes_M = scores_MK.max(1)
        # A sum of D products is off by D * EPS/2 * ||x|| ||c|| at most, and both scores may be.
        norm_M = torch.linalg.vector_norm(shifted_MD, dim=1)
        steps = EPS * (x_MD.shape[1] + len(self.tables) + 8)
        margin_M = steps * (norm_M * self.c_norm + self.table_norm) + 1e-35
        close_MK = scores_MK >= (best_M - margin_M)[:, None]
        open_M = (close_MK.sum(1, dtype=torch.int32) > 1).nonzero()[:, 0]
        if len(open_M):
            codes_M[open_M] = self._exact(
                x_MD[open_M], None if codes_MJ is None else codes_MJ[open_M], close_MK[open_M]
            )
        return codes_M

    def _exact(self, x_MD: Tensor, codes_MJ: Tensor | None, close_MK: Tensor) -> Tensor:
        row_P, code_P = close_MK.nonzero().unbind(1)
        distance_P = torch.empty(len(row_P), dtype=torch.float64, device=x_MD.device)
        size = max(1, CHUNK_ELEMENTS // (4 * x_MD.shape[1]))
        for start in range(0, len(row_P), size):
            part = slice(start, start + size)
            row, code = row_P[part], code_P[part]
            distance = (x_MD[row].double() - self.centroids.x_KD[code].double()).square().sum(1)
            if self.centroids.prefix_KD is not None and codes_MJ is not None:
                p_PD = prefix_sum(self.books, codes_MJ[row]).double()
                half = (p_PD - self.centroids.prefix_KD[code].double()).square().sum(1)
                distance += self.weight**2 * half
            distance_P[part] = distance
        m, k = close_MK.shape
        least_M = torch.full((m,), math.inf, dtype=torch.float64, device=x_MD.device)
        least_M.scatter_reduce_(0, row_P, distance_P, "amin")
        wins_P = distance_P == least_M[row_P]
        codes_M = torch.full((m,), k, dtype=torch.int64, device=x_MD.device)
        return codes_M.scatter_reduce_(0, row_P[wins_P], code_P[wins_P], "amin")


def nearest(x_ND: Tensor, centroids: Centroids, prefix: Prefix | None = None) -> Tensor:
    """Codes (N,) of the nearest centroids, for one call with one set of centroids."""
    if prefix is None:
        return NearestCentroid(centroids)(x_ND)
    return NearestCentroid(centroids, prefix.books, prefix.weight)(x_ND, prefix.codes_NJ)
