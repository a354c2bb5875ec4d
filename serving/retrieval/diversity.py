"""Diversity of a ranked list: not too many tracks of one artist, or of one semantic-ID prefix.

Greedy, best first: a track whose artist or prefix has had its share is left out, and the others
keep their order. A limit is a promise: nothing that was left out fills a list that ends short.

Shape suffixes: N ranked tracks.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

UNKNOWN = -1
"""Artist or code of a track that has none: such tracks are not alike, and never left out."""


def kept(ranked: int, count: int, limits: Sequence[tuple[np.ndarray, int]]) -> np.ndarray:
    """Places, rising, of at most `count` of `ranked` tracks.

    `limits`: values (N,) of a trait, UNKNOWN where a track has none, and how many tracks of one
    value are kept. ValueError for a count or a limit below 1.
    """
    for name, number in [("count", count), *(("limit", most) for _, most in limits)]:
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if not limits:
        return np.arange(min(ranked, count))
    columns = zip(*(value_N.tolist() for value_N, _ in limits), strict=True)
    most = [number for _, number in limits]
    counted: list[Counter[int]] = [Counter() for _ in limits]
    places: list[int] = []
    for place, values in enumerate(columns):
        if len(places) == count:
            break
        full = [seen[value] >= n for value, seen, n in zip(values, counted, most, strict=True)]
        if any(full):
            continue
        places.append(place)
        for value, seen in zip(values, counted, strict=True):
            seen[value] += value != UNKNOWN
    return np.array(places, dtype=np.int64)
