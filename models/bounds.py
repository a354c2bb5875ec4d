"""Rows whose code cannot have changed, by the triangle inequality (Hamerly, 2010): exact pruning.

After centroids moved, a row keeps its code if its distance to its own centroid, plus how far that
one moved, is less than the distance to any other, less how far the farthest of those moved. The
distances are limits from the last search, with its rounding inside: no code differs from Lloyd's.

Shape suffixes: N rows, A rows searched again, K codes.
"""

import torch
from torch import Tensor

from models.nearest import NearestCentroid, PreparedRows
from models.rows import EPS, Prefix, small_chunks
from models.threads import each

MOST = 0.8
"""With a larger share of rows to search, all are: gathering them is not free."""


class Bounds:
    """The limits of every row's distances, for a fit on the CPU."""

    def __init__(
        self, x_ND: Tensor, prefix: Prefix | None, centre_D: Tensor, prefix_centre_D: Tensor
    ) -> None:
        self.size_N = _square_norms(x_ND, centre_D)
        if prefix is not None:
            self.size_N += prefix.weight**2 * _prefix_square_norms(prefix, prefix_centre_D)
        """||[x ; alpha p] - centre||^2: what a score lacks to be minus half a squared distance."""
        self.far = float(centre_D.double().square().sum())
        if prefix is not None:
            self.far += prefix.weight**2 * float(prefix_centre_D.double().square().sum())
        """Squared norm of the centre, to which the rounding of rows and prefixes is relative."""
        self.prepared: PreparedRows | None = None
        self.own_N = torch.full_like(self.size_N, torch.inf)
        self.other_N = torch.zeros_like(self.size_N)

    def search(
        self, search: NearestCentroid, x_ND: Tensor, prefix: Prefix | None, codes_N: Tensor
    ) -> Tensor:
        """The codes of all rows, of which only those that may have changed are computed."""
        codes_NJ = None if prefix is None else prefix.codes_NJ
        if self.prepared is None:
            self.prepared = search.prepared(x_ND)
        again_A = (self.own_N >= self.other_N).nonzero()[:, 0]
        if len(again_A) > MOST * len(codes_N):
            codes_N, best_N, second_N = search.ranked(x_ND, codes_NJ, prepared=self.prepared)
            self._set(slice(None), best_N, second_N)
            return codes_N
        codes_N = codes_N.clone()
        codes_N[again_A], best_A, second_A = search.ranked(
            x_ND, codes_NJ, prepared=self.prepared, rows_A=again_A
        )
        self._set(again_A, best_A, second_A)
        return codes_N

    def _set(self, rows: Tensor | slice, best_M: Tensor, second_M: Tensor) -> None:
        size_M = self.size_N[rows]
        slack_M = 8 * EPS * (size_M + self.far)
        # ||v - c||^2 = ||v||^2 - 2 score
        self.own_N[rows] = (size_M + slack_M - 2 * best_M.double()).clamp_min(0).sqrt()
        self.other_N[rows] = (size_M - slack_M - 2 * second_M.double()).clamp_min(0).sqrt()

    def shift(self, moved_K: Tensor, codes_N: Tensor) -> None:
        """Centroid k moved by `moved_K[k]`; `codes_N` are the rows' codes before that."""
        moved_K = moved_K * (1 + 8 * EPS)
        far, most = moved_K.topk(min(2, len(moved_K)))
        others_K = far[:1].repeat(len(moved_K))
        others_K[most[0]] = far[-1] if len(far) > 1 else 0.0
        self.own_N += moved_K[codes_N]
        self.other_N -= others_K[codes_N]

    def forget(self, rows: Tensor) -> None:
        """Rows whose code was given, not found."""
        self.own_N[rows], self.other_N[rows] = torch.inf, 0.0


def _square_norms(x_ND: Tensor, centre_D: Tensor) -> Tensor:
    def of(part: slice) -> Tensor:
        return torch.linalg.vector_norm(x_ND[part] - centre_D, dim=1, dtype=torch.float64).square()

    return torch.cat(each(of, small_chunks(x_ND)))


def _prefix_square_norms(prefix: Prefix, centre_D: Tensor) -> Tensor:
    """||p - centre||^2 (N,) = sum_ij b_i[code_i].b_j[code_j], with the centre taken off book 0."""
    books = [book.double() - centre_D * (j == 0) for j, book in enumerate(prefix.books)]
    size_N = torch.zeros(len(prefix.codes_NJ), dtype=torch.float64)
    for j, book in enumerate(books):
        code_N = prefix.codes_NJ[:, j]
        size_N += book.square().sum(1).index_select(0, code_N)
        for i in range(j):
            inner = (books[i] @ book.T).flatten()
            pair_N = prefix.codes_NJ[:, i] * len(book) + code_N
            size_N += 2 * inner.index_select(0, pair_N)
    return size_N
