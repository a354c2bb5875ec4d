"""How a ranker does on parts of the test rows: cold and new items, cold users, history, popularity.

A part is told by what was known before the test: impressions of the track and of the user in the
training part, and the history at the request's moment.

Shape suffixes: N test rows.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo import schema
from models.ranking_metrics import auc, calibration, expected_calibration_error, gauc, logloss

COLD_BELOW = 30
"""A track with fewer training impressions is cold (paper section 2.1)."""
COLD_USER_BELOW = 5
"""A user with fewer training impressions is cold."""
HISTORY = (("0", 0, 0), ("1-4", 1, 4), ("5-19", 5, 19), ("20+", 20, None))
"""Name, least and most listens in the history that the ranker was given."""
DECILES = 10
CALIBRATION_BINS = 10

TRACK_IMPRESSIONS = "train_impressions"
USER_IMPRESSIONS = "user_train_impressions"
HISTORY_LENGTH = "history_length"
"""Columns of test scores that the slices are cut by."""


def slice_columns(rows: pa.Table, training_folder: Path) -> dict[str, np.ndarray]:
    """What of `rows`, a part of the training set, the slices need beside track and label."""
    lengths = pc.list_value_length(rows[schema.SEQUENCE_TRACK_IDS]).fill_null(0)
    return {
        HISTORY_LENGTH: lengths.to_numpy().astype(np.int64),
        USER_IMPRESSIONS: _user_impressions(rows[schema.USER_ID].to_numpy(), training_folder),
    }


def _user_impressions(users_N: np.ndarray, training_folder: Path) -> np.ndarray:
    """Training impressions of each row's user. One file's users in memory at a time."""
    users, row_N = np.unique(users_N, return_inverse=True)
    counts = np.zeros(len(users), dtype=np.int64)
    for path in sorted(training_folder.glob("train-*.parquet")):
        found = pq.read_table(path, columns=[schema.USER_ID])[schema.USER_ID].to_numpy()
        position = np.searchsorted(users, found)
        position[position == len(users)] = 0
        there = users[position] == found
        counts += np.bincount(position[there], minlength=len(users))
    return counts[row_N]


def slice_metrics(scored: pa.Table) -> dict[str, Any]:
    """The metrics of every slice of the test scores, by name; a slice without rows has `rows` 0.

    `popularity` are the deciles of the rows by the track's training impressions, the least played
    first; rows of equal impressions stay together, so there may be fewer than ten.
    """
    tracks_N = scored[TRACK_IMPRESSIONS].to_numpy()
    users_N = scored[USER_IMPRESSIONS].to_numpy()
    lengths_N = scored[HISTORY_LENGTH].to_numpy()
    edges = np.unique(np.quantile(tracks_N, np.arange(1, DECILES) / DECILES, method="lower"))
    # A row belongs to the first decile whose upper edge it does not exceed.
    decile_N = np.searchsorted(edges, tracks_N, side="left")
    popularity = []
    for decile in np.unique(decile_N):
        mask_N = decile_N == decile
        span = [int(tracks_N[mask_N].min()), int(tracks_N[mask_N].max())]
        popularity.append({"impressions": span} | _metrics(scored, mask_N))
    return {
        "cold_items": _metrics(scored, tracks_N < COLD_BELOW),
        "new_items": _metrics(scored, tracks_N == 0),
        "cold_users": _metrics(scored, users_N < COLD_USER_BELOW),
        "new_users": _metrics(scored, users_N == 0),
        "history": {
            name: _metrics(scored, _between(lengths_N, least, most))
            for name, least, most in HISTORY
        },
        "popularity": popularity,
    }


def _between(values_N: np.ndarray, least: int, most: int | None) -> np.ndarray:
    return (values_N >= least) & (values_N <= (np.inf if most is None else most))


def _metrics(scored: pa.Table, mask_N: np.ndarray) -> dict[str, Any]:
    """Rows, share of positives and metrics; a metric that the rows do not define is None."""
    if not mask_N.any():
        return {"rows": 0}
    truth, scores = scored["label"].to_numpy()[mask_N], scored["score"].to_numpy()[mask_N]
    users = scored[schema.USER_ID].to_numpy()[mask_N]
    bins = calibration(truth, scores, bins=CALIBRATION_BINS)
    return {
        "rows": len(truth),
        "positives": float(truth.mean()),
        "auc": or_none(auc(truth, scores)),
        "gauc": or_none(gauc(users, truth, scores).gauc),
        "logloss": logloss(truth, scores),
        "calibration_error": expected_calibration_error(bins),
    }


def or_none(metric: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(metric) else metric
