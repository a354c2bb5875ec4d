"""Bootstrap intervals of the difference between two rankers on the same test rows.

A draw takes as many users as the test has, with replacement, each with all of their test rows,
and seeds of the training beside them; both rankers are measured on the same draw, and their
difference is averaged over its seeds. The middle 95% of the draws is the interval. It covers other
listeners like these, and other starts and row orders of the training; no other split in time, no
other catalogue, and no other fit of the codebooks.

Shape suffixes: N test rows, U users, R draws, C draws of one chunk, S seeds, P positives,
Q negatives.
"""

from dataclasses import dataclass

import numpy as np

from models.scored_rows import Array
from models.sorted_auc import users_counts

DRAWS = 1000
COVERAGE = 0.95
CHUNK_VALUES = 1 << 21
"""Weights held at once: 16 MB of float64."""
LEAST_DEFINED = 0.95
"""Share of the draws that must have rows of both labels for there to be an interval."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What every draw holds: the same for all rankers that are compared."""

    counts_UR: Array
    """Times that a user is in a draw, uint8."""
    counts_SR: Array
    """Times that a seed is in a draw."""


def draw(users: int, seeds: int, *, draws: int = DRAWS, seed: int = 0) -> Draws:
    """`users` of the users and `seeds` - 1 of the seeds for each draw, with replacement.

    One seed fewer than there are (Rao and Wu 1988): the mean over n of n seeds would vary by
    (n - 1) / n of what it should, which with three seeds is a third too little. A single seed is
    in every draw, and the interval then says nothing of other seeds. ValueError without either.
    """
    if users < 1 or seeds < 1:
        raise ValueError(f"users and seeds must be at least 1, got {users} and {seeds}")
    random = np.random.default_rng(seed)
    counts_UR = np.empty((users, draws), dtype=np.uint8)
    for place in range(draws):
        drawn = random.integers(0, users, users)
        counts_UR[:, place] = np.bincount(drawn, minlength=users)
    drawn_RS = random.integers(0, seeds, (draws, max(1, seeds - 1)))
    counts_SR = np.stack([(drawn_RS == place).sum(1) for place in range(seeds)])
    return Draws(counts_UR=counts_UR, counts_SR=counts_SR)


def drawn_auc(user_N: Array, labels_N: Array, scores_N: Array, counts_UR: Array) -> Array:
    """AUC (R,) of every draw, ties as half a win; NaN where a draw has one label only.

    `user_N`: rows of `counts_UR`. The scores are sorted once, as a draw changes no order:

        AUC_r = sum_p c_p (below_p + upto_p) / (2 sum_p c_p sum_q c_q)

    with c_p, c_q how often a positive and a negative row is in the draw, below_p and upto_p the
    c_q summed over negatives that score below p, and not above p.
    """
    positive_N = labels_N == 1
    negatives = np.flatnonzero(~positive_N)
    order_Q = negatives[np.argsort(scores_N[negatives], kind="stable")]
    sorted_Q = scores_N[order_Q]
    below_P = np.searchsorted(sorted_Q, scores_N[positive_N], side="left")
    upto_P = np.searchsorted(sorted_Q, scores_N[positive_N], side="right")
    user_P, user_Q = user_N[positive_N], user_N[order_Q]
    size = max(1, CHUNK_VALUES // max(1, len(user_N)))
    parts = [np.empty(0)]
    for start in range(0, counts_UR.shape[1], size):
        counts_UC = counts_UR[:, start : start + size].astype(np.float64)
        upto_QC = np.zeros((len(user_Q) + 1, counts_UC.shape[1]))
        np.cumsum(counts_UC[user_Q], axis=0, out=upto_QC[1:])
        counts_PC = counts_UC[user_P]
        twice_wins_C = (counts_PC * (upto_QC[below_P] + upto_QC[upto_P])).sum(0)
        parts.append(_ratio(twice_wins_C, 2 * counts_PC.sum(0) * upto_QC[-1]))
    return np.concatenate(parts)


def drawn_gauc(user_N: Array, labels_N: Array, scores_N: Array, counts_UR: Array) -> Array:
    """GAUC (R,) of every draw, weighted by impressions: sum_u c_u n_u AUC_u / sum_u c_u n_u.

    Over users with rows of both labels; NaN where a draw has no such user.
    """
    there = np.unique(user_N)
    parts = list(users_counts(user_N, labels_N, scores_N))  # by rising user
    positives, negatives, twice_wins = (
        np.concatenate([np.empty(0, np.int64), *columns]).astype(np.float64)
        for columns in zip(*parts, strict=True)
    )
    both = (positives > 0) & (negatives > 0)
    rows = (positives + negatives)[both]
    auc = twice_wins[both] / (2 * positives[both] * negatives[both])
    counts = counts_UR[there[both]].astype(np.float64)
    return _ratio((rows * auc) @ counts, rows @ counts)


def drawn_mean(user_N: Array, values_N: Array, counts_UR: Array) -> Array:
    """Mean (R,) of a value over each draw's rows; NaN where a draw has none."""
    users = len(counts_UR)
    counts = counts_UR.astype(np.float64)
    sums_U = np.bincount(user_N, weights=values_N, minlength=users)
    return _ratio(sums_U @ counts, np.bincount(user_N, minlength=users) @ counts)


def interval(
    ours_SR: Array, theirs_SR: Array, counts_SR: Array, *, coverage: float = COVERAGE
) -> tuple[float, float] | None:
    """Ends of the paired interval of mean over seeds of (ours - theirs).

    None where fewer than LEAST_DEFINED of the draws have both.
    """
    difference_SR = ours_SR - theirs_SR
    held_SR = counts_SR > 0
    # A seed that is not in a draw counts nothing there, be its metric defined or not.
    sums_R = np.where(held_SR, counts_SR * difference_SR, 0).sum(0)
    means_R = sums_R / counts_SR.sum(0)
    defined_R = means_R[~np.isnan(means_R)]
    if len(defined_R) < LEAST_DEFINED * len(means_R):
        return None
    low, high = np.quantile(defined_R, [(1 - coverage) / 2, (1 + coverage) / 2])
    return float(low), float(high)


def _ratio(over: Array, under: Array) -> Array:
    return np.divide(over, under, out=np.full(np.shape(over), np.nan), where=under > 0)
