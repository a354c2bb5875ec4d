"""The nearest centroids by bf16 products: what they leave open needs better scores.

Where the processor multiplies bf16 much faster than float32, most rows are settled by it alone: the
errors of a rounded row and a rounded centroid are known, so that limits of every score are. One
pass over the scores of a row (`models.cpu_kernels`) finds them, and scores the few centroids that
they leave in float32.

Shape suffixes: N rows, M rows of one chunk, D dims, K codes, J earlier levels.
"""

import numpy as np
import torch
from torch import Tensor

from models.centroid_scores import CentroidScores

BF16 = 2.0**-8
"""Largest relative error of rounding to bf16."""
PAIR_PRICE = 8
"""A float32 score of one row and centroid alone costs as much as this many in a matrix product."""


def low_precision_pays(codes: int) -> bool:
    """Whether this processor multiplies bf16 much faster than float32 (AMX), for enough codes."""
    return codes >= 64 and torch.cpu._is_amx_tile_supported()


class Bf16Search:
    """One set of centroids in bf16, on the CPU."""

    def __init__(self, scores: CentroidScores) -> None:
        self.scores = scores
        low_KD = torch.empty_like(scores.c_KD, dtype=torch.bfloat16)
        norm_K, error_K = torch.empty(2, len(low_KD)).unbind()
        to_bf16(scores.c_KD, None, low_KD, norm_K, error_K)
        self.c_DK = low_KD.T.contiguous()
        self.norm_K = (norm_K * (1 + 2.0**-12)).numpy()
        self.error_K = (error_K * (1 + BF16)).numpy()
        tables_TK, first_J = scores.stacked
        self.tables_TK, self.first_J = tables_TK.numpy(), first_J.numpy()
        self.copies_X, self.c_KD = scores.copies.numpy(), scores.c_KD.numpy()
        centre_D = scores.centre_D if scores.shift else torch.zeros_like(scores.centre_D)
        self.centre_D = centre_D.numpy()

    def codes(
        self,
        x_ND: Tensor,
        rows_M: Tensor,
        codes_MJ: Tensor | None,
        low_MD: Tensor,
        norm_M: Tensor,
        error_M: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What `by_float32` gives, of the contiguous rows `x_ND[rows_M]`, by their copies `low_MD`.

        Rows left open have the code -1, and no limits. `norm_M`: norms of the shifted rows;
        `error_M`: of what bf16 left out of them.
        """
        from models.cpu_kernels import settle  # numba: only where such a search is made

        products_MK = (low_MD @ self.c_DK).view(torch.uint16).numpy()
        if codes_MJ is None:
            codes_MJ = torch.empty(len(rows_M), 0, dtype=torch.int64)
        code_M = torch.empty(len(rows_M), dtype=torch.int64)
        best_M, second_M = torch.empty(2, len(rows_M)).unbind()
        settle(
            products_MK,
            self.tables_TK,
            codes_MJ.numpy(),
            self.first_J,
            self.copies_X,
            norm_M.numpy(),
            error_M.numpy(),
            self.scores.rounding(norm_M).numpy(),
            self.norm_K,
            self.error_K,
            np.float32(BF16 * (1 + 2 * BF16)),
            x_ND.numpy(),
            rows_M.numpy(),
            self.centre_D,
            self.c_KD,
            len(self.c_KD) // PAIR_PRICE,
            code_M.numpy(),
            best_M.numpy(),
            second_M.numpy(),
        )
        return code_M, best_M, second_M


def to_bf16(
    x_MD: Tensor, centre_D: Tensor | None, low_MD: Tensor, norm_M: Tensor, error_M: Tensor
) -> None:
    """Writes rows less a centre in bf16, their norms, and the norms of what bf16 left out."""
    from models.cpu_kernels import round_rows  # numba: only where such a search is made

    centre_D = torch.zeros(x_MD.shape[1]) if centre_D is None else centre_D
    low = low_MD.view(torch.uint16).numpy()
    round_rows(x_MD.numpy(), centre_D.numpy(), low, norm_M.numpy(), error_M.numpy())
    error_M *= 1 + 2.0**-12  # the rounding of this sum
