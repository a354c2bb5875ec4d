"""Numbers beside the IDs: windowed counts of user and track, and the context of the request.

Training and serving make the vector with one function, `number_rows`, so that a training row is
what serving would have seen. `models.numbers` normalises it inside the model, by the mean and
spread over the training part that `NumberStatistics` finds:

    z = (f(x) - mean) / spread        f = log(1 + x) for counts, the number itself for the context

Missing: no row of counts means that nothing happened in any window, which is a count of 0, exactly.
Without a listen there is no time since it: that number takes the training mean (z = 0), and
`without_listen` says so.

Shape suffixes: B rows, N numbers, M rows of one part of a training set.
"""

from collections.abc import Mapping, Sequence

import numpy as np

CONTEXT = (
    "hour_sin",
    "hour_cos",
    "weekday_sin",
    "weekday_cos",
    "history_length",
    "log_since_listen",
    "without_listen",
)
"""Made from the request's moment, UTC, and the user's sequence. Every other name is a count."""
DAY_US = 86_400 * 10**6
EPOCH_WEEKDAY = 3
"""1970-01-01 was a Thursday; Monday is 0."""


def number_rows(
    names: Sequence[str],
    counts: Mapping[str, np.ndarray],
    *,
    moments_us_B: np.ndarray,
    history_lengths_B: np.ndarray,
    last_listens_us_B: np.ndarray,
) -> np.ndarray:
    """Numbers (B, N) float32 in the order of `names`, not yet normalised.

    `counts`: by name, (B,) or (1,) for all rows; NaN where the store holds no row. Moments and
    listens are int64 microseconds since 1970; a listen is read where the length is above 0.
    """
    day_share_B = (moments_us_B % DAY_US) / DAY_US
    week_share_B = ((moments_us_B // DAY_US + EPOCH_WEEKDAY) % 7) / 7
    empty_B = history_lengths_B == 0
    # A listen of another clock may lie ahead of the request: then it was just now.
    since_s_B = np.maximum(moments_us_B - last_listens_us_B, 0) / 10**6
    context = {
        "hour_sin": np.sin(2 * np.pi * day_share_B),
        "hour_cos": np.cos(2 * np.pi * day_share_B),
        "weekday_sin": np.sin(2 * np.pi * week_share_B),
        "weekday_cos": np.cos(2 * np.pi * week_share_B),
        "history_length": history_lengths_B,
        "log_since_listen": np.where(empty_B, np.nan, np.log1p(since_s_B)),
        "without_listen": empty_B,
    }
    numbers_BN = np.empty((len(moments_us_B), len(names)), dtype=np.float32)
    for column, name in enumerate(names):
        if name in context:
            numbers_BN[:, column] = context[name]
        else:
            numbers_BN[:, column] = np.nan_to_num(counts[name], nan=0.0)
    return numbers_BN


class NumberStatistics:
    """Mean and spread of f(x) over a training part that comes in parts of any size."""

    def __init__(self, names: Sequence[str]) -> None:
        self._is_count_N = np.array([name not in CONTEXT for name in names], dtype=bool)
        self._count_N = np.zeros(len(names))
        self._mean_N = np.zeros(len(names))
        self._squares_N = np.zeros(len(names))

    def add(self, numbers_MN: np.ndarray) -> None:
        """More rows, as `number_rows` makes them; NaN counts for nothing."""
        f_MN = numbers_MN.astype(np.float64)
        f_MN[:, self._is_count_N] = np.log1p(f_MN[:, self._is_count_N])
        known_MN = ~np.isnan(f_MN)
        count_N = known_MN.sum(0)
        mean_N = np.where(known_MN, f_MN, 0).sum(0) / np.maximum(count_N, 1)
        squares_N = np.where(known_MN, (f_MN - mean_N) ** 2, 0).sum(0)
        # Two parts' squares about their common mean (Chan et al. 1979).
        total_N = np.maximum(self._count_N + count_N, 1)
        shift_N = mean_N - self._mean_N
        self._squares_N += squares_N + shift_N**2 * self._count_N * count_N / total_N
        self._mean_N += shift_N * count_N / total_N
        self._count_N += count_N

    def tensors(self) -> dict[str, np.ndarray]:
        """`mean_N` and `spread_N`, float32; a number that never varies has spread 1."""
        spread_N = np.sqrt(self._squares_N / np.maximum(self._count_N, 1)).astype(np.float32)
        return {
            "mean_N": self._mean_N.astype(np.float32),
            "spread_N": np.where(spread_N > 0, spread_N, np.float32(1)),
        }
