"""Packed rows (`packed_layout.py`), packed and unpacked many at a time.

Shape suffixes: N rows, N1 their boundaries, F fields, S streams, B bytes of the fixed part.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from feature_repo.stores.packed_columns import Column, boundaries
from feature_repo.stores.packed_layout import (
    HEADER,
    OtherFieldsError,
    RowLayout,
    Stream,
    damaged,
    ordered,
)
from feature_repo.stores.packed_unpacked import Unpacked, spans

BLOCK_BYTES = 1 << 20
"""Rows packed in one buffer: it stays in the cache, and its memory is used again."""


class RowCodec:
    """Packs and unpacks rows of these fields: (name, Feast value type name) pairs.

    Raises InputError for a type that packed rows do not hold.
    """

    def __init__(self, fields: Iterable[tuple[str, str]]) -> None:
        self.layout = RowLayout(fields)
        self.fields, self.kinds = self.layout.fields, self.layout.kinds

    def pack(
        self, event_us_N: np.ndarray, created_us_N: np.ndarray, columns: Mapping[str, Column]
    ) -> list[bytes]:
        """Packed rows of N entities; `columns` has every field. Times: int64 microseconds."""
        layout = self.layout
        n = len(event_us_N)
        fixed_NB = np.zeros((n, layout.fixed_bytes), dtype="u1")
        words = fixed_NB.view("<i8")
        words[:, 0] = layout.word
        words[:, 1] = ordered(event_us_N)
        words[:, 2] = ordered(created_us_N)
        for name, at in layout.number_at.items():
            item = self.kinds[name].item
            slot = fixed_NB[:, at : at + item.itemsize]
            slot[:] = columns[name].values.astype(item).view("u1").reshape(n, item.itemsize)
        null_NF = np.stack([~columns[name].valid_N for name in self.kinds], axis=1)
        nulls = np.packbits(null_NF, axis=1, bitorder="little")
        fixed_NB[:, layout.nulls_at : layout.nulls_at + nulls.shape[1]] = nulls

        parts = [self._stream_of(stream, columns) for stream in layout.streams]
        counts_NS = np.zeros((n, len(parts)), dtype="<u4")
        for number, (counts_N, _) in enumerate(parts):
            counts_NS[:, number] = counts_N
        fixed_NB[:, layout.counts_at : layout.counts_end] = counts_NS.view("u1").reshape(n, -1)
        return self._assemble(fixed_NB, counts_NS, [items for _, items in parts])

    def _stream_of(
        self, stream: Stream, columns: Mapping[str, Column]
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
        layout = self.layout
        starts_NS, sizes_N = layout.stream_starts(counts_NS)
        firsts_N1S = np.zeros((len(counts_NS) + 1, counts_NS.shape[1]), dtype="i8")
        np.cumsum(counts_NS, axis=0, out=firsts_N1S[1:])
        rows: list[bytes] = []
        for start, end in _blocks(sizes_N):
            part = slice(start, end)
            cut = [
                items[n][first:last].astype(stream.dtype, copy=False)
                for n, (stream, first, last) in enumerate(
                    zip(layout.streams, firsts_N1S[start], firsts_N1S[end], strict=True)
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
        layout = self.layout
        n = len(fixed_NB)
        rows_N1 = boundaries(sizes_N)
        out = np.zeros(int(rows_N1[-1]), dtype="u1")
        if (sizes_N == sizes_N[0]).all() and (counts_NS == counts_NS[0]).all():
            matrix = out.reshape(n, -1)
            matrix[:, : layout.fixed_bytes] = fixed_NB
            for number, stream in enumerate(layout.streams):
                at = int(starts_NS[0, number])
                size = int(counts_NS[0, number]) * stream.dtype.itemsize
                if size:
                    flat = np.ascontiguousarray(items[number]).view("u1")
                    matrix[:, at : at + size] = flat.reshape(n, -1)
        else:
            words = out.view("<i8")
            places = rows_N1[:-1, None] // 8 + np.arange(layout.fixed_bytes // 8)
            words[places] = fixed_NB.view("<i8")
            for number, stream in enumerate(layout.streams):
                first_N = (rows_N1[:-1] + starts_NS[:, number]) // stream.dtype.itemsize
                places = spans(first_N, counts_NS[:, number])
                out.view(stream.dtype)[places] = items[number]
        data = out.tobytes()
        return [data[a:b] for a, b in pairwise(rows_N1.tolist())]

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
        layout = self.layout
        if (words_NW[:, 0] != layout.word).any():
            raise OtherFieldsError
        bytes_NB = np.frombuffer(joined, dtype="u1").reshape(len(words_NW), -1)
        if bytes_NB.shape[1] < layout.fixed_bytes:
            raise damaged(f"{bytes_NB.shape[1]} bytes, expected {layout.fixed_bytes} or more")
        counts_NC = bytes_NB[:, layout.counts_at : layout.counts_end]
        if (counts_NC != counts_NC[0]).any():
            sizes_N = np.full(len(bytes_NB), bytes_NB.shape[1])
            return self._unpack_ragged(joined, words_NW.reshape(-1), sizes_N)
        counts_S = np.ascontiguousarray(counts_NC[0]).view("<u4")
        starts_1S, size_1 = layout.stream_starts(counts_S[None])
        if int(size_1[0]) != bytes_NB.shape[1]:
            raise damaged("a size that differs from what its counts say")
        return Unpacked(
            layout,
            joined,
            bytes_NB[:, : layout.fixed_bytes],
            counts_S.tolist(),
            starts_1S[0].tolist(),
        )

    def _unpack_ragged(self, joined: bytes, words: np.ndarray, sizes_N: np.ndarray) -> Unpacked:
        """Rows of any sizes: fixed parts gathered into a matrix, items found by index."""
        layout = self.layout
        rows_N1 = boundaries(sizes_N)
        first_N = rows_N1[:-1]
        if (words[first_N // 8] != layout.word).any():
            raise OtherFieldsError
        if (sizes_N < layout.fixed_bytes).any():
            raise damaged(f"{int(sizes_N.min())} bytes, expected {layout.fixed_bytes} or more")
        fixed_NB = words[first_N[:, None] // 8 + np.arange(layout.fixed_bytes // 8)].view("u1")
        counts = np.ascontiguousarray(fixed_NB[:, layout.counts_at : layout.counts_end])
        counts_NS = counts.view("<u4")
        starts_NS, expected_N = layout.stream_starts(counts_NS)
        if (expected_N != sizes_N).any():
            raise damaged("a size that differs from what its counts say")
        return Unpacked(layout, joined, fixed_NB, counts_NS, starts_NS + first_N[:, None])


def _blocks(sizes_N: np.ndarray) -> Iterator[tuple[int, int]]:
    """Runs of rows (first, end) of about BLOCK_BYTES, at least one row each."""
    ends_N = np.cumsum(sizes_N)
    start = 0
    while start < len(ends_N):
        begin = int(ends_N[start] - sizes_N[start])
        end = max(start + 1, int(np.searchsorted(ends_N, begin + BLOCK_BYTES, side="right")))
        yield start, end
        start = end
