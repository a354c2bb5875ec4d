"""Features and times of packed rows that lie behind each other, as arrays.

Shape suffixes: N rows, N1 their boundaries, S streams, B bytes of the fixed part.
"""

from typing import Any

import numpy as np

from feature_repo.stores.packed_columns import Column, boundaries
from feature_repo.stores.packed_layout import CREATED_AT, EVENT_AT, HEADER, RowLayout, times_us


class Unpacked:
    """N joined rows of one layout. Columns may share memory with the bytes that were read.

    Of rows that are all alike, counts and starts are one list of S numbers (starts: in the
    row); of others (N, S) arrays (starts: in the joined bytes).
    """

    def __init__(
        self,
        layout: RowLayout,
        joined: bytes,
        fixed_NB: np.ndarray,
        counts: Any,
        starts: Any,
    ) -> None:
        self._layout, self._joined, self._fixed_NB = layout, joined, fixed_NB
        self._counts, self._starts = counts, starts
        self._alike = isinstance(counts, list)
        nulls = fixed_NB[:, layout.nulls_at :]  # the padding after them is zero
        self._all_valid = None if nulls.any() else np.ones(len(fixed_NB), dtype=bool)

    def event_us(self) -> np.ndarray:
        """Event times: (N,) int64 microseconds since 1970."""
        return times_us(self._fixed_NB[:, EVENT_AT:CREATED_AT])

    def created_us(self) -> np.ndarray:
        """Creation times alike; NO_CREATION where there is none."""
        return times_us(self._fixed_NB[:, CREATED_AT:HEADER])

    def column(self, name: str) -> Column:
        """One feature of the N rows."""
        layout = self._layout
        kind, field = layout.kinds[name], layout.field_at[name]
        if self._all_valid is not None:
            valid_N = self._all_valid
        else:
            valid_N = (self._fixed_NB[:, layout.nulls_at + field // 8] & (1 << field % 8)) == 0
        at = layout.number_at.get(name)
        if at is not None:
            slot = self._fixed_NB[:, at : at + kind.item.itemsize]
            return Column(kind=kind, valid_N=valid_N, values=slot.view(kind.item)[:, 0])
        streams = layout.streams_of[name]
        values = self._items(streams[-1])
        offsets_N1 = self._offsets(streams[0])
        item_offsets = boundaries(self._items(streams[0])) if len(streams) == 2 else None
        return Column(
            kind=kind,
            valid_N=valid_N,
            values=values,
            offsets_N1=offsets_N1,
            item_offsets=item_offsets,
        )

    def _offsets(self, stream: int) -> np.ndarray:
        if not self._alike:
            return boundaries(self._counts[:, stream])
        return np.arange(len(self._fixed_NB) + 1) * self._counts[stream]

    def _items(self, stream: int) -> np.ndarray:
        """All items of a stream behind each other."""
        dtype = self._layout.streams[stream].dtype
        whole = np.frombuffer(self._joined, dtype=dtype)
        if self._alike:
            start = self._starts[stream] // dtype.itemsize
            rows = whole.reshape(len(self._fixed_NB), -1)
            return rows[:, start : start + self._counts[stream]].ravel()
        return whole[spans(self._starts[:, stream] // dtype.itemsize, self._counts[:, stream])]


def spans(first_N: np.ndarray, counts_N: np.ndarray) -> np.ndarray:
    """The indices first, first + 1, ... of every row behind each other."""
    counts_N = counts_N.astype("i8")
    ends_N = np.cumsum(counts_N)
    total = int(ends_N[-1]) if len(ends_N) else 0
    return np.repeat(first_N - (ends_N - counts_N), counts_N) + np.arange(total)
