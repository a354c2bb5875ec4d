"""What the ranker reads of a user on every request; a sample of it is kept for the audit."""

import time
from collections.abc import Sequence

import numpy as np
from feast import FeatureStore

from feature_repo import schema
from feature_repo.online import OnlineReader, packed_store
from feature_repo.read_log import ReadLog, ReadLogOptions
from feature_repo.store import read_online
from feature_repo.stores.packed_store import PackedOnlineStore
from feature_repo.workspace import Workspace

LISTENS = f"{schema.USER_SEQUENCE}:{schema.SEQUENCE_TRACK_IDS}"


class UserRows:
    """Reads the features of one release's users.

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

    def listens(self, user_id: int) -> np.ndarray | None:
        """The user's last listens, newest last: int64 track ids; None if there are none."""
        if self._reader is None:
            row = read_online(self._store, schema.USER_ID, [user_id], self._features)
            listens = row[schema.SEQUENCE_TRACK_IDS][0]
            # Feast's Redis store says of an absent user that the value is an empty list.
            return np.array(listens, dtype=np.int64) if listens else None
        columns = self._reader.read(np.array([user_id]))
        if self.read_log is not None:
            self.read_log.record(columns, time.time_ns() // 1000)
        track_ids = columns[LISTENS].values
        return track_ids if len(track_ids) else None
