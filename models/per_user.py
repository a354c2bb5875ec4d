"""A small number for every user, as text inside a line of JSON: zlib and base64 of int16.

    unpacked(packed(ranks_U)) == ranks_U

Ranks are kept as they are, up to 32,767; numbers of -1 to 1 (Kendall's tau) to four digits, with
NaN. A hundred thousand users take about 200 kB, and a study's result stays one readable file.

Shape suffix: U users.
"""

import base64
import zlib

import numpy as np

DIGITS = 10_000
LARGEST, UNDEFINED = 32_767, -32_768
_WHOLE, _PART = "i", "t"


def packed(values_U: np.ndarray) -> str:
    """ValueError for whole numbers outside 0 to 32,767, or others outside -1 to 1."""
    whole = np.issubdtype(values_U.dtype, np.integer)
    low, high = (0, LARGEST) if whole else (-1, 1)
    there_U = np.isnan(values_U) if not whole else np.zeros(len(values_U), dtype=bool)
    known_U = values_U[~there_U]
    if len(known_U) and not low <= known_U.min() <= known_U.max() <= high:
        raise ValueError(f"values must be {low} to {high}, got {known_U.min()} to {known_U.max()}")
    scaled_U = values_U if whole else np.round(np.nan_to_num(values_U) * DIGITS)
    stored_U = np.where(there_U, UNDEFINED, scaled_U).astype("<i2")
    text = base64.b64encode(zlib.compress(stored_U.tobytes(), 9)).decode()
    return (_WHOLE if whole else _PART) + text


def unpacked(text: str) -> np.ndarray:
    """The inverse of `packed`, (U,) int64 or float64. ValueError for another text."""
    kind, data = text[:1], text[1:]
    if kind not in (_WHOLE, _PART):
        raise ValueError(f"packed values begin with {_WHOLE} or {_PART}, got {text[:8]!r}")
    stored_U = np.frombuffer(zlib.decompress(base64.b64decode(data)), dtype="<i2")
    if kind == _WHOLE:
        return stored_U.astype(np.int64)
    return np.where(stored_U == UNDEFINED, np.nan, stored_U / DIGITS)
