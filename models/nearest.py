"""The exact nearest centroid of points [x ; alpha * p], without building their second half.

The first half x is data; the second half p, the *prefix* of PSRQ (paper section 1), is a sum of one
row from each earlier codebook, so its inner products come from K x K tables.

Shape suffixes: N rows, M rows of one chunk, O rows left open, P (row, centroid) pairs, D dims,
K codes, J earlier levels.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from models.rows import (
    CHUNK_ELEMENTS,
    EPS,
    Centroids,
    Prefix,
    chunks,
    prefix_sum,
    small_chunks,
)
from models.threads import each

BF16 = 2.0**-8
"""Largest relative error of rounding to bf16."""
PAIR_PRICE = 32
"""A float32 score of one row and centroid alone costs as much as this many in a matrix product."""
PAIRS = 128
"""Rows and centroids gathered at once for such scores: they stay in a core's own cache."""


class NearestCentroid:
    """argmin_k ||x - c_k||^2 + alpha^2 ||p - c_p,k||^2, prepared once for one set of centroids.

    The codes are those of float64 arithmetic, ties to the lowest index, and depend on nothing but
    the row: fast products propose, and every centroid within their worst rounding error of the best
    is scored again, at last in float64 by the formula above. So neither batch, chunk, thread count,
    BLAS nor device can change a code. Rows and centroids lie on one device, CPU or CUDA.
    """

    def __init__(
        self,
        centroids: Centroids,
        books: tuple[Tensor, ...] = (),
        weight: float = 0.0,
        *,
        centre_D: Tensor | None = None,
        prefix_centre_D: Tensor | None = None,
        shift: bool | None = None,
        subtract: tuple[Tensor, ...] | None = None,
    ) -> None:
        """The centres, by default the centroids' means, only keep the products' rounding small.

        `shift`: whether rows are centred too (a copy of each), by default where that would help.
        `subtract`: books of the earlier levels (none at level 1); rows are then whole items x, and
        the nearest centroid of x - sum_j b_j is found: (x - b).c = x.c - b.c is one more table, so
        that an item is prepared once for all its levels.
        """
        self.centroids, self.books, self.weight = centroids, books, weight
        self.subtract = subtract or ()
        c_KD = centroids.x_KD.double()
        # argmin ||x - c||^2 = argmax (x-m).(c-m) - ||c-m||^2/2 for any m; the mean keeps it small.
        self.centre_D = c_KD.mean(0).float() if centre_D is None else centre_D
        # Kernels centre rows as they read them; on the CPU a far centre alone is worth the copies.
        self.shift = shift
        if subtract is not None:
            bias_K = -0.5 * c_KD.square().sum(1)
            c_KD = c_KD - c_KD.mean(0)
        else:
            c_KD = c_KD - self.centre_D.double()
            bias_K = -0.5 * c_KD.square().sum(1) - c_KD @ self.centre_D.double()
        self.c_KD = c_KD.float()
        self.c_norm = c_KD.norm(dim=1).max().float()
        if shift is None:
            self.shift = c_KD.is_cuda or float(self.centre_D.norm()) > float(self.c_norm)
        if self.shift:
            bias_K += c_KD @ self.centre_D.double()
        tables = [-(book.double() @ c_KD.T) for book in self.subtract]
        if centroids.prefix_KD is not None:
            q_KD = centroids.prefix_KD.double()
            mean_D = q_KD.mean(0) if prefix_centre_D is None else prefix_centre_D.double()
            q_KD = q_KD - mean_D
            bias_K = bias_K - 0.5 * weight**2 * q_KD.square().sum(1)
            # alpha^2 (p-m).(c_p-m) = sum_j alpha^2 book_j[code_j].(c_p-m), m folded into book 0
            found = [
                weight**2 * (book.double() - mean_D * (j == 0)) @ q_KD.T
                for j, book in enumerate(books)
            ]
            tables = [a + b for a, b in zip(tables, found, strict=True)] if tables else found
        if tables:
            tables[0] += bias_K
        self.tables = [table.float() for table in tables]
        self.bias_K = bias_K.float()
        norms = [table.abs().max() for table in self.tables or [self.bias_K]]
        self.table_norm = torch.stack(norms).sum()

    @cached_property
    def copies(self) -> Tensor:
        """Centroids equal to an earlier one: they lose every tie, so that to leave them out of the
        products' scores saves their exact scoring."""
        both_KD = self.centroids.x_KD
        if self.centroids.prefix_KD is not None:
            both_KD = torch.cat([both_KD, self.centroids.prefix_KD], 1)
        both_KD = both_KD + 0.0  # -0.0 and 0.0 are one value, and two bit patterns
        # Equal rows have equal sums of bits times odd numbers; what has equal sums is compared.
        generator = torch.Generator().manual_seed(0)
        odd_D = torch.randint(-(2**62), 2**62, (both_KD.shape[1],), generator=generator) * 2 + 1
        sum_K = (both_KD.view(torch.int32).long() * odd_D.to(both_KD.device)).sum(1)
        sum_K, order_K = sum_K.sort(stable=True)
        again = (sum_K[1:] == sum_K[:-1]).nonzero()[:, 0].cpu() + 1
        copies = []
        for place in again.tolist():
            first = int((sum_K == sum_K[place]).nonzero()[0, 0])
            if torch.equal(both_KD[order_K[place]], both_KD[order_K[first]]):
                copies.append(int(order_K[place]))
        return torch.tensor(copies, dtype=torch.int64, device=both_KD.device)

    def __call__(self, x_ND: Tensor, codes_NJ: Tensor | None = None) -> Tensor:
        """Codes (N,) int64 of float32 rows; `codes_NJ` are the rows' codes in `books`."""
        if x_ND.is_cuda:
            from models.cuda_rows import CudaNearest

            return CudaNearest(self).exact(x_ND, codes_NJ)
        return self.ranked(x_ND, codes_NJ)[0]

    def prepared(self, x_ND: Tensor) -> "PreparedRows":
        """What a search on the CPU reads of rows, for many searches with this centre and shift."""
        low_ND = torch.empty_like(x_ND, dtype=torch.bfloat16) if self.low_precision else None

        def prepare(part: slice) -> tuple[Tensor, Tensor]:
            shifted_MD = self._shifted(x_ND[part])
            norm_M = torch.linalg.vector_norm(shifted_MD, dim=1)
            if low_ND is None:
                return norm_M, norm_M[:0]
            low_MD = low_ND[part].copy_(shifted_MD)
            return norm_M, _left_out(shifted_MD, low_MD)

        norm, error = zip(*each(prepare, small_chunks(x_ND)), strict=True)
        return PreparedRows(low_ND=low_ND, norm_N=torch.cat(norm), error_N=torch.cat(error))

    @property
    def low_precision(self) -> bool:
        """Whether bf16 products propose on the CPU."""
        return low_precision_pays(len(self.c_KD))

    def _shifted(self, x_MD: Tensor) -> Tensor:
        return x_MD - self.centre_D if self.shift else x_MD

    def ranked(
        self,
        x_ND: Tensor,
        codes_NJ: Tensor | None = None,
        *,
        prepared: "PreparedRows | None" = None,
        rows_A: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Codes (N,), a lower limit of the best score and an upper limit of every other, float32.

        A score is minus half the squared distance, up to a constant of the row. On the CPU; for
        rows `rows_A` alone, if given. `prepared`: of these rows, where they are searched again.
        """
        n = len(x_ND) if rows_A is None else len(rows_A)
        size = next(chunks(x_ND, len(self.c_KD))).stop

        def search(start: int) -> tuple[Tensor, Tensor, Tensor]:
            part: slice | Tensor = slice(start, min(start + size, n))
            if rows_A is not None:
                part = rows_A[part]
            codes_MJ = None if codes_NJ is None else _take(codes_NJ, part)
            return self._chunk(x_ND, part, codes_MJ, prepared)

        _ = self.copies, self.low_DK, self.low_norms, self.stacked  # made once, not once a thread
        found = each(search, range(0, n, size))
        if not found:
            return torch.empty(0, dtype=torch.int64), torch.empty(0), torch.empty(0)
        codes, best, second = (torch.cat(parts) for parts in zip(*found, strict=True))
        # A copy of the winner is as near as the winner, although no score says so.
        return codes, best, torch.maximum(best, second) if len(self.copies) else second

    def _chunk(
        self,
        x_ND: Tensor,
        part: slice | Tensor,
        codes_MJ: Tensor | None,
        prepared: "PreparedRows | None",
    ) -> tuple[Tensor, Tensor, Tensor]:
        if not self.low_precision:
            x_MD = _take(x_ND, part)
            norm_M = None if prepared is None else _take(prepared.norm_N, part)
            return self._float32(x_MD, codes_MJ, norm_M)
        if prepared is None:
            shifted_MD = self._shifted(_take(x_ND, part))
            norm_M = torch.linalg.vector_norm(shifted_MD, dim=1)
            low_MD = shifted_MD.bfloat16()
            error_M = _left_out(shifted_MD, low_MD)
        else:
            assert prepared.low_ND is not None
            low_MD = _take(prepared.low_ND, part)
            norm_M, error_M = _take(prepared.norm_N, part), _take(prepared.error_N, part)
        scores_MK = (low_MD @ self.low_DK).float()
        largest_M = torch.maximum(scores_MK.amax(1), -scores_MK.amin(1))
        # What rounding may change: the product, and (`_low_off`) the row and the centroid.
        rough_M = BF16 * (1 + 2 * BF16) * largest_M + self._rounding(norm_M)
        self._add_tables(scores_MK, codes_MJ)
        code_M, best_M, second_M = _two_best(scores_MK)
        best_M -= self._low_off(norm_M, error_M, code_M) + rough_M
        c_norm_K, c_error_K = self.low_norms
        off_M = error_M * c_norm_K.max() + norm_M * c_error_K.max() + rough_M
        open_M = (second_M + off_M >= best_M).nonzero()[:, 0]
        if len(open_M):
            rows_O = (
                part.index_select(0, open_M) if isinstance(part, Tensor) else open_M + part.start
            )
            take = [
                values.index_select(0, open_M)
                for values in (scores_MK, norm_M, error_M, rough_M, off_M, code_M, best_M)
            ]
            codes_OJ = None if codes_MJ is None else codes_MJ.index_select(0, open_M)
            found = self._among_close(x_ND, rows_O, codes_OJ, *take)
        second_M += off_M
        if len(open_M):
            code_M[open_M], best_M[open_M], second_M[open_M] = found
        return code_M, best_M, second_M

    def _among_close(
        self,
        x_ND: Tensor,
        rows_O: Tensor,
        codes_OJ: Tensor | None,
        scores_OK: Tensor,
        norm_O: Tensor,
        error_O: Tensor,
        rough_O: Tensor,
        off_O: Tensor,
        code_O: Tensor,
        best_O: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rows `rows_O` by float32 scores of the centroids that bf16 left as near as `code_O`.

        `best_O` is a lower limit of the score of `code_O`; overwrites `scores_OK`.
        """
        k = scores_OK.shape[1]
        flat_P = np.flatnonzero(scores_OK.numpy() >= (best_O - off_O).numpy()[:, None])
        if len(flat_P) > len(rows_O) * k // PAIR_PRICE:
            return self._float32(x_ND.index_select(0, rows_O), codes_OJ, norm_O)
        row_P, code_P = (torch.from_numpy(places) for places in np.divmod(flat_P, k))
        upper_P = scores_OK.view(-1).index_select(0, torch.from_numpy(flat_P))
        norm_P, error_P = norm_O.index_select(0, row_P), error_O.index_select(0, row_P)
        upper_P += self._low_off(norm_P, error_P, code_P) + rough_O.index_select(0, row_P)
        close_P = upper_P >= best_O.index_select(0, row_P)
        # What is left out, and the rows where only the winner is not, need no better score.
        scores_OK.view(-1)[torch.from_numpy(flat_P)] = -math.inf
        second_O = scores_OK.amax(1) + off_O
        out_P = (~close_P).nonzero()[:, 0]
        second_O.scatter_reduce_(0, row_P[out_P], upper_P[out_P], "amax")
        close_P &= torch.bincount(row_P[close_P], minlength=len(rows_O))[row_P] > 1
        at_P = close_P.nonzero()[:, 0]
        if not len(at_P):
            return code_O, best_O, second_O
        row_P, code_P = row_P[at_P], code_P[at_P]
        row_A, at_P = row_P.unique_consecutive(return_inverse=True)
        codes_AJ = None if codes_OJ is None else codes_OJ.index_select(0, row_A)
        rows_A = rows_O.index_select(0, row_A)
        scores_AK = torch.full((len(row_A), k), -math.inf)
        scores_AK[at_P, code_P] = self._pair_scores(x_ND, rows_A, codes_AJ, at_P, code_P)
        found = self._settled(x_ND, rows_A, codes_AJ, scores_AK, norm_O.index_select(0, row_A))
        code_O[row_A], best_O[row_A] = found[:2]
        second_O[row_A] = torch.maximum(second_O[row_A], found[2])
        return code_O, best_O, second_O

    def _pair_scores(
        self,
        x_ND: Tensor,
        rows_A: Tensor,
        codes_AJ: Tensor | None,
        row_P: Tensor,
        code_P: Tensor,
    ) -> Tensor:
        """float32 scores (P,) of rows `rows_A[row_P]` and centroids `code_P`."""
        k = len(self.c_KD)
        if self.tables and codes_AJ is not None:
            score_P = torch.zeros(len(row_P))
            for j, table in enumerate(self.tables):
                place_P = codes_AJ[:, j].index_select(0, row_P) * k + code_P
                score_P += table.view(-1).index_select(0, place_P)
        else:
            score_P = self.bias_K.index_select(0, code_P)
        row_P = rows_A.index_select(0, row_P)
        for start in range(0, len(row_P), PAIRS):
            part = slice(start, start + PAIRS)
            x_PD = self._shifted(x_ND.index_select(0, row_P[part]))
            x_PD *= self.c_KD.index_select(0, code_P[part])
            score_P[part] += x_PD.sum(1)
        return score_P

    @cached_property
    def low_DK(self) -> Tensor:
        return self.c_KD.bfloat16().T.contiguous()

    @cached_property
    def low_norms(self) -> tuple[Tensor, Tensor]:
        """Norms (K,) of the centroids, and of what bf16 leaves out of them."""
        norm_K = torch.linalg.vector_norm(self.c_KD, dim=1) * (1 + 2.0**-12)
        return norm_K, (1 + BF16) * _left_out(self.c_KD, self.low_DK.T)

    def _low_off(self, norm_P: Tensor, error_P: Tensor, code_P: Tensor) -> Tensor:
        """How far the product of a row and a centroid may move as both are rounded to bf16."""
        norm_K, error_K = self.low_norms
        return error_P * norm_K.index_select(0, code_P) + norm_P * error_K.index_select(0, code_P)

    def _float32(
        self, x_MD: Tensor, codes_MJ: Tensor | None, norm_M: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        shifted_MD = self._shifted(x_MD)
        if norm_M is None:
            norm_M = torch.linalg.vector_norm(shifted_MD, dim=1)
        scores_MK = shifted_MD @ self.c_KD.T
        self._add_tables(scores_MK, codes_MJ)
        return self._settled(x_MD, None, codes_MJ, scores_MK, norm_M)

    def _settled(
        self,
        x_ND: Tensor,
        rows_M: Tensor | None,
        codes_MJ: Tensor | None,
        scores_MK: Tensor,
        norm_M: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The codes of rows `rows_M` (None: all) by float32 scores, by float64 where they must."""
        code_M, best_M, second_M = _two_best(scores_MK)
        off_M = self._rounding(norm_M)
        open_M = (second_M >= best_M - 2 * off_M).nonzero()[:, 0]
        if len(open_M):
            open_MK = scores_MK.index_select(0, open_M)
            limit_M = (best_M - 2 * off_M)[open_M]
            rows_O = open_M if rows_M is None else rows_M.index_select(0, open_M)
            code_M[open_M] = self._exact(
                x_ND.index_select(0, rows_O),
                None if codes_MJ is None else codes_MJ.index_select(0, open_M),
                open_MK >= limit_M[:, None],
            )
            # The winner may have had any score down to the limit, and a loser the best one.
            best_M[open_M], second_M[open_M] = limit_M, best_M[open_M]
        return code_M, best_M - off_M, second_M + off_M

    def _add_tables(self, scores_MK: Tensor, codes_MJ: Tensor | None) -> None:
        if self.tables and codes_MJ is not None:
            if len(self.tables) == 1:
                scores_MK += self.tables[0].index_select(0, codes_MJ[:, 0])
            else:
                stacked, first_J = self.stacked
                scores_MK += embedding_bag(codes_MJ + first_J, stacked, mode="sum")
        else:
            scores_MK += self.bias_K
        if len(self.copies):
            scores_MK[:, self.copies] = -math.inf

    @cached_property
    def stacked(self) -> tuple[Tensor, Tensor]:
        """All tables, one under the other, and the first row of each."""
        if not self.tables:
            return self.bias_K[None], torch.zeros(0, dtype=torch.int64)
        first_J = torch.tensor([0] + [len(table) for table in self.tables[:-1]]).cumsum(0)
        return torch.cat(self.tables), first_J.to(self.bias_K.device)

    def _rounding(self, norm_M: Tensor) -> Tensor:
        """How far a float32 score may be off: a sum of D products by D * EPS/2 * ||x|| ||c||."""
        steps = EPS * (self.c_KD.shape[1] + len(self.tables) + 8)
        return 0.5 * steps * (norm_M * self.c_norm + self.table_norm) + 1e-35

    def _exact(self, x_MD: Tensor, codes_MJ: Tensor | None, close_MK: Tensor) -> Tensor:
        row_P, code_P = close_MK.nonzero().unbind(1)
        distance_P = torch.empty(len(row_P), dtype=torch.float64, device=x_MD.device)
        size = max(1, CHUNK_ELEMENTS // (4 * x_MD.shape[1]))
        for start in range(0, len(row_P), size):
            part = slice(start, start + size)
            row, code = row_P[part], code_P[part]
            rows_PD = x_MD.index_select(0, row)
            for j, book in enumerate(self.subtract):
                assert codes_MJ is not None
                rows_PD -= book.index_select(0, codes_MJ[row, j])
            distance = (rows_PD.double() - self.centroids.x_KD[code].double()).square().sum(1)
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


def _two_best(scores_MK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The place (lowest of equals), the best score, and the best of the other scores.

    numpy finds places ten times as fast as torch does on a CPU.
    """
    code_M = torch.from_numpy(scores_MK.numpy().argmax(1))
    best_M = scores_MK.gather(1, code_M[:, None])
    scores_MK.scatter_(1, code_M[:, None], -math.inf)
    second_M = scores_MK.amax(1)
    scores_MK.scatter_(1, code_M[:, None], best_M)
    return code_M, best_M[:, 0], second_M


def low_precision_pays(codes: int) -> bool:
    """Whether this processor multiplies bf16 much faster than float32 (AMX), for enough codes."""
    return codes >= 64 and torch.cpu._is_amx_tile_supported()


def _left_out(x_MD: Tensor, low_MD: Tensor) -> Tensor:
    """The norm (M,) of what bf16 left out of each row."""
    return torch.linalg.vector_norm(low_MD.float().sub_(x_MD), dim=1) * (1 + 2.0**-12)


def _take(values_N: Tensor, part: slice | Tensor) -> Tensor:
    return values_N[part] if isinstance(part, slice) else values_N.index_select(0, part)


@dataclass(frozen=True, kw_only=True)
class PreparedRows:
    """Rows as products read them: their norms, bf16 copies, and the norm of what bf16 left out."""

    norm_N: Tensor
    low_ND: Tensor | None
    error_N: Tensor
