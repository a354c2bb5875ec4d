"""Which rows of a table are about what is to be forgotten.

A table is recognised by its columns, wherever it lies: `user_id`; `event_id` alone; a rejected
row as JSON; lists of event ids. The map of users, which looks like that of tracks, is known by its
file's name. `Target.rows(table)` says which rows go; of the map the string goes and the number
stays taken, so that no one else gets it.
"""

import json
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo import schema
from ray_jobs.forget_ids import USERS_MAP

EVENT_ID = "event_id"
REJECTED_COLUMNS = ("reason", "row")
MAP_COLUMNS = ("source_id", "id")


@dataclass(frozen=True, kw_only=True)
class ForgottenEvent:
    """What is known of a single event that goes, to find the training rows that saw it."""

    event_id: int
    user_id: int
    track_id: int
    visible_us: int


@dataclass(frozen=True, kw_only=True)
class Target:
    """A user with all events, or single events (`user_id` is None)."""

    user_id: int | None = None
    source_id: str | None = None
    event_ids: frozenset[int] = frozenset()
    events: tuple[ForgottenEvent, ...] = field(default=())
    """Single events only."""

    def columns(self, file_name: str, names: list[str]) -> list[str]:
        """The columns that `rows` looks at, of a file with these; none: it cannot be concerned."""
        if self.user_id is not None:
            if list(names) == list(MAP_COLUMNS) and file_name == USERS_MAP:
                return list(MAP_COLUMNS)
            if schema.USER_ID in names:
                return [schema.USER_ID]
        if all(column in names for column in REJECTED_COLUMNS):
            return list(REJECTED_COLUMNS)
        wanted = [EVENT_ID] if EVENT_ID in names else []
        if self.user_id is None:
            history = (schema.SEQUENCE_EVENT_IDS, schema.SEQUENCE_TRACK_IDS)
            seen = [column for column in history if column in names]
            if seen and schema.USER_ID in names and schema.EVENT_TIMESTAMP in names:
                wanted += [schema.USER_ID, schema.EVENT_TIMESTAMP, seen[0]]
        return wanted

    def rows(self, table: pa.Table) -> np.ndarray:
        """(N,) bool: the rows to forget, of a table of `columns`."""
        names = table.column_names
        if names == list(MAP_COLUMNS):
            known = table["source_id"].is_valid().to_numpy()
            return known & (table["id"].to_numpy() == self.user_id)
        if self.user_id is not None and schema.USER_ID in names:
            column = table[schema.USER_ID]
            wanted = self.user_id if pa.types.is_integer(column.type) else self.source_id
            return pc.equal(column, wanted).fill_null(False).to_numpy()
        if names == list(REJECTED_COLUMNS):
            return np.array([self._of_source(row) for row in table["row"].to_pylist()], bool)
        found = np.zeros(len(table), bool)
        if EVENT_ID in names:
            ids = pa.array(sorted(self.event_ids), pa.int64())
            found |= pc.is_in(table[EVENT_ID], ids).to_numpy()
        if schema.USER_ID in names:
            found |= self._histories(table)
        return found

    def _histories(self, table: pa.Table) -> np.ndarray:
        """Rows whose sequence holds a forgotten event, or may: the same user, later, that track.

        A sequence of track ids alone does not say which listen brought a track in, so every row
        that could have seen the event goes.
        """
        lists = table.column_names[-1]
        element = "event_id" if lists == schema.SEQUENCE_EVENT_IDS else "track_id"
        users = table[schema.USER_ID].to_numpy()
        times_us = table[schema.EVENT_TIMESTAMP].cast(pa.int64()).fill_null(0).to_numpy()
        found = np.zeros(len(table), bool)
        for event in self.events:
            may = (users == event.user_id) & (times_us >= event.visible_us)
            wanted = getattr(event, element)
            for row in np.flatnonzero(may):
                found[row] |= wanted in (table[lists][row].as_py() or ())
        return found

    def _of_source(self, row: str) -> bool:
        """Whether a rejected row, the source's own columns as JSON, is about the target."""
        values = json.loads(row)
        if self.user_id is not None:
            return str(values.get(schema.USER_ID, "")) == (self.source_id or str(self.user_id))
        return str(values.get(EVENT_ID, "")) in {str(event_id) for event_id in self.event_ids}


def without(table: pa.Table, gone: np.ndarray) -> pa.Table:
    """The table less those rows; in the map of ids less their strings."""
    if table.column_names != list(MAP_COLUMNS):
        return table.filter(pa.array(~gone))
    nothing = pa.scalar(None, table.schema.field("source_id").type)
    source_ids = pc.if_else(pa.array(gone), nothing, table["source_id"])
    return table.set_column(0, table.schema.field("source_id"), source_ids)
