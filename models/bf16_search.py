"""The nearest centroids by bf16 products: what they leave open goes to better scores.

Where the processor multiplies bf16 much faster than float32, most rows are settled by it alone: the
errors of a rounded row and a rounded centroid are known, so that limits of every score are.

Shape suffixes: N rows, M rows of one chunk, O rows left open, A rows scored again, P (row,
centroid) pairs, D dims, K codes, J earlier levels.
"""

import math

import numpy as np
import torch
from torch import Tensor

from models.centroid_scores import CentroidScores
from models.exact_codes import by_float32, settled, two_best

BF16 = 2.0**-8
"""Largest relative error of rounding to bf16."""
PAIR_PRICE = 32
"""A float32 score of one row and centroid alone costs as much as this many in a matrix product."""


def low_precision_pays(codes: int) -> bool:
    """Whether this processor multiplies bf16 much faster than float32 (AMX), for enough codes."""
    return codes >= 64 and torch.cpu._is_amx_tile_supported()


class Bf16Search:
    """One set of centroids in bf16, on the CPU."""

    def __init__(self, scores: CentroidScores) -> None:
        self.scores = scores
        self.c_DK = scores.c_KD.bfloat16().T.contiguous()
        self.norm_K = torch.linalg.vector_norm(scores.c_KD, dim=1) * (1 + 2.0**-12)
        self.error_K = (1 + BF16) * left_out(scores.c_KD, self.c_DK.T)
        """Norms of what bf16 leaves out of the centroids."""

    def codes(
        self,
        x_ND: Tensor,
        part: slice | Tensor,
        codes_MJ: Tensor | None,
        low_MD: Tensor,
        norm_M: Tensor,
        error_M: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What `by_float32` gives, of the rows `x_ND[part]`, by their copies `low_MD`.

        `norm_M`: norms of the shifted rows; `error_M`: of what bf16 left out of them.
        """
        scores_MK = (low_MD @ self.c_DK).float()
        largest_M = torch.maximum(scores_MK.amax(1), -scores_MK.amin(1))
        # What rounding may change: the product, and (`_off`) the row and the centroid.
        rough_M = BF16 * (1 + 2 * BF16) * largest_M + self.scores.rounding(norm_M)
        self.scores.add_tables(scores_MK, codes_MJ)
        code_M, best_M, second_M = two_best(scores_MK)
        best_M -= self._off(norm_M, error_M, code_M) + rough_M
        off_M = error_M * self.norm_K.max() + norm_M * self.error_K.max() + rough_M
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
            return by_float32(self.scores, x_ND.index_select(0, rows_O), codes_OJ, norm_O)
        row_P, code_P = (torch.from_numpy(places) for places in np.divmod(flat_P, k))
        upper_P = scores_OK.view(-1).index_select(0, torch.from_numpy(flat_P))
        norm_P, error_P = norm_O.index_select(0, row_P), error_O.index_select(0, row_P)
        upper_P += self._off(norm_P, error_P, code_P) + rough_O.index_select(0, row_P)
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
        scores_AK[at_P, code_P] = self.scores.of_pairs(x_ND, rows_A, codes_AJ, at_P, code_P)
        norm_A = norm_O.index_select(0, row_A)
        found = settled(self.scores, x_ND, rows_A, codes_AJ, scores_AK, norm_A)
        code_O[row_A], best_O[row_A] = found[:2]
        second_O[row_A] = torch.maximum(second_O[row_A], found[2])
        return code_O, best_O, second_O

    def _off(self, norm_P: Tensor, error_P: Tensor, code_P: Tensor) -> Tensor:
        """How far the product of a row and a centroid may move as both are rounded to bf16."""
        norm_K, error_K = self.norm_K, self.error_K
        return error_P * norm_K.index_select(0, code_P) + norm_P * error_K.index_select(0, code_P)


def left_out(x_MD: Tensor, low_MD: Tensor) -> Tensor:
    """The norm (M,) of what bf16 left out of each row."""
    return torch.linalg.vector_norm(low_MD.float().sub_(x_MD), dim=1) * (1 + 2.0**-12)
