"""Rows of a sequence view: windows of listens to packed rows, and merged with rows that are there.

Shape suffixes: U users, N1 boundaries, 4 the columns of a listen, E listens of all users.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from feature_repo import schema
from feature_repo.errors import InputError
from feature_repo.stores.packed_columns import KINDS, Column, boundaries
from feature_repo.stores.packed_row import RowCodec
from feature_repo.stores.sequence_merge import Windows, merge, windows_of

_LIST = KINDS["INT64_LIST"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceRows:
    """One row to be of each of U users: times in microseconds, windows of `length` listens."""

    codec: RowCodec
    length: int
    event_us_U: np.ndarray
    created_us_U: np.ndarray
    windows: Windows

    def packed(self) -> list[bytes]:
        return self.codec.pack(self.event_us_U, self.created_us_U, _columns(self.windows))

    def merged_into(self, stored: Sequence[bytes | None]) -> list[bytes]:
        """The packed rows that each of the U users has after the merge with what is stored.

        A row that the merge leaves as it is comes back as equal bytes.
        """
        fresh = self.packed()
        both = [n for n, old in enumerate(stored) if old is not None and old != fresh[n]]
        if not both:
            return fresh
        which = np.array(both)
        old_rows = [old for n in both if (old := stored[n]) is not None]
        unpacked = self.codec.unpack(old_rows)
        columns = [unpacked.column(name) for name in schema.SEQUENCE_COLUMNS]
        there = Windows(
            counts_U=columns[0].counts_N,
            listens_4E=np.stack([column.values for column in columns]),
        )
        united = SequenceRows(
            codec=self.codec,
            length=self.length,
            event_us_U=np.maximum(unpacked.event_us(), self.event_us_U[which]),
            created_us_U=np.maximum(unpacked.created_us(), self.created_us_U[which]),
            windows=merge(there, self.windows.take(which), self.length),
        )
        for n, row in zip(both, united.packed(), strict=True):
            fresh[n] = row
        return fresh

    def take(self, users: np.ndarray) -> "SequenceRows":
        """The rows of these users (indices)."""
        return SequenceRows(
            codec=self.codec,
            length=self.length,
            event_us_U=self.event_us_U[users],
            created_us_U=self.created_us_U[users],
            windows=self.windows.take(users),
        )


def sequence_rows(
    codec: RowCodec,
    length: int,
    user_N: np.ndarray,
    users: int,
    event_us_N: np.ndarray,
    created_us_N: np.ndarray,
    columns: Mapping[str, Column],
) -> SequenceRows:
    """N given rows, row n of user user_N[n], as one row a user.

    Raises InputError for null lists and for lists of one row that differ in length.
    """
    first = columns[schema.SEQUENCE_COLUMNS[0]]
    for name in schema.SEQUENCE_COLUMNS:
        column = columns[name]
        if not column.valid_N.all():
            raise InputError(f"{name}: {(~column.valid_N).sum()} null lists in a sequence view")
        if (column.counts_N != first.counts_N).any():
            raise InputError(
                f"{name} and {schema.SEQUENCE_COLUMNS[0]} differ in length; the lists of a "
                "sequence row are parallel"
            )
    listens_4E = np.stack([columns[name].values for name in schema.SEQUENCE_COLUMNS])
    event_us_U = np.full(users, np.iinfo("i8").min)
    np.maximum.at(event_us_U, user_N, event_us_N)
    created_us_U = np.full(users, np.iinfo("i8").min)
    np.maximum.at(created_us_U, user_N, created_us_N)
    return SequenceRows(
        codec=codec,
        length=length,
        event_us_U=event_us_U,
        created_us_U=created_us_U,
        windows=windows_of(np.repeat(user_N, first.counts_N), listens_4E, users, length),
    )


def _columns(windows: Windows) -> dict[str, Column]:
    offsets_N1 = boundaries(windows.counts_U)
    valid_U = np.ones(len(windows.counts_U), dtype=bool)
    return {
        name: Column(
            kind=_LIST, valid_N=valid_U, values=windows.listens_4E[row], offsets_N1=offsets_N1
        )
        for row, name in enumerate(schema.SEQUENCE_COLUMNS)
    }
