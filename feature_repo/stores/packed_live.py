"""A few listens into a sequence view, user by user: what a live event costs, without arrays.

`packed_sequences` merges whole columns: its arrays pay from some hundred users on, and take
milliseconds for the first. Here a row is taken apart, merged and packed again in plain Python, in
some ten microseconds a user. Both make the same bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

import numpy as np
from feast import RepoConfig

from feature_repo import schema
from feature_repo.errors import InputError
from feature_repo.stores.packed_layout import EVENT_AT, NO_CREATION, damaged
from feature_repo.stores.packed_store import PackedOnlineStore
from feature_repo.stores.packed_view import PackedView

_TURNED = 1 << 63
"""Added to a time, it turns the sign bit: see packed_layout."""
_TIMES = Struct(">QQ")


class Listen(NamedTuple):
    """One listen. Listens compare as a sequence is ordered; and of two with one event id, the
    greater stays (see sequence_merge)."""

    timestamp_us: int
    event_id: int
    track_id: int
    action: int


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """New listens of one user, any order, and the row time (microseconds) of the latest one."""

    event_us: int
    listens: Sequence[Listen]


def merge_listens(
    online: PackedOnlineStore,
    config: RepoConfig,
    rows: "ListenRows",
    arrivals: Mapping[int, Arrivals],
) -> None:
    """Merges the users' listens into their rows, as `write_table` does with the same listens."""
    users = list(arrivals)

    def change(which: np.ndarray, stored: list[bytes | None]) -> list[bytes]:
        return [
            rows.merged(old, arrivals[users[place]])
            for place, old in zip(which.tolist(), stored, strict=True)
        ]

    online.change_rows(config, rows.view, np.array(users, dtype="i8"), change)


class ListenRows:
    """Packed rows of one sequence view (InputError for another), taken apart and made."""

    def __init__(self, view: PackedView) -> None:
        if view.length is None:
            raise InputError(
                f"view {view.name} has no tag {schema.SEQUENCE_LENGTH_TAG}, so its rows are not "
                "merged"
            )
        self.view = view
        self._length = view.length
        self._codec = view.codec
        self._layout = layout = view.codec.layout
        names = [layout.fields[stream.field][0] for stream in layout.streams]
        order = [
            schema.SEQUENCE_TIMESTAMPS,
            schema.SEQUENCE_EVENT_IDS,
            schema.SEQUENCE_TRACK_IDS,
            schema.SEQUENCE_ACTIONS,
        ]
        self._stream_of = [names.index(name) for name in order]
        """Which stream of a row has each field of a Listen, and the other way round."""
        self._field_of = [order.index(name) for name in names]
        self._mark = layout.word.to_bytes(8, "little", signed=True)
        self._counts = Struct("<4I")
        self._counts_at = layout.counts_at
        self._padding = bytes(layout.fixed_bytes - layout.counts_end)
        self._items: dict[int, Struct] = {}

    def merged(self, stored: bytes | None, arrivals: Arrivals) -> bytes:
        """The row after the merge; equal bytes where it changes nothing."""
        by_event: dict[int, Listen] = {}
        event_us, created_us = arrivals.event_us, NO_CREATION
        if stored is not None:
            stored_us, created_us, listens = self.unpack(stored)
            event_us = max(event_us, stored_us)
            by_event = {listen.event_id: listen for listen in listens}
        for listen in arrivals.listens:
            known = by_event.get(listen.event_id)
            if known is None or listen > known:
                by_event[listen.event_id] = listen
        # window = lastN(stored u arrivals) by (timestamp, event id)
        return self.pack(event_us, created_us, sorted(by_event.values())[-self._length :])

    def pack(self, event_us: int, created_us: int, listens: Sequence[Listen]) -> bytes:
        """The row of these listens, which are in order."""
        columns = list(zip(*listens, strict=True))
        return b"".join(
            [
                self._mark,
                _TIMES.pack(event_us + _TURNED, created_us + _TURNED),
                self._counts.pack(*[len(listens)] * 4),
                self._padding,
                self._struct(len(listens)).pack(
                    *(item for field in self._field_of for item in columns[field])
                ),
            ]
        )

    def unpack(self, row: bytes) -> tuple[int, int, list[Listen]]:
        """Event time, creation time (microseconds), and the listens.

        Raises what `RowCodec.unpack` raises for a row of other fields or a damaged one.
        """
        size = len(row) - self._layout.fixed_bytes
        count = max(size, 0) // 32
        counts = row[self._counts_at : self._layout.counts_end]
        if (
            size != 32 * count
            or not row.startswith(self._mark)
            or counts != self._counts.pack(*[count] * 4)
        ):
            self._codec.unpack([row])  # says what is wrong with it
            raise damaged("lists of different lengths")
        items = self._struct(count).unpack_from(row, self._layout.fixed_bytes)
        columns = [items[count * stream : count * (stream + 1)] for stream in self._stream_of]
        event_us, created_us = _TIMES.unpack_from(row, EVENT_AT)
        listens = list(map(Listen._make, zip(*columns, strict=True)))
        return event_us - _TURNED, created_us - _TURNED, listens

    def _struct(self, count: int) -> Struct:
        """Four streams of `count` int64."""
        known = self._items.get(count)
        if known is None:
            known = self._items[count] = Struct(f"<{4 * count}q")
        return known
