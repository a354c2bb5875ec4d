"""Where each field lies in a packed row: one value an entity and view.

    bytes 0-1    mark and format version
    bytes 2-7    fingerprint of the view's fields (names and types)
    bytes 8-15   event time, microseconds since 1970, big endian, sign bit turned: the bytes
                 of two rows compare as their times do, and a store can compare them in place
    bytes 16-23  creation time alike; zeros when there is none
    then         numbers of 8 bytes, numbers of 4, the item counts of the streams, bools, one
                 bit a field for null, padding to 8
    then         the streams: items of lists, and strings; 8-byte items first, padding to 8

Falling widths keep every number aligned without padding between them, and every row a multiple of
8 bytes: joined rows are one array, in which items are found by index. A string is a stream of
bytes, a list of numbers a stream of items, a list of strings a stream of lengths and one of
bytes. Where all rows have the same counts (codes of tracks), the joined rows are a matrix and a
feature is a slice of its columns. All numbers but the two times are little endian.

Fields are stored in the order of their names, so that their order in a view means nothing.

Shape suffixes: N rows, S streams.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from feature_repo.errors import ArtifactError, InputError
from feature_repo.stores.packed_columns import KINDS

EVENT_AT, CREATED_AT, HEADER = 8, 16, 24
SIGN = np.uint64(1 << 63)
MARK = b"\xcd\x01"
NO_CREATION = np.iinfo("i8").min
"""Creation time of a row without one: older than every other."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Items of one field, of all sorts of length, behind the fixed part of a row."""

    field: int
    part: str  # "items" or "bytes" of the field, or the "lengths" of a list of strings
    dtype: np.dtype


class OtherFieldsError(Exception):
    """Some rows were packed from other fields: `fingerprints` tells which."""


class RowLayout:
    """The places of these fields: (name, Feast value type name) pairs.

    Raises InputError for a type that packed rows do not hold.
    """

    def __init__(self, fields: Iterable[tuple[str, str]]) -> None:
        self.fields = tuple(sorted((str(name), str(kind)) for name, kind in fields))
        for name, kind in self.fields:
            if kind not in KINDS:
                raise InputError(
                    f"feature {name} has type {kind}, which packed rows do not hold; they hold "
                    f"{', '.join(KINDS)}"
                )
        self.kinds = {name: KINDS[kind] for name, kind in self.fields}
        self.text = json.dumps(self.fields)
        digest = blake2b(self.text.encode(), digest_size=6).digest()
        self.word = int(np.frombuffer(MARK + digest, dtype="<i8")[0])
        self._lay_out()

    def _lay_out(self) -> None:
        streams: list[Stream] = []
        numbers: list[tuple[int, str, np.dtype]] = []
        for number, (name, kind) in enumerate(self.kinds.items()):
            if not kind.is_list and not kind.is_text:
                numbers.append((-kind.item.itemsize, name, kind.item))
            elif not kind.is_text:
                streams.append(Stream(field=number, part="items", dtype=kind.item))
            else:
                if kind.is_list:
                    streams.append(Stream(field=number, part="lengths", dtype=np.dtype("<u4")))
                streams.append(Stream(field=number, part="bytes", dtype=np.dtype("u1")))
        self.streams = sorted(streams, key=lambda s: (-s.dtype.itemsize, s.field))
        self.field_at = {name: number for number, name in enumerate(self.kinds)}
        self.streams_of = {
            name: [n for n, stream in enumerate(self.streams) if stream.field == number]
            for name, number in self.field_at.items()
        }
        numbers.sort()
        self.number_at: dict[str, int] = {}
        at = HEADER
        for minus_width, name, _ in numbers:
            if minus_width < -1:
                self.number_at[name] = at
                at -= minus_width
        self.counts_at = at
        at += 4 * len(self.streams)
        self.counts_end = at
        for minus_width, name, _ in numbers:
            if minus_width == -1:
                self.number_at[name] = at
                at += 1
        self.nulls_at = at
        self.fixed_bytes = _padded(at + (len(self.fields) + 7) // 8)

    def stream_starts(self, counts_NS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where each stream begins in its row, and the size of each row, in bytes."""
        widths = np.array([s.dtype.itemsize for s in self.streams], dtype="i8")
        bytes_NS = counts_NS.astype("i8") * widths
        ends_NS = self.fixed_bytes + np.cumsum(bytes_NS, axis=1)
        last_N = ends_NS[:, -1] if len(widths) else np.full(len(counts_NS), self.fixed_bytes)
        return ends_NS - bytes_NS, _padded(last_N)


def fingerprints(rows: Sequence[bytes]) -> np.ndarray:
    """The first eight bytes of each row as int64: equal to `RowLayout.word` of their fields."""
    if any(len(row) < HEADER for row in rows):
        raise damaged(f"fewer than {HEADER} bytes")
    return np.frombuffer(b"".join([row[:8] for row in rows]), dtype="<i8")


def row_times(rows: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Event and creation times of packed rows in microseconds, without unpacking them."""
    times = np.frombuffer(b"".join([row[EVENT_AT:HEADER] for row in rows]), dtype="u1")
    times = times.reshape(len(rows), 16)
    return times_us(times[:, :8]), times_us(times[:, 8:])


def times_us(bytes_N8: np.ndarray) -> np.ndarray:
    """Times as rows store them, (N, 8) bytes, to int64 microseconds."""
    return (bytes_N8.view(">u8")[:, 0].astype("u8") ^ SIGN).view("i8")


def ordered(times_us: np.ndarray) -> np.ndarray:
    """Times (N,) as rows store them, seen as the little-endian numbers that a row is made of."""
    turned = np.asarray(times_us, dtype="i8").view("u8") ^ SIGN
    return turned.byteswap().view("i8")


def damaged(what: str) -> ArtifactError:
    return ArtifactError(
        f"a packed row is damaged ({what}); drop the view from the online store and run "
        "`crescendo materialize` again"
    )


def _padded(size: Any) -> Any:
    return (size + 7) // 8 * 8
