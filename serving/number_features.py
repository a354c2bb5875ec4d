"""The numbers that a release's ranker sees beside IDs, from the online store.

The user's come with the listens, from the request's one read. The tracks' counts are held for the
whole catalogue, like its codes: they change when a materialization ends, so a thread reads them
again every so often.

Shape suffixes: B candidates of all users, U users, I tracks of the catalogue, N numbers.
"""

import logging
import threading
import time
import weakref
from collections.abc import Sequence

import numpy as np

from feature_repo import schema
from feature_repo.item_table import read_counts_online
from feature_repo.store import open_store
from feature_repo.workspace import Workspace
from models.batch import find_rows
from models.number_rows import number_rows
from serving.user_rows import UserRow

REFRESH_S = 900
"""Track counts are at most so much older than what the online store holds."""

logger = logging.getLogger(__name__)


class NumberFeatures:
    """Numbers (B, N) of ranked candidates, `names` in the order of `RankerConfig.numbers`."""

    def __init__(self, workspace: Workspace, names: Sequence[str], track_ids_I: np.ndarray) -> None:
        self._names = names
        self._of_user = [name for name in names if name in schema.stats_columns("user")]
        of_track = [name for name in names if name in schema.stats_columns("track")]
        self._tracks = TrackCounts(workspace, track_ids_I, of_track) if of_track else None

    def read(
        self,
        users_U: Sequence[UserRow],
        rows_U: Sequence[int],
        tracks_B: np.ndarray,
        moment_us: int,
    ) -> np.ndarray:
        """Numbers (B, N) float32 at a moment, microseconds since 1970.

        The first rows_U[0] of the catalogue's tracks are candidates of the first user, and so on.
        """

        def of_rows(numbers_U: Sequence[int]) -> np.ndarray:
            return np.repeat(np.array(numbers_U, dtype=np.int64), rows_U)

        counts = {name: of_rows([user.counts[name] for user in users_U]) for name in self._of_user}
        if self._tracks is not None:
            counts |= self._tracks.read(tracks_B)
        return number_rows(
            self._names,
            counts,
            moments_us_B=np.full(len(tracks_B), moment_us),
            history_lengths_B=of_rows([len(user.track_ids_L) for user in users_U]),
            last_listens_us_B=of_rows([_last_listen_us(user) for user in users_U]),
        )


def _last_listen_us(user: UserRow) -> int:
    """0 where none is known: `number_rows` does not look at it then."""
    return int(user.listened_us_L[-1]) if len(user.listened_us_L) else 0


class TrackCounts:
    """`track_stats` of the whole catalogue, read again every REFRESH_S while this object lives."""

    def __init__(
        self, workspace: Workspace, track_ids_I: np.ndarray, columns: Sequence[str]
    ) -> None:
        # A store of its own: rankings read in another thread.
        self._store = open_store(workspace)
        self._track_ids_I, self._columns = track_ids_I, columns
        self.refresh()
        threading.Thread(
            target=_keep_fresh, args=(weakref.ref(self),), name="track counts", daemon=True
        ).start()

    def refresh(self) -> None:
        """Reads all counts; a request under way keeps those that it began with."""
        self._counts = read_counts_online(self._store, self._track_ids_I, self._columns)

    def read(self, tracks_B: np.ndarray) -> dict[str, np.ndarray]:
        """Counts by name, (B,), of tracks of the catalogue."""
        rows_B, _ = find_rows(self._track_ids_I, tracks_B)
        return {name: counts_I[rows_B] for name, counts_I in self._counts.items()}


def _keep_fresh(counts: weakref.ref[TrackCounts]) -> None:
    while True:
        time.sleep(REFRESH_S)
        held = counts()
        if held is None:
            return
        try:
            held.refresh()
        except Exception:
            # Whatever the store's driver raises: old counts are better than no answers.
            logger.exception("track counts could not be read again; the old ones are served")
        del held  # else it would live through the sleep
