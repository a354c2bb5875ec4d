"""Exact AUC within each user, and over all rows, by one sort of 64-bit integers.

A row is packed into one integer, whose order is that of (user, score), the label last:

    user, 31 bits | score, 32 bits | label, 1 bit

numpy sorts those several times as fast as it finds the order of two columns. Then one sweep over
the sorted rows counts, in integers and so without rounding,

    2 x wins of a user = sum over runs of equal scores  p_r (2 n_before_r + n_r)

with p_r, n_r the run's positives and negatives, n_before_r the user's negatives with lower scores.
AUC = wins / (p n) (Mann-Whitney; a tie is half a win). Memory beyond the caller's columns: 8 bytes
a row, and chunks. 32 bits hold any float32 score; other scores, and user ids that are far apart,
go by their rank, which costs a second sort and 12 bytes a row.

Shape suffixes: N impressions, C rows of one chunk, R runs of equal (user, score), U users.
"""

from collections.abc import Iterator

import numpy as np

from models.scored_rows import CHUNK, Array, checked_chunks

USERS = 2**31
SIGN = np.uint32(0x80000000)
ONE, SCORE_BITS = np.uint64(1), np.uint64(32)
USER_SHIFT = ONE + SCORE_BITS


def users_counts(
    users_N: Array | None, labels_N: Array, scores_N: Array
) -> Iterator[tuple[Array, Array, Array]]:
    """positives_U, negatives_U, twice_wins_U of the users, int64, some at a time.

    Without `users_N` all rows are one user's. ValueError as `checked_chunks`.
    """
    keys_N = _packed(users_N, labels_N, scores_N)
    keys_N.sort()
    carried: list[Array] = []
    """The counts of the last user so far: the next chunk may hold more of that one's rows."""
    carried_user = np.uint64(0)
    start = 0
    while start < len(keys_N):
        end = min(start + CHUNK, len(keys_N))
        # Up to the end of a run: the last key that can be in it has the label 1.
        end = int(np.searchsorted(keys_N, keys_N[end - 1] | ONE, side="right"))
        run_C = keys_N[start:end] >> ONE
        start_R = np.flatnonzero(np.r_[True, run_C[1:] != run_C[:-1]])
        positives_R = np.add.reduceat((keys_N[start:end] & ONE).astype(np.int64), start_R)
        negatives_R = np.diff(start_R, append=len(run_C)) - positives_R
        user_R = run_C[start_R] >> SCORE_BITS
        start_U = np.flatnonzero(np.r_[True, user_R[1:] != user_R[:-1]])
        goes_on = bool(carried) and user_R[0] == carried_user
        if carried and not goes_on:
            yield carried[0], carried[1], carried[2]
        before_R = np.cumsum(negatives_R) - negatives_R
        before_R -= np.repeat(before_R[start_U], np.diff(start_U, append=len(start_R)))
        if goes_on:
            before_R[: start_U[1] if len(start_U) > 1 else None] += carried[1][0]
        twice_wins_R = positives_R * (2 * before_R + negatives_R)
        counts = [
            np.add.reduceat(count_R, start_U)
            for count_R in (positives_R, negatives_R, twice_wins_R)
        ]
        if goes_on:
            for count_U, of_last in zip(counts, carried, strict=True):
                count_U[0] += of_last[0]
        yield counts[0][:-1], counts[1][:-1], counts[2][:-1]
        carried, carried_user = [count_U[-1:] for count_U in counts], user_R[-1]
        start = end
    if carried:
        yield carried[0], carried[1], carried[2]


def _packed(users_N: Array | None, labels_N: Array, scores_N: Array) -> Array:
    keys_N = np.empty(len(labels_N), np.uint64)
    narrow = True
    for rows, positive_C, scores_C in checked_chunks(labels_N, scores_N):
        narrow = narrow and bool((scores_C.astype(np.float32) == scores_C).all())
        if narrow:
            keys_N[rows] = _ordered_bits(scores_C.astype(np.float32)) << ONE
            keys_N[rows] |= positive_C
    if not narrow:
        keys_N = _ranks(np.asarray(scores_N).astype(np.float64)).astype(np.uint64) << ONE
        keys_N |= np.asarray(labels_N) == 1
    if users_N is not None:
        _add_users(keys_N, users_N)
    return keys_N


def _ordered_bits(scores_C: Array) -> Array:
    """uint64 below 2^32 in the order of float32 scores; 0.0 and -0.0 get the same."""
    bits_C = (scores_C + np.float32(0)).view(np.uint32)
    return np.where(bits_C & SIGN, ~bits_C, bits_C | SIGN).astype(np.uint64)


def _add_users(keys_N: Array, users_N: Array) -> None:
    """Puts the users in front: less the lowest id where the ids are close, else by their rank."""
    if len(users_N) == 0:
        return
    whole = np.issubdtype(users_N.dtype, np.integer)
    if not whole or int(users_N.max()) - int(users_N.min()) >= USERS:
        users_N = _ranks(users_N)
    low = users_N.min()
    for start in range(0, len(users_N), CHUNK):
        rows = slice(start, start + CHUNK)
        # Both wrap around alike where the ids are negative, so the difference is right.
        code_C = users_N[rows].astype(np.uint64) - low.astype(np.uint64)
        keys_N[rows] |= code_C << USER_SHIFT


def _ranks(values_N: Array) -> Array:
    """Rank of each value among the distinct ones, int32. 12 bytes a row while it works."""
    order_N = np.argsort(values_N)
    ranks_N = np.empty(len(values_N), np.int32)
    rank, last = 0, values_N[order_N[:1]]
    for start in range(0, len(values_N), CHUNK):
        rows_C = order_N[start : start + CHUNK]
        values_C = np.concatenate([last, values_N[rows_C]])
        ranks_C = rank + np.cumsum(values_C[1:] != values_C[:-1])
        ranks_N[rows_C] = ranks_C
        rank, last = int(ranks_C[-1]), values_C[-1:]
    return ranks_N
