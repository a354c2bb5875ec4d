"""The exact nearest centroid of points [x ; alpha * p], without building their second half.

Shape suffixes: N rows, M rows of one chunk, A rows searched again, D dims, K codes, J earlier
levels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from models.bf16_search import Bf16Search, low_precision_pays, to_bf16
from models.centroid_scores import CentroidScores
from models.exact_codes import by_float32
from models.rows import Centroids, Prefix, chunks, parts, small_chunks
from models.threads import each

Rows = slice | Tensor
Ranked = tuple[Tensor, Tensor, Tensor]


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
        found = []
        for part in parts(x_ND):  # bf16 copies of one part at a time
            found.append(self.ranked(x_ND[part], None if codes_NJ is None else codes_NJ[part])[0])
        return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)

    @cached_property
    def _bf16(self) -> Bf16Search | None:
        """Proposes on the CPU, where that pays."""
        return Bf16Search(self.scores) if low_precision_pays(len(self.scores.c_KD)) else None

    def prepared(self, x_ND: Tensor) -> PreparedRows:
        """What a search on the CPU reads of rows, for many searches with this centre and shift."""

        def norms_of(part: slice) -> Tensor:
            return torch.linalg.vector_norm(self.scores.shifted(x_ND[part]), dim=1)

        if self._bf16 is None:
            norms = each(norms_of, small_chunks(x_ND))
            return PreparedRows(norm_N=torch.cat(norms), low_ND=None, error_N=torch.empty(0))
        x_ND = x_ND.contiguous()
        low_ND = torch.empty_like(x_ND, dtype=torch.bfloat16)
        norm_N, error_N = torch.empty(2, len(x_ND)).unbind()
        centre_D = self.scores.centre_D if self.scores.shift else None

        def prepare(part: slice) -> None:
            to_bf16(x_ND[part], centre_D, low_ND[part], norm_N[part], error_N[part])

        each(prepare, chunks(x_ND))
        return PreparedRows(low_ND=low_ND, norm_N=norm_N, error_N=error_N)

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
        x_ND = x_ND.contiguous()
        prepared = prepared or self.prepared(x_ND)
        codes, best, second = self.proposed(x_ND, codes_NJ, prepared, rows_A)
        open_O = (codes < 0).nonzero()[:, 0]
        if len(open_O):
            rows_O = open_O if rows_A is None else rows_A[open_O]
            found = self._in_chunks(self._by_float32, x_ND, codes_NJ, prepared, rows_O)
            codes[open_O], best[open_O], second[open_O] = found
        # A copy of the winner is as near as the winner, although no score says so.
        return codes, best, torch.maximum(best, second) if len(self.scores.copies) else second

    def proposed(
        self,
        x_ND: Tensor,
        codes_NJ: Tensor | None,
        prepared: PreparedRows,
        rows_A: Tensor | None = None,
    ) -> Ranked:
        """What `ranked` gives, but the code -1 and no limits for rows that bf16 leaves open."""
        _ = self.scores.copies, self.scores.stacked  # made once, not once a thread
        step = self._by_float32 if self._bf16 is None else self._by_bf16
        return self._in_chunks(step, x_ND, codes_NJ, prepared, rows_A)

    def _in_chunks(
        self,
        step: Callable[[Tensor, Rows, Tensor | None, PreparedRows], Ranked],
        x_ND: Tensor,
        codes_NJ: Tensor | None,
        prepared: PreparedRows,
        rows_A: Tensor | None,
    ) -> Ranked:
        """What `step` finds of the rows, a chunk at a time, on all threads."""
        n = len(x_ND) if rows_A is None else len(rows_A)
        size = next(chunks(x_ND, len(self.scores.c_KD))).stop

        def search(start: int) -> Ranked:
            part: Rows = slice(start, min(start + size, n))
            if rows_A is not None:
                part = rows_A[part]
            codes_MJ = None if codes_NJ is None else _take(codes_NJ, part)
            return step(x_ND, part, codes_MJ, prepared)

        found = each(search, range(0, n, size))
        if not found:
            return torch.empty(0, dtype=torch.int64), torch.empty(0), torch.empty(0)
        codes, best, second = (torch.cat(values) for values in zip(*found, strict=True))
        return codes, best, second

    def _by_float32(
        self, x_ND: Tensor, part: Rows, codes_MJ: Tensor | None, prepared: PreparedRows
    ) -> Ranked:
        norm_M = _take(prepared.norm_N, part)
        return by_float32(self.scores, _take(x_ND, part), codes_MJ, norm_M)

    def _by_bf16(
        self, x_ND: Tensor, part: Rows, codes_MJ: Tensor | None, prepared: PreparedRows
    ) -> Ranked:
        assert self._bf16 is not None
        assert prepared.low_ND is not None
        low_MD = _take(prepared.low_ND, part)
        norm_M, error_M = _take(prepared.norm_N, part), _take(prepared.error_N, part)
        rows_M = torch.arange(part.start, part.stop) if isinstance(part, slice) else part
        return self._bf16.codes(x_ND, rows_M, codes_MJ, low_MD, norm_M, error_M)


def nearest(x_ND: Tensor, centroids: Centroids, prefix: Prefix | None = None) -> Tensor:
    """Codes (N,) of the nearest centroids, for one call with one set of centroids."""
    if prefix is None:
        return NearestCentroid(CentroidScores(centroids))(x_ND)
    scores = CentroidScores(centroids, prefix.books, prefix.weight)
    return NearestCentroid(scores)(x_ND, prefix.codes_NJ)


def _take(values_N: Tensor, part: slice | Tensor) -> Tensor:
    return values_N[part] if isinstance(part, slice) else values_N.index_select(0, part)
