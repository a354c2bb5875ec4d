"""One feature of many entities as numpy arrays: what packed rows are made from and read into.

A `Column` says three things apart that Feast's dictionaries mix up: a value (an empty list is
one), a null, and (in `Columns.found`) an entity without any row.

Shape suffixes: N entities, N1 their boundaries (N + 1), E items of all lists behind each other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.errors import InputError

NO_TIMESTAMP = np.iinfo("i8").min
"""Feast's spelling of an unknown moment among epoch seconds (numpy's NaT)."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How one Feast value type is stored. `name` is Feast's (ValueType.INT64_LIST: INT64_LIST)."""

    name: str
    item: np.dtype
    is_list: bool
    is_text: bool
    arrow: pa.DataType


def _kinds() -> dict[str, Kind]:
    items: dict[str, tuple[str, pa.DataType]] = {
        "INT32": ("<i4", pa.int32()),
        "INT64": ("<i8", pa.int64()),
        "FLOAT": ("<f4", pa.float32()),
        "DOUBLE": ("<f8", pa.float64()),
        "BOOL": ("u1", pa.bool_()),
        "UNIX_TIMESTAMP": ("<i8", pa.int64()),
        "STRING": ("u1", pa.large_string()),
        "BYTES": ("u1", pa.large_binary()),
    }
    kinds = {}
    for name, (item, arrow) in items.items():
        text = name in ("STRING", "BYTES")
        for is_list in (False, True):
            full = f"{name}_LIST" if is_list else name
            kinds[full] = Kind(
                name=full,
                item=np.dtype(item),
                is_list=is_list,
                is_text=text,
                arrow=pa.large_list(arrow) if is_list else arrow,
            )
    return kinds


KINDS = _kinds()
"""Every value type that packed rows hold, by Feast's name. UNIX_TIMESTAMP: epoch seconds."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Column:
    """One feature of N entities.

    numbers             values (N,), zero where not valid
    strings, bytes      values: all bytes; offsets_N1 into them
    lists of numbers    values: all items; offsets_N1 into them
    lists of strings    values: all bytes; item_offsets into them; offsets_N1 into the items
    """

    kind: Kind
    valid_N: np.ndarray
    values: np.ndarray
    offsets_N1: np.ndarray | None = None
    item_offsets: np.ndarray | None = None

    @property
    def counts_N(self) -> np.ndarray:
        """Items of each list, or bytes of each string; zero where there is none."""
        if self.offsets_N1 is None:
            raise InputError(f"a {self.kind.name} feature has one value an entity, not a list")
        return np.diff(self.offsets_N1)

    def matrix(self, width: int, fill: Any = 0) -> np.ndarray:
        """Lists of numbers as (N, width): cut or filled at the end where they differ in length."""
        if not self.kind.is_list or self.kind.is_text:
            raise InputError(f"only lists of numbers have a matrix, this is {self.kind.name}")
        counts_N = self.counts_N
        if len(counts_N) and (counts_N == width).all():
            return self.values.reshape(-1, width)
        assert self.offsets_N1 is not None
        at_NW = self.offsets_N1[:-1, None] + np.arange(width)
        has_NW = np.arange(width) < counts_N[:, None]
        out = np.full(at_NW.shape, fill, dtype=self.values.dtype)
        out[has_NW] = self.values[at_NW[has_NW]]
        return out

    def to_arrow(self) -> pa.Array:
        """As Arrow; moments stay epoch seconds."""
        null_N = pa.array(~self.valid_N)
        kind = self.kind
        if self.offsets_N1 is None:
            values = self.values.astype(bool) if kind.name == "BOOL" else self.values
            return pa.array(values, mask=~self.valid_N, type=kind.arrow)
        if not kind.is_list:
            flat = _text_array(kind.arrow, self.offsets_N1, self.values)
            return pc.if_else(null_N, pa.scalar(None, kind.arrow), flat)
        if kind.is_text:
            assert self.item_offsets is not None
            items = _text_array(kind.arrow.value_type, self.item_offsets, self.values)
        else:
            values = self.values.astype(bool) if kind.name == "BOOL_LIST" else self.values
            items = pa.array(values, type=kind.arrow.value_type)
        offsets = pa.array(self.offsets_N1, type=pa.int64())
        return pa.LargeListArray.from_arrays(offsets, items, type=kind.arrow, mask=null_N)

    def to_pylist(self) -> list[Any]:
        """The Python values that `get_online_features(...).to_dict()` has, None for null."""
        values = self.stored_values()
        if self.kind.name == "UNIX_TIMESTAMP":
            return [_moment(value) for value in values]
        if self.kind.name == "UNIX_TIMESTAMP_LIST":
            return [None if v is None else [_moment(second) for second in v] for v in values]
        return values

    def stored_values(self) -> list[Any]:
        """Python values as they are stored (moments: epoch seconds), None for null."""
        if self.kind.is_text:
            ends = self.offsets_N1 if self.item_offsets is None else self.item_offsets
            assert ends is not None
            data = self.values.tobytes()
            flat: list[Any] = [data[a:b] for a, b in pairwise(ends.tolist())]
            if self.kind.name.startswith("STRING"):
                flat = [text.decode() for text in flat]
        elif self.kind.name.startswith("BOOL"):
            flat = self.values.astype(bool).tolist()
        else:
            flat = self.values.tolist()
        if self.kind.is_list:
            assert self.offsets_N1 is not None
            flat = [flat[a:b] for a, b in pairwise(self.offsets_N1.tolist())]
        if self.valid_N.all():
            return flat
        return [v if ok else None for v, ok in zip(flat, self.valid_N.tolist(), strict=True)]

    def spread(self, found_N: np.ndarray) -> "Column":
        """The same rows among N entities: row i goes to the i-th one that is found."""
        if found_N.all():
            return self
        valid_N = np.zeros(len(found_N), dtype=bool)
        valid_N[found_N] = self.valid_N
        if self.offsets_N1 is None:
            values = np.zeros(len(found_N), dtype=self.values.dtype)
            values[found_N] = self.values
            return Column(kind=self.kind, valid_N=valid_N, values=values)
        counts_N = np.zeros(len(found_N), dtype="i8")
        counts_N[found_N] = self.counts_N
        return Column(
            kind=self.kind,
            valid_N=valid_N,
            values=self.values,
            offsets_N1=boundaries(counts_N),
            item_offsets=self.item_offsets,
        )


def column_from_arrow(kind: Kind, array: pa.Array | pa.ChunkedArray) -> Column:
    """An Arrow array of any type that holds such values without loss.

    Timestamps become epoch seconds (rounded down), as Feast stores them. Raises ValueError for
    null items of a list, and Arrow's ArrowInvalid for values that the kind cannot hold.
    """
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    array = _seconds(array).cast(kind.arrow)
    valid_N = array.is_valid().to_numpy(zero_copy_only=False)
    if not kind.is_list:
        if kind.is_text:
            offsets_N1, values = _text(array)
            return Column(kind=kind, valid_N=valid_N, values=values, offsets_N1=offsets_N1)
        return Column(kind=kind, valid_N=valid_N, values=_numbers(kind, array))
    counts = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    offsets_N1 = boundaries(counts)
    items = array.flatten()  # skips what lies under null lists
    if items.null_count and not kind.name.startswith("UNIX_TIMESTAMP"):
        raise ValueError(f"{items.null_count} null items inside lists, which have no packed form")
    if kind.is_text:
        item_offsets, values = _text(items)
        return Column(
            kind=kind,
            valid_N=valid_N,
            values=values,
            offsets_N1=offsets_N1,
            item_offsets=item_offsets,
        )
    return Column(kind=kind, valid_N=valid_N, values=_numbers(kind, items), offsets_N1=offsets_N1)


def null_column(kind: Kind, rows: int) -> Column:
    """N nulls: a feature that the stored rows are too old to have."""
    return column_from_arrow(kind, pa.nulls(rows, kind.arrow))


@dataclass(frozen=True, kw_only=True, eq=False)
class Columns:
    """What an online store knows of N entities, by feature reference (`view:feature`)."""

    ids_N: np.ndarray
    columns: Mapping[str, Column]
    found: Mapping[str, np.ndarray]
    """view -> (N,) bool: whether it has a row of the entity."""
    event_us: Mapping[str, np.ndarray]
    """view -> (N,) int64: the row's event time in microseconds since 1970; 0 where not found."""

    def __getitem__(self, reference: str) -> Column:
        try:
            return self.columns[reference]
        except KeyError:
            raise InputError(
                f"no column {reference!r} was read, only {list(self.columns)}"
            ) from None


