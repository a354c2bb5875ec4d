"""Metrics of a binary ranker: AUC, GAUC, logloss, calibration. numpy, float64, exact with ties.

Slices (cold items, new users) are the caller's: pass masked arrays.

Shape suffixes: N impressions, U users, R runs of equal (user, score), B bins.
"""

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


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
    return gauc(np.zeros(len(labels_N), np.int64), labels_N, scores_N).gauc


def gauc(users_N: Array, labels_N: Array, scores_N: Array) -> Gauc:
    """Per-user AUC, weighted and unweighted, by one sort; errors as `auc`, plus unequal lengths."""
    labels_N, scores_N = _checked(labels_N, scores_N)
    users_N = np.asarray(users_N)
    if users_N.shape != labels_N.shape:
        raise ValueError(f"users must be {labels_N.shape}, got {users_N.shape}")
    order_N = np.lexsort((scores_N, users_N))
    users_N, labels_N, scores_N = users_N[order_N], labels_N[order_N], scores_N[order_N]
    new_user_N = np.ones(len(users_N), bool)
    new_user_N[1:] = users_N[1:] != users_N[:-1]
    new_run_N = new_user_N.copy()
    new_run_N[1:] |= scores_N[1:] != scores_N[:-1]
    user_N = np.cumsum(new_user_N) - 1
    start_U = np.flatnonzero(new_user_N)
    # Ranks count from 1 within a user; a run of ties has the mean of its first and last rank.
    start_R = np.flatnonzero(new_run_N)
    end_R = np.append(start_R[1:], len(users_N))
    rank_R = (start_R + 1 + end_R) / 2 - start_U[user_N[start_R]]
    rank_N = rank_R[np.cumsum(new_run_N) - 1]
    total_U = np.bincount(user_N, minlength=len(start_U)).astype(np.float64)
    positive_U = np.bincount(user_N, weights=labels_N, minlength=len(start_U))
    negative_U = total_U - positive_U
    rank_sum_U = np.bincount(user_N, weights=rank_N * labels_N, minlength=len(start_U))
    counted_U = (positive_U > 0) & (negative_U > 0)
    # Mann-Whitney: AUC = (sum of the positives' ranks - p (p + 1) / 2) / (p n)
    wins_U = rank_sum_U - positive_U * (positive_U + 1) / 2
    auc_U = wins_U[counted_U] / (positive_U[counted_U] * negative_U[counted_U])
    weight_U = total_U[counted_U]
    users = int(counted_U.sum())
    return Gauc(
        gauc=float((auc_U * weight_U).sum() / weight_U.sum()) if users else float("nan"),
        unweighted=float(auc_U.mean()) if users else float("nan"),
        users=users,
        left_out=len(start_U) - users,
        impressions=int(weight_U.sum()),
    )


def logloss(labels_N: Array, probabilities_N: Array, *, floor: float = 1e-7) -> float:
    """Mean binary cross-entropy in nats, probabilities clipped to [floor, 1 - floor]; NaN if empty.

    ValueError for probabilities outside 0 to 1, and as `auc`.
    """
    labels_N, p_N = _checked_probabilities(labels_N, probabilities_N)
    if len(labels_N) == 0:
        return float("nan")
    p_N = np.clip(p_N, floor, 1 - floor)
    return float(-np.where(labels_N > 0, np.log(p_N), np.log1p(-p_N)).mean())


def calibration(labels_N: Array, probabilities_N: Array, *, bins: int = 10) -> list[CalibrationBin]:
    """Bins of equal width over 0 to 1, the last closed above; empty ones are left out.

    ValueError as `logloss`, or bins < 1.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    labels_N, p_N = _checked_probabilities(labels_N, probabilities_N)
    edges = np.linspace(0, 1, bins + 1)
    bin_N = np.clip(np.searchsorted(edges, p_N, side="right") - 1, 0, bins - 1)
    count_B = np.bincount(bin_N, minlength=bins)
    score_B = np.bincount(bin_N, weights=p_N, minlength=bins)
    label_B = np.bincount(bin_N, weights=labels_N, minlength=bins)
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


def _checked(labels_N: Array, scores_N: Array) -> tuple[Array, Array]:
    labels_N = np.asarray(labels_N).astype(np.float64)
    scores_N = np.asarray(scores_N).astype(np.float64)
    if labels_N.ndim != 1 or labels_N.shape != scores_N.shape:
        raise ValueError(
            f"labels and scores must be one equal length, got {labels_N.shape} and {scores_N.shape}"
        )
    other_N = (labels_N != 0) & (labels_N != 1)
    if other_N.any():
        first = int(other_N.argmax())
        raise ValueError(f"labels must be 0 or 1; row {first} has {labels_N[first]:g}")
    if not np.isfinite(scores_N).all():
        first = int((~np.isfinite(scores_N)).argmax())
        raise ValueError(f"scores must be finite; row {first} has {scores_N[first]}")
    return labels_N, scores_N


def _checked_probabilities(labels_N: Array, p_N: Array) -> tuple[Array, Array]:
    labels_N, p_N = _checked(labels_N, p_N)
    outside_N = (p_N < 0) | (p_N > 1)
    if outside_N.any():
        first = int(outside_N.argmax())
        raise ValueError(f"probabilities must be 0 to 1; row {first} has {p_N[first]:g}")
    return labels_N, p_N
