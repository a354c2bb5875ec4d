"""Slices of the test rows against pandas and scikit-learn on the rows themselves."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from feature_repo import schema
from ray_jobs.evaluate import score_metrics
from ray_jobs.slices import slice_columns, slice_metrics

ROWS = 3000


@pytest.fixture(scope="module")
def frame():
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, ROWS)
    return pd.DataFrame(
        {
            "user_id": random.integers(0, 60, ROWS),
            "label": labels,
            "score": np.clip(labels * 0.2 + random.random(ROWS) * 0.8, 0, 1).astype(np.float32),
            "train_impressions": random.geometric(0.01, ROWS) - 1,
            "user_train_impressions": random.integers(0, 12, ROWS),
            "history_length": random.integers(0, 40, ROWS),
        }
    )


def table(frame):
    return pa.Table.from_pandas(frame, preserve_index=False)


def expected(part):
    users = [g for _, g in part.groupby("user_id") if g.label.nunique() == 2]
    aucs = [roc_auc_score(g.label, g.score) for g in users]
    bins = part.assign(bin=np.minimum((part.score.astype(float) * 10).astype(int), 9))
    gaps = bins.groupby("bin").apply(
        lambda g: len(g) * abs(g.score.astype(float).mean() - g.label.mean()), include_groups=False
    )
    return {
        "rows": len(part),
        "positives": part.label.mean(),
        "auc": roc_auc_score(part.label, part.score),
        "gauc": np.average(aucs, weights=[len(g) for g in users]),
        "logloss": log_loss(part.label, part.score.astype(float)),
        "calibration_error": gaps.sum() / len(part),
    }


def test_each_slice_holds_its_rows_and_their_metrics(frame):
    found = slice_metrics(table(frame))
    parts = {
        "cold_items": frame[frame.train_impressions < 30],
        "new_items": frame[frame.train_impressions == 0],
        "cold_users": frame[frame.user_train_impressions < 5],
        "new_users": frame[frame.user_train_impressions == 0],
    }
    for name, part in parts.items():
        assert found[name] == pytest.approx(expected(part), abs=1e-6), name
    for name, least, most in (("0", 0, 0), ("1-4", 1, 4), ("5-19", 5, 19), ("20+", 20, 99)):
        part = frame[frame.history_length.between(least, most)]
        assert found["history"][name] == pytest.approx(expected(part), abs=1e-6), name


def test_deciles_of_popularity_share_the_rows_and_no_value(frame):
    deciles = slice_metrics(table(frame))["popularity"]
    assert len(deciles) == 10
    assert sum(part["rows"] for part in deciles) == ROWS
    assert all(abs(part["rows"] - ROWS / 10) < 40 for part in deciles)
    for before, after in pairwise(deciles):
        assert before["impressions"][1] < after["impressions"][0]
    found = dict(deciles[3])
    part = frame[frame.train_impressions.between(*found.pop("impressions"))]
    assert found == pytest.approx(expected(part), abs=1e-6)
    few = slice_metrics(table(frame.assign(train_impressions=np.arange(ROWS) % 2)))["popularity"]
    assert [(part["impressions"], part["rows"]) for part in few] == [
        ([0, 0], ROWS // 2),
        ([1, 1], ROWS // 2),
    ]


def test_slices_without_rows_or_with_one_label(frame):
    metrics = score_metrics(table(frame.assign(train_impressions=100, history_length=3)))
    assert metrics["slices"]["cold_items"] == {"rows": 0}
    assert (metrics["cold_rows"], metrics["cold_auc"]) == (0, None)
    assert metrics["slices"]["history"]["0"] == {"rows": 0}
    one = frame[frame.label == 1].assign(train_impressions=0)
    found = slice_metrics(table(one))["new_items"]
    assert (found["auc"], found["gauc"], found["rows"]) == (None, None, len(one))


def test_the_whole_has_its_calibration_curve(frame):
    metrics = score_metrics(table(frame))
    whole = expected(frame)
    assert metrics["auc"] == pytest.approx(whole["auc"])
    assert metrics["calibration_error"] == pytest.approx(whole["calibration_error"], abs=1e-6)
    assert sum(count for _, _, count in metrics["calibration"]) == ROWS
    for mean_score, mean_label, count in metrics["calibration"]:
        assert 0 <= mean_score <= 1
        assert 0 <= mean_label <= 1
        assert count > 0


def test_users_are_counted_in_the_training_files(tmp_path):
    train = [[1, 1, 2, 9], [1, 3, 3, 3, 3]]
    for number, users in enumerate(train):
        pq.write_table(pa.table({schema.USER_ID: users}), tmp_path / f"train-{number}.parquet")
    rows = pa.table(
        {
            schema.USER_ID: [3, 1, 4, 2, 3],
            schema.SEQUENCE_TRACK_IDS: pa.array(
                [[5, 6], None, [], [7], [1, 2, 3]], type=pa.list_(pa.int64())
            ),
        }
    )
    found = slice_columns(rows, tmp_path)
    assert found["user_train_impressions"].tolist() == [4, 3, 0, 1, 4]
    assert found["history_length"].tolist() == [2, 0, 0, 1, 3]
