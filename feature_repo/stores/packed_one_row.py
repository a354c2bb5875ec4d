"""A packed row to Python values without numpy: for Feast's own reads of a few entities.

Columns take about a hundred numpy calls, each of which costs the same for one row as for a
thousand: more than one row does. Here a row costs some microseconds and nothing beside it.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from struct import Struct, unpack_from
from typing import Any

from feature_repo.stores.packed_layout import (
    EVENT_AT,
    HEADER,
    SIGN,
    OtherFieldsError,
    RowLayout,
    damaged,
)

_LETTERS = {"<i8": "q", "<i4": "i", "<f8": "d", "<f4": "f", "|u1": "B", "<u4": "I"}
"""numpy's dtypes as `struct` calls them."""
_SIGN = int(SIGN)
_EVENT = Struct(">Q")


class OneRow:
    """Reads rows of one layout, one at a time."""

    def __init__(self, layout: RowLayout) -> None:
        self._layout = layout
        names = sorted(layout.number_at, key=layout.number_at.__getitem__)
        wide = [name for name in names if layout.number_at[name] < layout.counts_at]
        bools = names[len(wide) :]
        wide_letters, bool_letters = (
            "".join(_LETTERS[layout.kinds[name].item.str] for name in part)
            for part in (wide, bools)
        )
        streams, null_bytes = len(layout.streams), (len(layout.fields) + 7) // 8
        # "<": nothing is aligned by itself, the layout has seen to that
        self._fixed = Struct(f"<q{HEADER - 8}x{wide_letters}{streams}I{bool_letters}{null_bytes}s")
        first_count = 1 + len(wide)
        self._counts = slice(first_count, first_count + streams)
        self._number_at = {name: 1 + n for n, name in enumerate(wide)}
        self._number_at |= {name: first_count + streams + n for n, name in enumerate(bools)}
        self._widths = [stream.dtype.itemsize for stream in layout.streams]
        self._letters = [_LETTERS[stream.dtype.str] for stream in layout.streams]

    def event_us(self, row: bytes) -> int:
        """Its event time, microseconds since 1970."""
        return _EVENT.unpack_from(row, EVENT_AT)[0] - _SIGN

    def values(self, row: bytes, names: Sequence[str]) -> list[Any]:
        """These features of the row as `Column.stored_values` gives them; lists may be tuples.

        Raises OtherFieldsError for a row of other fields, ArtifactError for a damaged one.
        """
        layout, size = self._layout, len(row)
        if size < HEADER or size % 8:
            raise damaged(f"size of {size} bytes, expected a multiple of 8")
        if int.from_bytes(row[:8], "little", signed=True) != layout.word:
            raise OtherFieldsError
        if size < layout.fixed_bytes:
            raise damaged(f"{size} bytes, expected {layout.fixed_bytes} or more")
        fixed = self._fixed.unpack_from(row)
        counts = fixed[self._counts]
        starts = [layout.fixed_bytes]
        for count, width in zip(counts, self._widths, strict=True):
            starts.append(starts[-1] + count * width)
        if (starts[-1] + 7) // 8 * 8 != size:
            raise damaged("a size that differs from what its counts say")
        nulls = int.from_bytes(fixed[-1], "little")
        values: list[Any] = []
        for name in names:
            kind = layout.kinds[name]
            at = self._number_at.get(name)
            if nulls >> layout.field_at[name] & 1:
                values.append(None)
            elif at is not None:
                values.append(bool(fixed[at]) if kind.name == "BOOL" else fixed[at])
            elif kind.is_text:
                values.append(self._text(row, name, counts, starts))
            else:
                (n,) = layout.streams_of[name]
                letter = "?" if kind.name == "BOOL_LIST" else self._letters[n]
                values.append(unpack_from(f"<{counts[n]}{letter}", row, starts[n]))
        return values

    def _text(self, row: bytes, name: str, counts: Sequence[int], starts: Sequence[int]) -> Any:
        """A string, bytes, or a list of them."""
        kind, streams = self._layout.kinds[name], self._layout.streams_of[name]
        data = row[starts[streams[-1]] : starts[streams[-1] + 1]]
        if not kind.is_list:
            return data.decode() if kind.name == "STRING" else data
        lengths = unpack_from(f"<{counts[streams[0]]}I", row, starts[streams[0]])
        items = [data[a:b] for a, b in pairwise(accumulate(lengths, initial=0))]
        return [item.decode() for item in items] if kind.name == "STRING_LIST" else items