def boundaries(counts_N: np.ndarray) -> np.ndarray:
    """Where each of N runs begins, and the last ends: (N + 1,) int64."""
    out = np.zeros(len(counts_N) + 1, dtype="i8")
    np.cumsum(counts_N, out=out[1:])
    return out


def _numbers(kind: Kind, array: pa.Array) -> np.ndarray:
    if kind.name.startswith("BOOL"):
        array = array.cast(pa.uint8())
    fill = NO_TIMESTAMP if kind.name == "UNIX_TIMESTAMP_LIST" else 0
    if array.null_count:
        array = pc.fill_null(array, pa.scalar(fill, array.type))
    return array.to_numpy(zero_copy_only=False).astype(kind.item, copy=False)


def _text(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (N + 1) and bytes of strings; a null is an empty one."""
    array = array.cast(pa.large_binary())
    if array.null_count:
        array = pc.fill_null(array, b"")
    _, offsets, data = array.buffers()
    if len(array) == 0:
        return np.zeros(1, dtype="i8"), np.zeros(0, dtype="u1")
    offsets_N1 = np.frombuffer(offsets, dtype="<i8")[array.offset : array.offset + len(array) + 1]
    if data is None:
        return offsets_N1 - offsets_N1[0], np.zeros(0, dtype="u1")
    values = np.frombuffer(data, dtype="u1")[offsets_N1[0] : offsets_N1[-1]]
    return offsets_N1 - offsets_N1[0], values


def _text_array(arrow: pa.DataType, offsets: np.ndarray, values: np.ndarray) -> pa.Array:
    buffers = [None, pa.py_buffer(np.ascontiguousarray(offsets)), pa.py_buffer(values.tobytes())]
    return pa.Array.from_buffers(arrow, len(offsets) - 1, buffers)


def _seconds(array: pa.Array) -> pa.Array:
    """Timestamps and lists of them as epoch seconds; anything else as it is."""
    kind = array.type
    if pa.types.is_timestamp(kind):
        ticks = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]
        numbers = array.cast(pa.int64())
        if ticks == 1:
            return numbers
        rest = pc.subtract(numbers, pc.multiply(pc.divide(numbers, ticks), ticks))
        below = pc.cast(pc.less(rest, 0), pa.int64())  # Arrow divides towards zero
        return pc.subtract(pc.divide(numbers, ticks), below)
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_timestamp(
        kind.value_type
    ):
        offsets = boundaries(pc.fill_null(pc.list_value_length(array), 0).to_numpy(False))
        return pa.LargeListArray.from_arrays(
            pa.array(offsets), _seconds(array.flatten()), mask=array.is_null()
        )
    return array


def _moment(second: int | None) -> datetime | None:
    if second is None or second == NO_TIMESTAMP:
        return None
    return datetime.fromtimestamp(second, tz=UTC)
