"""Which tracks share a semantic-ID prefix: an inverted index as sorted arrays.

    index = PrefixIndex(codes_FIL, popularity_I)
    rows = index.nearest(history_rows, 150, seen_rows)

At every depth a family's tracks are sorted by prefix and then by popularity, so that the tracks of
a prefix are one range. Eight bytes a track, family and level; no Python object a track.

Shape suffixes: I tracks of the catalogue, F families, L levels, S tracks that have an ID of one
family, G distinct prefixes, H listens, T rows to leave out, C tracks found.
"""

from dataclasses import dataclass

import numpy as np

from models.batch import MISSING_CODE


@dataclass(frozen=True, kw_only=True)
class Depth:
    """The prefixes of one family at one depth."""

    group_I: np.ndarray
    """int32: number of the prefix that a track has; -1 without an ID of the family."""
    starts_G: np.ndarray
    """int32, one entry more than prefixes: where each one's tracks begin in `order_S`."""
    order_S: np.ndarray
    """int32: rows of the catalogue by prefix, the most popular first."""


class PrefixIndex:
    """Tracks by shared prefix: the deepest first, and of one depth in the order of families."""

    def __init__(self, codes_FIL: np.ndarray, popularity_I: np.ndarray) -> None:
        """`codes_FIL`: families in the order of preference, MISSING_CODE where a track has no ID.

        `popularity_I`: 0 for the most popular track, then 1, ...; it decides among equals.
        """
        self._popularity_I = popularity_I
        families = [_depths(codes_IL, popularity_I) for codes_IL in codes_FIL]
        levels = range(codes_FIL.shape[2])
        self._depths = [depths[level] for level in reversed(levels) for depths in families]

    def nearest(self, history_H: np.ndarray, count: int, taken_T: np.ndarray) -> np.ndarray:
        """At most `count` rows (C,) that share a prefix with a track of the history, best first.

        `history_H`: rows, repeats allowed. `taken_T`: rows to leave out, rising. Of one depth and
        family, tracks come first whose prefix more listens share, then the more popular ones.
        """
        found = [np.empty(0, dtype=np.int64)]
        for depth in self._depths:
            if count < 1:
                break
            rows_C = self._of_depth(depth, history_H, count, taken_T)
            if len(rows_C):
                found.append(rows_C)
                taken_T = np.sort(np.concatenate([taken_T, rows_C]))
                count -= len(rows_C)
        return np.concatenate(found)

    def _of_depth(
        self, depth: Depth, history_H: np.ndarray, count: int, taken_T: np.ndarray
    ) -> np.ndarray:
        group_H = depth.group_I[history_H]
        group_G, listens_G = np.unique(group_H[group_H >= 0], return_counts=True)
        starts_G = depth.starts_G[group_G]
        # The most popular of a prefix are enough, however many tracks share it.
        sizes_G = np.minimum(depth.starts_G[group_G + 1] - starts_G, count + len(taken_T))
        # The places start, start + 1, ... of each prefix, one prefix after the other.
        first_G = starts_G - (np.cumsum(sizes_G) - sizes_G)
        rows_C = depth.order_S[np.arange(sizes_G.sum()) + np.repeat(first_G, sizes_G)]
        worth_C = np.repeat(listens_G, sizes_G) * len(self._popularity_I)
        worth_C -= self._popularity_I[rows_C]
        fresh_C = ~is_among(rows_C, taken_T)
        rows_C, worth_C = rows_C[fresh_C], worth_C[fresh_C]
        if len(rows_C) > count:
            best_C = np.argpartition(-worth_C, count)[:count]
            rows_C, worth_C = rows_C[best_C], worth_C[best_C]
        return rows_C[np.argsort(-worth_C)].astype(np.int64)


def is_among(values: np.ndarray, rising_T: np.ndarray) -> np.ndarray:
    """Which values are in a short rising array, as bools."""
    if not len(rising_T):
        return np.zeros(len(values), dtype=bool)
    place = np.minimum(np.searchsorted(rising_T, values), len(rising_T) - 1)
    return np.asarray(rising_T[place] == values)


def _depths(codes_IL: np.ndarray, popularity_I: np.ndarray) -> list[Depth]:
    """One family's prefixes, the shallowest first."""
    held_S = np.flatnonzero(codes_IL[:, 0] != MISSING_CODE)
    group_S = np.zeros(len(held_S), dtype=np.int64)
    depths = []
    for code_S in codes_IL[held_S].T:
        # Dense numbers of (prefix so far, next code): they cannot outgrow an integer.
        pair_S = group_S * (code_S.max(initial=0) + 1) + code_S
        group_S = np.unique(pair_S, return_inverse=True)[1]
        order_S = np.argsort(group_S * len(codes_IL) + popularity_I[held_S])
        group_I = np.full(len(codes_IL), -1, dtype=np.int32)
        group_I[held_S] = group_S
        starts_G = np.searchsorted(group_S[order_S], np.arange(group_S.max(initial=-1) + 2))
        depths.append(
            Depth(
                group_I=group_I,
                starts_G=starts_G.astype(np.int32),
                order_S=held_S[order_S].astype(np.int32),
            )
        )
    return depths
