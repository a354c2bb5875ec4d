"""What retrieval knows of the tracks of a generation beside their IDs and vectors.

Artists and release dates are those of `tables/tracks`, plays those of `track_stats` online. Where
nobody has played anything for four weeks, as in a log that ended long ago, the impressions that
the model was trained on order the tracks.

Shape suffixes: I tracks of the item table, N tracks of some order.
"""

import logging
import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
from safetensors.numpy import load_file

from feature_repo import schema
from feature_repo.artifacts import parquet_files
from feature_repo.workspace import Workspace
from models.batch import Vocabulary, find_rows
from serving.releases import Release
from serving.retrieval.diversity import UNKNOWN

PLAYS = tuple(f"track_plays_{days}d" for days in schema.STATS_WINDOWS_DAYS)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrackFacts:
    """Aligned with the rows of an item table."""

    listed_I: np.ndarray
    """bool: in the catalogue today; a generation keeps the IDs of tracks that have left it."""
    artist_I: np.ndarray
    """int32: equal for tracks of one artist, UNKNOWN without one."""
    popular_N: np.ndarray
    """Rows of listed tracks that anybody played, the most popular first."""
    popularity_I: np.ndarray
    """Place of a track in the order of popularity, that of tracks nobody played included."""
    newest_N: np.ndarray
    """Rows of listed tracks that are released, the newest first."""

    @classmethod
    def read(cls, workspace: Workspace, release: Release, track_ids_I: np.ndarray) -> "TrackFacts":
        """Without a table of tracks, every track is listed, and none has an artist or a date."""
        listed_I = np.ones(len(track_ids_I), dtype=bool)
        artist_I = np.full(len(track_ids_I), UNKNOWN, dtype=np.int32)
        released_us_I = np.full(len(track_ids_I), np.iinfo(np.int64).max)
        now_us = time.time_ns() // 1000
        if not len(track_ids_I):
            return cls.of(listed_I, artist_I, released_us_I, [released_us_I], now_us)
        if parquet_files(workspace.tracks):
            rows_N, artist_N, released_us_N = _read_tracks(workspace, track_ids_I)
            listed_I[:] = False
            listed_I[rows_N] = True
            artist_I[rows_N], released_us_I[rows_N] = artist_N, released_us_N
        else:
            logger.warning(
                "%s holds no table: no artists, no new releases; run `crescendo ingest`",
                workspace.tracks,
            )
        counts = read_plays(workspace, release, track_ids_I)
        return cls.of(listed_I, artist_I, released_us_I, counts, now_us)

    @classmethod
    def of(
        cls,
        listed_I: np.ndarray,
        artist_I: np.ndarray,
        released_us_I: np.ndarray,
        counts: list[np.ndarray],
        now_us: int,
    ) -> "TrackFacts":
        """`released_us_I`: microseconds since 1970, those of no date after `now_us`.

        `counts` (I,), 0 and more: the first decides what is popular, the next among equals, ...
        """
        order_I = np.lexsort([-count_I for count_I in reversed(counts)])
        popularity_I = np.empty(len(order_I), dtype=np.int64)
        popularity_I[order_I] = np.arange(len(order_I))
        played_I = np.logical_or.reduce([count_I > 0 for count_I in counts]) & listed_I
        released_N = np.flatnonzero((released_us_I <= now_us) & listed_I)
        return cls(
            listed_I=listed_I,
            artist_I=artist_I,
            popular_N=order_I[played_I[order_I]],
            popularity_I=popularity_I,
            newest_N=released_N[np.argsort(-released_us_I[released_N], kind="stable")],
        )


def read_plays(workspace: Workspace, release: Release, track_ids_I: np.ndarray) -> list[np.ndarray]:
    """Plays of the last days, of the last weeks, and training impressions; (I,) each."""
    from feature_repo.item_table import read_counts_online
    from feature_repo.store import open_store

    # A store of its own: rankings read in another thread.
    online = read_counts_online(open_store(workspace), track_ids_I, PLAYS)
    trained = load_file(workspace.models / release.model_id / "vocabulary.safetensors")
    vocabulary = Vocabulary(
        track_ids_I=trained["track_ids"], train_counts_I=trained["train_counts"]
    )
    return [*(online[name] for name in PLAYS), vocabulary.train_counts(track_ids_I)]


def _read_tracks(
    workspace: Workspace, track_ids_I: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the item table that the table of tracks holds; their artists and release times."""
    names = [schema.TRACK_ID, "artist", "released_at"]
    tracks = pyarrow.dataset.dataset(workspace.tracks, format="parquet").to_table(columns=names)
    artist = pc.dictionary_encode(tracks["artist"].combine_chunks()).indices
    released = tracks["released_at"].cast(schema.TIMESTAMP).cast(pa.int64())
    rows_N, known_N = find_rows(track_ids_I, tracks[schema.TRACK_ID].to_numpy())
    artist_N = artist.fill_null(UNKNOWN).to_numpy(zero_copy_only=False)
    never = np.iinfo(np.int64).max
    return rows_N[known_N], artist_N[known_N], released.fill_null(never).to_numpy()[known_N]
