"""What the ranker reads of a user on every request; a sample of it is kept for the audit.

    rows = UserRows(workspace, store, ["user_sequence:seq_track_ids"], logged_share=0.01)
    user, other = rows.read([7, 8])
    user.track_ids_L

The candidates of a retriever model are one view more in the same round trip.

Writes `<workspace>/served_reads/user_sequence/` (`feature_repo.read_log`). Counts are not kept:
the row of a day is there some time after its midnight, and of the reads in between the audit would
say that they are unequal.

Shape suffixes: L listens of one user, N users.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from feast import FeatureStore

from feature_repo import schema
from feature_repo.online import OnlineReader, packed_store
from feature_repo.read_log import ReadLog, ReadLogOptions
from feature_repo.store import read_online
from feature_repo.stores.packed_columns import Column
from feature_repo.stores.packed_store import PackedOnlineStore
from feature_repo.workspace import Workspace
from serving.retriever_choice import CANDIDATES

FEW = 4
"""Users whose rows are read one by one: most often it is one user."""
LISTS = (*schema.SEQUENCE_COLUMNS, schema.CANDIDATE_TRACK_IDS)


@dataclass(frozen=True, kw_only=True, eq=False)
class UserRow:
    """What one read found of a user. Nothing known of a user is a row like any other."""

    track_ids_L: np.ndarray
    """int64: the last listens, newest last."""
    listened_us_L: np.ndarray
    """int64: when they were, microseconds since 1970; (0,) where the release does not read it."""
    counts: Mapping[str, int]
    """Columns of `user_stats`, by name; 0 without a row: nothing happened."""
    newest_us: int
    """When the newest listen in the row was, microseconds since 1970; 0 where none is known, or
    where the store does not say (only the packed stores do)."""
    expected_N: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """int64: tracks that `crescendo score-users` brought online for the user, best first; (0,)
    where there are none, or where the release does not read them."""
    expected_us: int = 0
    """When they were scored, microseconds since 1970; 0 where there are none."""


def made_up_user(history: Sequence[int], moment_us: int) -> UserRow:
    """The row of somebody who has listened to these tracks just now, newest last.

    Nobody has counts of the days before: those are 0. Without a history it is the row of every
    user of whom nothing is known.
    """
    return UserRow(
        track_ids_L=np.array(history, dtype=np.int64),
        listened_us_L=np.full(len(history), moment_us, dtype=np.int64),
        counts=dict.fromkeys(schema.stats_columns("user"), 0),
        newest_us=moment_us if len(history) else 0,
    )


class UserRows:
    """Reads the features of one release's users.

    `features`: `view:feature` of `user_sequence`, its track ids among them, of `user_stats`, and of
    one view of candidates (CANDIDATES), if any.
    `logged_share` is the share of users whose reads are kept (0: none). Only the packed stores
    say when a row was written, so with another one it has to be 0 (InputError).
    """

    def __init__(
        self,
        workspace: Workspace,
        store: FeatureStore,
        features: Sequence[str],
        logged_share: float,
    ) -> None:
        self._store, self._features = store, features
        self._reader: OnlineReader | None = None
        self.read_log: ReadLog | None = None
        if logged_share:
            packed_store(store)  # refuses what cannot be logged
            options = ReadLogOptions(share=logged_share)
            self.read_log = ReadLog(workspace, schema.USER_SEQUENCE, schema.USER_ID, options)
        if isinstance(store._get_provider().online_store, PackedOnlineStore):
            self._reader = OnlineReader(store, features)

    def read(self, user_ids: Sequence[int]) -> list[UserRow]:
        """The rows of these users (one or more), in their order, from one round trip."""
        newest_us: Sequence[int] = [0] * len(user_ids)
        if self._reader is None:
            columns = self._read_stock(user_ids)
        else:
            columns, newest_us = self._read_packed(self._reader, np.array(user_ids))
        track_ids = columns[schema.SEQUENCE_TRACK_IDS]
        listened_us = columns.get(schema.SEQUENCE_TIMESTAMPS, [()] * len(user_ids))
        counted = [name for name in columns if name not in (*LISTS, *CANDIDATES)]
        expected = columns.get(schema.CANDIDATE_TRACK_IDS, [()] * len(user_ids))
        expected_us = columns.get(schema.CANDIDATES_MADE_AT, [0] * len(user_ids))
        return [
            UserRow(
                track_ids_L=np.asarray(track_ids[n], dtype=np.int64),
                listened_us_L=np.asarray(listened_us[n], dtype=np.int64),
                counts={name: columns[name][n] for name in counted},
                newest_us=newest_us[n],
                expected_N=np.asarray(expected[n], dtype=np.int64),
                expected_us=expected_us[n],
            )
            for n in range(len(user_ids))
        ]

    def _read_packed(
        self, reader: OnlineReader, ids_N: np.ndarray
    ) -> tuple[dict[str, Sequence[Any]], Sequence[int]]:
        if self.read_log is None and len(ids_N) <= FEW:
            views = reader.read_values(ids_N)
            values: dict[str, Sequence[Any]] = {}
            for feature in self._features:
                view, name = feature.split(":")
                nothing = () if name in LISTS else 0
                values[name] = [value or nothing for value in views[view].values[name]]
            return values, views[schema.USER_SEQUENCE].event_us
        columns = reader.read(ids_N)
        if self.read_log is not None:
            self.read_log.record(columns, time.time_ns() // 1000)
        read = {_column(name): _each(columns[name]) for name in self._features}
        return read, columns.event_us[schema.USER_SEQUENCE].tolist()

    def _read_stock(self, user_ids: Sequence[int]) -> dict[str, Sequence[Any]]:
        rows = read_online(self._store, schema.USER_ID, user_ids, self._features)
        found: dict[str, Sequence[Any]] = {}
        for name in map(_column, self._features):
            # None, except that Feast's Redis store has an empty list of an absent user.
            nothing = () if name in LISTS else 0
            found[name] = [value or nothing for value in rows[name]]
        return found


def _column(feature: str) -> str:
    return feature.split(":")[1]


def _each(column: Column) -> Sequence[Any]:
    """A number or a list of numbers a user; 0 or an empty list where there is none."""
    if column.offsets_N1 is None:
        return column.values.tolist()
    return [column.values[start:end] for start, end in pairwise(column.offsets_N1.tolist())]
