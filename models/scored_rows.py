"""Labels and scores of many rows, checked and handed out in chunks: copies stay small.

Shape suffixes: N impressions, C rows of one chunk.
"""

from collections.abc import Iterator

import numpy as np

Array = np.ndarray
CHUNK = 262_144


def checked_chunks(
    labels_N: Array, scores_N: Array, *, probabilities: bool = False
) -> Iterator[tuple[slice, Array, Array]]:
    """Which rows, their labels_C as bool, their scores_C as float64.

    ValueError for unequal lengths, for labels other than 0 and 1, for scores that are not finite
    or, where they have to be probabilities, lie outside 0 to 1. It names the first bad row.
    """
    labels_N, scores_N = np.asarray(labels_N), np.asarray(scores_N)
    if labels_N.ndim != 1 or labels_N.shape != scores_N.shape:
        raise ValueError(
            f"labels and scores must be one equal length, got {labels_N.shape} and {scores_N.shape}"
        )
    for start in range(0, len(labels_N), CHUNK):
        rows = slice(start, min(start + CHUNK, len(labels_N)))
        labels_C, scores_C = labels_N[rows], scores_N[rows].astype(np.float64)
        positive_C = labels_C == 1
        _refuse("labels must be 0 or 1", start, labels_C, (labels_C == 0) | positive_C)
        _refuse("scores must be finite", start, scores_C, np.isfinite(scores_C))
        if probabilities:
            inside_C = (scores_C >= 0) & (scores_C <= 1)
            _refuse("probabilities must be 0 to 1", start, scores_C, inside_C)
        yield rows, positive_C, scores_C


def _refuse(rule: str, start: int, values_C: Array, good_C: Array) -> None:
    if not good_C.all():
        first = int((~good_C).argmax())
        raise ValueError(f"{rule}; row {start + first} has {float(values_C[first]):g}")
