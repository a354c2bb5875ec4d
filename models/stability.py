"""How far a distribution has moved from the one at training: counts of scores and codes, and PSI.

    trained_S = score_counts(test_scores_N)
    served_S = score_counts(scores_C)
    stability_index(trained_S, served_S)     # 0: the same; on 0.25 the custom is to act

Shape suffixes: N rows, F families, K codes of a book, S score bins, B bins of any kind.
"""

import numpy as np

SCORE_BINS = 20
"""Of equal width over 0 to 1. A score on an edge counts above it."""
BASELINE_FILE = "drift_baseline.safetensors"
"""In the model's folder: `score_counts` (S,), `candidate_codes` and `history_codes` (F, K + 1)."""
HALF_ROW = 0.5
"""Added to every bin, so that one that is empty on one side has a finite logarithm."""


def score_counts(scores_N: np.ndarray) -> np.ndarray:
    """Rows in each bin of 0 to 1: (S,) int64. ValueError for a score below 0 or not finite."""
    bins_N = (scores_N * SCORE_BINS).astype(np.intp)
    counts = np.bincount(bins_N, minlength=SCORE_BINS + 1)
    counts[SCORE_BINS - 1] += counts[SCORE_BINS]  # a score of 1
    return counts[:SCORE_BINS]


def code_counts(codes_NF: np.ndarray, codes: int) -> np.ndarray:
    """Rows of each code, one family a row: (F, K + 1) int64, first those without a code (-1)."""
    return np.stack(
        [np.bincount(family_N, minlength=codes + 1) for family_N in (codes_NF + 1).T]
    ).astype(np.int64)


def stability_index(trained_B: np.ndarray, served_B: np.ndarray) -> float:
    """Population stability index of two counts over the same bins.

    PSI = sum_b (p_b - q_b) ln(p_b / q_b), p and q the shares of served and trained rows.
    """
    if trained_B.shape != served_B.shape:
        raise ValueError(f"counts over {served_B.shape} bins, trained over {trained_B.shape}")
    q_B, p_B = _shares(trained_B), _shares(served_B)
    return float(((p_B - q_B) * np.log(p_B / q_B)).sum())


def _shares(counts_B: np.ndarray) -> np.ndarray:
    return (counts_B + HALF_ROW) / (counts_B.sum() + HALF_ROW * len(counts_B))
