"""Metrics of a binary ranker: AUC, GAUC, logloss, calibration. numpy, exact with ties.

No metric copies its columns: 100,000,000 rows take seconds (`benchmarks/ranking_metrics.py`).
Slices (cold items, new users) are the caller's: pass masked arrays.

Shape suffixes: N impressions, C rows of one chunk, U users, B bins.
"""

from dataclasses import dataclass

import numpy as np

from models.scored_rows import Array, checked_chunks
from models.sorted_auc import users_counts


@dataclass(frozen=True, kw_only=True)
class Gauc:
    """AUC within each user, averaged over the users that have both labels.

    `gauc` weights a user by impressions, as the DIN paper does; `unweighted` counts users alike.
    Both are NaN when no user counts.
    """

    gauc: float
    unweighted: float
    users: int
    """Users that counted."""
    left_out: int
    """Users with one label only: their AUC is not defined."""
    impressions: int
    """Impressions of the users that counted."""


@dataclass(frozen=True, kw_only=True)
class CalibrationBin:
    low: float
    high: float
    mean_score: float
    mean_label: float
    count: int


def auc(labels_N: Array, scores_N: Array) -> float:
    """P(a positive scores above a negative) + P(they tie) / 2; NaN when a label is missing.

    `labels_N` 0 or 1; `scores_N` on any scale. ValueError for other labels, scores that are not
    finite, or unequal lengths.
    """
    return _averaged(None, labels_N, scores_N).gauc


def gauc(users_N: Array, labels_N: Array, scores_N: Array) -> Gauc:
    """Per-user AUC, weighted and unweighted, by one sort; errors as `auc`, plus unequal lengths."""
    users_N = np.asarray(users_N)
    if users_N.shape != np.shape(labels_N):
        raise ValueError(f"users must be {np.shape(labels_N)}, got {users_N.shape}")
    return _averaged(users_N, labels_N, scores_N)


def _averaged(users_N: Array | None, labels_N: Array, scores_N: Array) -> Gauc:
    users = impressions = everyone = 0
    weighted = unweighted = 0.0
    for positive_U, negative_U, twice_wins_U in users_counts(users_N, labels_N, scores_N):
        both_U = (positive_U > 0) & (negative_U > 0)
        p_U, n_U = positive_U[both_U].astype(np.float64), negative_U[both_U].astype(np.float64)
        # Mann-Whitney: AUC = wins / (p n)
        auc_U = twice_wins_U[both_U] / (2 * p_U * n_U)
        weighted += float((auc_U * (p_U + n_U)).sum())
        unweighted += float(auc_U.sum())
        impressions += int((p_U + n_U).sum())
        users += len(auc_U)
        everyone += len(both_U)
    return Gauc(
        gauc=weighted / impressions if users else float("nan"),
        unweighted=unweighted / users if users else float("nan"),
        users=users,
        left_out=everyone - users,
        impressions=impressions,
    )


def logloss(labels_N: Array, probabilities_N: Array, *, floor: float = 1e-7) -> float:
    """Mean binary cross-entropy in nats, probabilities clipped to [floor, 1 - floor]; NaN if empty.

    ValueError for probabilities outside 0 to 1, and as `auc`.
    """
    total = 0.0
    for _, positive_C, p_C in checked_chunks(labels_N, probabilities_N, probabilities=True):
        p_C = np.clip(p_C, floor, 1 - floor)
        total -= float(np.where(positive_C, np.log(p_C), np.log1p(-p_C)).sum())
    return total / len(labels_N) if len(labels_N) else float("nan")


def calibration(labels_N: Array, probabilities_N: Array, *, bins: int = 10) -> list[CalibrationBin]:
    """Bins of equal width over 0 to 1, the last closed above; empty ones are left out.

    ValueError as `logloss`, or bins < 1.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    edges = np.linspace(0, 1, bins + 1)
    count_B, score_B, label_B = np.zeros((3, bins))
    for _, positive_C, p_C in checked_chunks(labels_N, probabilities_N, probabilities=True):
        bin_C = np.clip(np.searchsorted(edges, p_C, side="right") - 1, 0, bins - 1)
        count_B += np.bincount(bin_C, minlength=bins)
        score_B += np.bincount(bin_C, weights=p_C, minlength=bins)
        label_B += np.bincount(bin_C[positive_C], minlength=bins)
    return [
        CalibrationBin(
            low=float(edges[b]),
            high=float(edges[b + 1]),
            mean_score=float(score_B[b] / count_B[b]),
            mean_label=float(label_B[b] / count_B[b]),
            count=int(count_B[b]),
        )
        for b in np.flatnonzero(count_B)
    ]


def expected_calibration_error(table: list[CalibrationBin]) -> float:
    """sum over bins of |mean score - mean label|, weighted by count; NaN for an empty table."""
    count = sum(row.count for row in table)
    if count == 0:
        return float("nan")
    return sum(abs(row.mean_score - row.mean_label) * row.count for row in table) / count
