"""Codes by float32 scores, and by float64 distances where those cannot tell.

Every centroid whose score is within the worst rounding error of the best is scored again, by the
formula: so the codes are those of float64 arithmetic, ties to the lowest index.

Shape suffixes: N rows, M rows with scores, O rows left open, P (row, centroid) pairs, D dims,
K codes, J earlier levels.
"""

import math

import torch
from torch import Tensor

from models.centroid_scores import CentroidScores
from models.rows import CHUNK_ELEMENTS, prefix_sum


def by_float32(
    scores: CentroidScores, x_MD: Tensor, codes_MJ: Tensor | None, norm_M: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (M,), a lower limit of the best score and an upper limit of every other, float32.

    `norm_M`: norms of the shifted rows, where they are known.
    """
    shifted_MD = scores.shifted(x_MD)
    if norm_M is None:
        norm_M = torch.linalg.vector_norm(shifted_MD, dim=1)
    scores_MK = shifted_MD @ scores.c_KD.T
    scores.add_tables(scores_MK, codes_MJ)
    return settled(scores, x_MD, None, codes_MJ, scores_MK, norm_M)


def settled(
    scores: CentroidScores,
    x_ND: Tensor,
    rows_M: Tensor | None,
    codes_MJ: Tensor | None,
    scores_MK: Tensor,
    norm_M: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """What `by_float32` gives, of rows `rows_M` (None: all) whose scores are `scores_MK`."""
    code_M, best_M, second_M = two_best(scores_MK)
    off_M = scores.rounding(norm_M)
    open_M = (second_M >= best_M - 2 * off_M).nonzero()[:, 0]
    if len(open_M):
        open_MK = scores_MK.index_select(0, open_M)
        limit_M = (best_M - 2 * off_M)[open_M]
        rows_O = open_M if rows_M is None else rows_M.index_select(0, open_M)
        code_M[open_M] = _exact(
            scores,
            x_ND.index_select(0, rows_O),
            None if codes_MJ is None else codes_MJ.index_select(0, open_M),
            open_MK >= limit_M[:, None],
        )
        # The winner may have had any score down to the limit, and a loser the best one.
        best_M[open_M], second_M[open_M] = limit_M, best_M[open_M]
    return code_M, best_M - off_M, second_M + off_M


def _exact(
    scores: CentroidScores, x_MD: Tensor, codes_MJ: Tensor | None, close_MK: Tensor
) -> Tensor:
    """Codes (M,): of the centroids where `close_MK` is true, the nearest; ties to the lowest."""
    row_P, code_P = close_MK.nonzero().unbind(1)
    distance_P = torch.empty(len(row_P), dtype=torch.float64, device=x_MD.device)
    size = max(1, CHUNK_ELEMENTS // (4 * x_MD.shape[1]))
    for start in range(0, len(row_P), size):
        part = slice(start, start + size)
        row, code = row_P[part], code_P[part]
        rows_PD = x_MD.index_select(0, row)
        for j, book in enumerate(scores.subtract):
            assert codes_MJ is not None
            rows_PD -= book.index_select(0, codes_MJ[row, j])
        distance = (rows_PD.double() - scores.centroids.x_KD[code].double()).square().sum(1)
        if scores.centroids.prefix_KD is not None and codes_MJ is not None:
            p_PD = prefix_sum(scores.books, codes_MJ[row]).double()
            half = (p_PD - scores.centroids.prefix_KD[code].double()).square().sum(1)
            distance += scores.weight**2 * half
        distance_P[part] = distance
    m, k = close_MK.shape
    least_M = torch.full((m,), math.inf, dtype=torch.float64, device=x_MD.device)
    least_M.scatter_reduce_(0, row_P, distance_P, "amin")
    wins_P = distance_P == least_M[row_P]
    codes_M = torch.full((m,), k, dtype=torch.int64, device=x_MD.device)
    return codes_M.scatter_reduce_(0, row_P[wins_P], code_P[wins_P], "amin")


def two_best(scores_MK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The place (lowest of equals), the best score, and the best of the other scores.

    numpy finds places ten times as fast as torch does on a CPU.
    """
    code_M = torch.from_numpy(scores_MK.numpy().argmax(1))
    best_M = scores_MK.gather(1, code_M[:, None])
    scores_MK.scatter_(1, code_M[:, None], -math.inf)
    second_M = scores_MK.amax(1)
    scores_MK.scatter_(1, code_M[:, None], best_M)
    return code_M, best_M[:, 0], second_M
