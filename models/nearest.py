"""The exact nearest centroid of points [x ; alpha * p], without building their second half.

Shape suffixes: N rows, M rows of one chunk, A rows searched again, D dims, K codes, J earlier
levels.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from models.bf16_search import Bf16Search, left_out, low_precision_pays
from models.centroid_scores import CentroidScores
from models.exact_codes import by_float32
from models.rows import Centroids, Prefix, chunks, small_chunks
from models.threads import each


@dataclass(frozen=True, kw_only=True)
class PreparedRows:
    """Rows as products read them: their norms, bf16 copies, and the norm of what bf16 left out."""

    norm_N: Tensor
    low_ND: Tensor | None
    error_N: Tensor


class NearestCentroid:
    """argmin_k ||x - c_k||^2 + alpha^2 ||p - c_p,k||^2 for the centroids of `scores`.

    The codes are those of float64 arithmetic, ties to the lowest index, and depend on nothing but
    the row: fast products propose, and every centroid within their worst rounding error of the best
    is scored again, at last in float64 by the formula above. So neither batch, chunk, thread count,
    BLAS nor device can change a code. Rows lie where the centroids do.
    """

    def __init__(self, scores: CentroidScores) -> None:
        self.scores = scores

    def __call__(self, x_ND: Tensor, codes_NJ: Tensor | None = None) -> Tensor:
        """Codes (N,) int64 of float32 rows; `codes_NJ` are the rows' codes in the books."""
        if x_ND.is_cuda:
            from models.cuda_rows import CudaNearest

            return CudaNearest(self.scores).exact(x_ND, codes_NJ)
        return self.ranked(x_ND, codes_NJ)[0]

    @cached_property
    def _bf16(self) -> Bf16Search | None:
        """Proposes on the CPU, where that pays."""
        return Bf16Search(self.scores) if low_precision_pays(len(self.scores.c_KD)) else None

    def prepared(self, x_ND: Tensor) -> PreparedRows:
        """What a search on the CPU reads of rows, for many searches with this centre and shift."""
        low_ND = None if self._bf16 is None else torch.empty_like(x_ND, dtype=torch.bfloat16)

        def prepare(part: slice) -> tuple[Tensor, Tensor]:
            shifted_MD = self.scores.shifted(x_ND[part])
            norm_M = torch.linalg.vector_norm(shifted_MD, dim=1)
            if low_ND is None:
                return norm_M, norm_M[:0]
            low_MD = low_ND[part].copy_(shifted_MD)
            return norm_M, left_out(shifted_MD, low_MD)

        norm, error = zip(*each(prepare, small_chunks(x_ND)), strict=True)
        return PreparedRows(low_ND=low_ND, norm_N=torch.cat(norm), error_N=torch.cat(error))

    def ranked(
        self,
        x_ND: Tensor,
        codes_NJ: Tensor | None = None,
        *,
        prepared: PreparedRows | None = None,
        rows_A: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Codes (N,), a lower limit of the best score and an upper limit of every other, float32.

        On the CPU; for rows `rows_A` alone, if given. `prepared`: of these rows, where they are
        searched again.
        """
        n = len(x_ND) if rows_A is None else len(rows_A)
        size = next(chunks(x_ND, len(self.scores.c_KD))).stop

        def search(start: int) -> tuple[Tensor, Tensor, Tensor]:
            part: slice | Tensor = slice(start, min(start + size, n))
            if rows_A is not None:
                part = rows_A[part]
            codes_MJ = None if codes_NJ is None else _take(codes_NJ, part)
            return self._chunk(x_ND, part, codes_MJ, prepared)

        _ = self.scores.copies, self.scores.stacked, self._bf16  # made once, not once a thread
        found = each(search, range(0, n, size))
        if not found:
            return torch.empty(0, dtype=torch.int64), torch.empty(0), torch.empty(0)
        codes, best, second = (torch.cat(parts) for parts in zip(*found, strict=True))
        # A copy of the winner is as near as the winner, although no score says so.
        return codes, best, torch.maximum(best, second) if len(self.scores.copies) else second

    def _chunk(
        self,
        x_ND: Tensor,
        part: slice | Tensor,
        codes_MJ: Tensor | None,
        prepared: PreparedRows | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self._bf16 is None:
            x_MD = _take(x_ND, part)
            norm_M = None if prepared is None else _take(prepared.norm_N, part)
            return by_float32(self.scores, x_MD, codes_MJ, norm_M)
        if prepared is None:
            shifted_MD = self.scores.shifted(_take(x_ND, part))
            norm_M = torch.linalg.vector_norm(shifted_MD, dim=1)
            low_MD = shifted_MD.bfloat16()
            error_M = left_out(shifted_MD, low_MD)
        else:
            assert prepared.low_ND is not None
            low_MD = _take(prepared.low_ND, part)
            norm_M, error_M = _take(prepared.norm_N, part), _take(prepared.error_N, part)
        return self._bf16.codes(x_ND, part, codes_MJ, low_MD, norm_M, error_M)


def nearest(x_ND: Tensor, centroids: Centroids, prefix: Prefix | None = None) -> Tensor:
    """Codes (N,) of the nearest centroids, for one call with one set of centroids."""
    if prefix is None:
        return NearestCentroid(CentroidScores(centroids))(x_ND)
    scores = CentroidScores(centroids, prefix.books, prefix.weight)
    return NearestCentroid(scores)(x_ND, prefix.codes_NJ)


def _take(values_N: Tensor, part: slice | Tensor) -> Tensor:
    return values_N[part] if isinstance(part, slice) else values_N.index_select(0, part)
