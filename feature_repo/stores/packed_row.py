"""The bytes of packed rows: one value an entity and view, packed and unpacked many at a time.

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

Shape suffixes: N rows, N1 their boundaries, F fields, S streams, B bytes of the fixed part.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np

from feature_repo.errors import ArtifactError, InputError
from feature_repo.stores.packed_columns import KINDS, Column, boundaries
from feature_repo.stores.packed_unpacked import EVENT_AT, HEADER, SIGN, Unpacked, spans, times_us

BLOCK_BYTES = 1 << 20
"""Rows packed in one buffer: it stays in the cache, and its memory is used again."""
MARK = b"\xcd\x01"
NO_CREATION = np.iinfo("i8").min
"""Creation time of a row without one: older than every other."""


@dataclass(frozen=True, kw_only=True)
class _Stream:
    field: int
    part: str  # "items" or "bytes" of the field, or the "lengths" of a list of strings
    dtype: np.dtype


class OtherFieldsError(Exception):
    """Some rows were packed from other fields: `fingerprints` tells which."""


class RowCodec:
    """Packs and unpacks rows of these fields: (name, Feast value type name) pairs.

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
        streams: list[_Stream] = []
        numbers: list[tuple[int, str, np.dtype]] = []
        for number, (name, kind) in enumerate(self.kinds.items()):
            if not kind.is_list and not kind.is_text:
                numbers.append((-kind.item.itemsize, name, kind.item))
            elif not kind.is_text:
                streams.append(_Stream(field=number, part="items", dtype=kind.item))
            else:
                if kind.is_list:
                    streams.append(_Stream(field=number, part="lengths", dtype=np.dtype("<u4")))
                streams.append(_Stream(field=number, part="bytes", dtype=np.dtype("u1")))
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

    def pack(
        self, event_us_N: np.ndarray, created_us_N: np.ndarray, columns: Mapping[str, Column]
    ) -> list[bytes]:
        """Packed rows of N entities; `columns` has every field. Times: int64 microseconds."""
        n = len(event_us_N)
        fixed_NB = np.zeros((n, self.fixed_bytes), dtype="u1")
        words = fixed_NB.view("<i8")
        words[:, 0] = self.word
        words[:, 1] = _ordered(event_us_N)
        words[:, 2] = _ordered(created_us_N)
        for name, at in self.number_at.items():
            item = self.kinds[name].item
            slot = fixed_NB[:, at : at + item.itemsize]
            slot[:] = columns[name].values.astype(item).view("u1").reshape(n, item.itemsize)
        null_NF = np.stack([~columns[name].valid_N for name in self.kinds], axis=1)
        nulls = np.packbits(null_NF, axis=1, bitorder="little")
        fixed_NB[:, self.nulls_at : self.nulls_at + nulls.shape[1]] = nulls

        parts = [self._stream_of(stream, columns) for stream in self.streams]
        counts_NS = np.zeros((n, len(parts)), dtype="<u4")
        for number, (counts_N, _) in enumerate(parts):
            counts_NS[:, number] = counts_N
        fixed_NB[:, self.counts_at : self.counts_end] = counts_NS.view("u1").reshape(n, -1)
        return self._assemble(fixed_NB, counts_NS, [items for _, items in parts])

    def _stream_of(
        self, stream: _Stream, columns: Mapping[str, Column]
    ) -> tuple[np.ndarray, np.ndarray]:
        column = columns[self.fields[stream.field][0]]
        if not column.kind.is_list or stream.part == "items":
            return column.counts_N, column.values
        assert column.item_offsets is not None
        assert column.offsets_N1 is not None
        if stream.part == "lengths":
            return column.counts_N, np.diff(column.item_offsets)
        return np.diff(column.item_offsets[column.offsets_N1]), column.values

    def _assemble(
        self, fixed_NB: np.ndarray, counts_NS: np.ndarray, items: list[np.ndarray]
    ) -> list[bytes]:
        """Fixed parts and streams, each scattered to its place in one buffer, then cut."""
        starts_NS, sizes_N = self._stream_starts(counts_NS)
        firsts_N1S = np.zeros((len(counts_NS) + 1, counts_NS.shape[1]), dtype="i8")
        np.cumsum(counts_NS, axis=0, out=firsts_N1S[1:])
        rows: list[bytes] = []
        for start, end in _blocks(sizes_N):
            part = slice(start, end)
            cut = [
                items[n][first:last].astype(stream.dtype, copy=False)
                for n, (stream, first, last) in enumerate(
                    zip(self.streams, firsts_N1S[start], firsts_N1S[end], strict=True)
                )
            ]
            rows += self._assemble_block(
                fixed_NB[part], counts_NS[part], cut, starts_NS[part], sizes_N[part]
            )
        return rows

    def _assemble_block(
        self,
        fixed_NB: np.ndarray,
        counts_NS: np.ndarray,
        items: list[np.ndarray],
        starts_NS: np.ndarray,
        sizes_N: np.ndarray,
    ) -> list[bytes]:
        n = len(fixed_NB)
        rows_N1 = boundaries(sizes_N)
        out = np.zeros(int(rows_N1[-1]), dtype="u1")
        if (sizes_N == sizes_N[0]).all() and (counts_NS == counts_NS[0]).all():
            matrix = out.reshape(n, -1)
            matrix[:, : self.fixed_bytes] = fixed_NB
            for number, stream in enumerate(self.streams):
                at = int(starts_NS[0, number])
                size = int(counts_NS[0, number]) * stream.dtype.itemsize
                if size:
                    flat = np.ascontiguousarray(items[number]).view("u1")
                    matrix[:, at : at + size] = flat.reshape(n, -1)
        else:
            words = out.view("<i8")
            places = rows_N1[:-1, None] // 8 + np.arange(self.fixed_bytes // 8)
            words[places] = fixed_NB.view("<i8")
            for number, stream in enumerate(self.streams):
                first_N = (rows_N1[:-1] + starts_NS[:, number]) // stream.dtype.itemsize
                places = spans(first_N, counts_NS[:, number])
                out.view(stream.dtype)[places] = items[number]
        data = out.tobytes()
        return [data[a:b] for a, b in pairwise(rows_N1.tolist())]

    def _stream_starts(self, counts_NS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where each stream begins in its row, and the size of each row, in bytes."""
        widths = np.array([s.dtype.itemsize for s in self.streams], dtype="i8")
        bytes_NS = counts_NS.astype("i8") * widths
        ends_NS = self.fixed_bytes + np.cumsum(bytes_NS, axis=1)
        last_N = ends_NS[:, -1] if len(widths) else np.full(len(counts_NS), self.fixed_bytes)
        return ends_NS - bytes_NS, _padded(last_N)

    def unpack(self, rows: Sequence[bytes], joined: bytes | None = None) -> Unpacked:
        """N packed rows, whose features and times are then asked for. `joined`: rows, if joined.

        Raises OtherFieldsError where a row was packed from other fields, ArtifactError for a
        row that is cut or garbled.
        """
        joined = b"".join(rows) if joined is None else joined
        words = np.frombuffer(joined, dtype="<i8") if len(joined) % 8 == 0 else None
        sizes = set(map(len, rows))
        if words is None or any(size < HEADER or size % 8 for size in sizes):
            raise damaged(f"sizes of {sorted(sizes)[:3]} bytes, expected multiples of 8")
        if len(sizes) == 1:
            return self._unpack_matrix(joined, words.reshape(len(rows), -1))
        sizes_N = np.fromiter(map(len, rows), dtype="i8", count=len(rows))
        return self._unpack_ragged(joined, words, sizes_N)

    def _unpack_matrix(self, joined: bytes, words_NW: np.ndarray) -> Unpacked:
        """Rows of one size; where their counts are the same too, features are slices."""
        if (words_NW[:, 0] != self.word).any():
            raise OtherFieldsError
        bytes_NB = np.frombuffer(joined, dtype="u1").reshape(len(words_NW), -1)
        if bytes_NB.shape[1] < self.fixed_bytes:
            raise damaged(f"{bytes_NB.shape[1]} bytes, expected {self.fixed_bytes} or more")
        counts_NC = bytes_NB[:, self.counts_at : self.counts_end]
        if (counts_NC != counts_NC[0]).any():
            sizes_N = np.full(len(bytes_NB), bytes_NB.shape[1])
            return self._unpack_ragged(joined, words_NW.reshape(-1), sizes_N)
        counts_S = np.ascontiguousarray(counts_NC[0]).view("<u4")
        starts_1S, size_1 = self._stream_starts(counts_S[None])
        if int(size_1[0]) != bytes_NB.shape[1]:
            raise damaged("a size that differs from what its counts say")
        return Unpacked(
            self, joined, bytes_NB[:, : self.fixed_bytes], counts_S.tolist(), starts_1S[0].tolist()
        )

    def _unpack_ragged(self, joined: bytes, words: np.ndarray, sizes_N: np.ndarray) -> Unpacked:
        """Rows of any sizes: fixed parts gathered into a matrix, items found by index."""
        rows_N1 = boundaries(sizes_N)
        first_N = rows_N1[:-1]
        if (words[first_N // 8] != self.word).any():
            raise OtherFieldsError
        if (sizes_N < self.fixed_bytes).any():
            raise damaged(f"{int(sizes_N.min())} bytes, expected {self.fixed_bytes} or more")
        fixed_NB = words[first_N[:, None] // 8 + np.arange(self.fixed_bytes // 8)].view("u1")
        counts = np.ascontiguousarray(fixed_NB[:, self.counts_at : self.counts_end])
        counts_NS = counts.view("<u4")
        starts_NS, expected_N = self._stream_starts(counts_NS)
        if (expected_N != sizes_N).any():
            raise damaged("a size that differs from what its counts say")
        return Unpacked(self, joined, fixed_NB, counts_NS, starts_NS + first_N[:, None])


def fingerprints(rows: Sequence[bytes]) -> np.ndarray:
    """The first eight bytes of each row as int64: equal to `RowCodec.word` of their fields."""
    if any(len(row) < HEADER for row in rows):
        raise damaged(f"fewer than {HEADER} bytes")
    return np.frombuffer(b"".join([row[:8] for row in rows]), dtype="<i8")


def row_times(rows: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Event and creation times of packed rows in microseconds, without unpacking them."""
    times = np.frombuffer(b"".join([row[EVENT_AT:HEADER] for row in rows]), dtype="u1")
    times = times.reshape(len(rows), 16)
    return times_us(times[:, :8]), times_us(times[:, 8:])


def _blocks(sizes_N: np.ndarray) -> Iterator[tuple[int, int]]:
    """Runs of rows (first, end) of about BLOCK_BYTES, at least one row each."""
    ends_N = np.cumsum(sizes_N)
    start = 0
    while start < len(ends_N):
        begin = int(ends_N[start] - sizes_N[start])
        end = max(start + 1, int(np.searchsorted(ends_N, begin + BLOCK_BYTES, side="right")))
        yield start, end
        start = end


def _ordered(times_us: np.ndarray) -> np.ndarray:
    """Big endian with the sign bit turned, seen as the little-endian number that is stored."""
    turned = np.asarray(times_us, dtype="i8").view("u8") ^ SIGN
    return turned.byteswap().view("i8")


def _padded(size: Any) -> Any:
    return (size + 7) // 8 * 8


def damaged(what: str) -> ArtifactError:
    return ArtifactError(
        f"a packed row is damaged ({what}); drop the view from the online store and run "
        "`crescendo materialize` again"
    )
