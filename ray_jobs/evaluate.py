"""Scores a trained model: on its training set's test part, or for any (user, time, candidates).

crescendo evaluate --model-id MODEL
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load_file

from feature_repo import schema
from feature_repo.artifacts import Manifest, newest, read_manifest
from feature_repo.workspace import Workspace
from models.batch import ItemTable
from models.rankers import load_ranker
from models.ranking_metrics import auc, calibration, expected_calibration_error, gauc, logloss
from ray_jobs.training_stream import ItemSide, read_item_side, score_rows

COLD_BELOW = 30
"""A track with fewer training impressions is cold (paper section 2.1)."""
CALIBRATION_BINS = 10


def evaluate(workspace: Workspace, model_id: str | None = None) -> dict[str, Any]:
    """Scores the test part anew. Returns `model_id`, `test_rows` and the metrics."""
    if model_id is None:
        model_id = newest(workspace.models, kind="model", made_by="train").id
    folder = workspace.models / model_id
    manifest = read_manifest(folder, kind="model", made_by="train")
    training_folder = workspace.training_sets / manifest.parents["training_set"]
    read_manifest(training_folder, kind="training_set", made_by="train")
    scored = _score_test(folder, training_folder, manifest)
    return {"model_id": model_id, **score_metrics(scored)}


def write_test_scores(
    model_folder: Path, training_folder: Path, manifest: Manifest
) -> dict[str, Any]:
    """Writes `test_scores.parquet` into the model folder and returns the test metrics."""
    scored = _score_test(model_folder, training_folder, manifest)
    pq.write_table(scored, model_folder / "test_scores.parquet")
    return score_metrics(scored)


def _score_test(model_folder: Path, training_folder: Path, manifest: Manifest) -> pa.Table:
    config = manifest.options["ranker"]
    model = load_ranker(config, load_file(model_folder / "model.safetensors"))
    side = read_item_side(training_folder, config["history_length"])
    rows = pq.read_table(training_folder / "test.parquet")
    track_ids = rows[schema.TRACK_ID].to_numpy()
    kept = [
        "impression_id",
        "event_id",
        schema.USER_ID,
        schema.TRACK_ID,
        schema.EVENT_TIMESTAMP,
        "label",
    ]
    return (
        rows.select(kept)
        .append_column("score", pa.array(score_rows(model, side, rows)))
        .append_column("train_impressions", pa.array(side.vocabulary.train_counts(track_ids)))
    )


def score_metrics(scored: pa.Table) -> dict[str, Any]:
    """AUC, GAUC (by impressions and unweighted), cold AUC, logloss and calibration error.

    A part of one class only has no AUC: None, as JSON has no NaN.
    """
    truth, scores = scored["label"].to_numpy(), scored["score"].to_numpy()
    cold = scored["train_impressions"].to_numpy() < COLD_BELOW
    grouped = gauc(scored[schema.USER_ID].to_numpy(), truth, scores)
    return {
        "test_rows": len(truth),
        "cold_rows": int(cold.sum()),
        "auc": _or_none(auc(truth, scores)),
        "gauc": _or_none(grouped.gauc),
        "gauc_unweighted": _or_none(grouped.unweighted),
        "gauc_users": grouped.users,
        "cold_auc": _or_none(auc(truth[cold], scores[cold])),
        "logloss": logloss(truth, scores),
        "calibration_error": expected_calibration_error(
            calibration(truth, scores, bins=CALIBRATION_BINS)
        ),
    }


def _or_none(metric: float) -> float | None:
    return None if np.isnan(metric) else metric


@dataclass(frozen=True, kw_only=True)
class OfflineRequest:
    """Candidates to score for one user as of one moment."""

    user_id: int
    moment: datetime
    candidates: tuple[int, ...]


def score_offline(workspace: Workspace, model_id: str, request: OfflineRequest) -> np.ndarray:
    """Scores (B,) from the offline store's features as of the moment: what serving would say."""
    from feature_repo.item_table import read_codes_offline
    from feature_repo.offline import point_in_time
    from feature_repo.store import open_store

    folder = workspace.models / model_id
    manifest = read_manifest(folder, kind="model", made_by="train")
    config = manifest.options["ranker"]
    store = open_store(workspace)
    entity_rows = pd.DataFrame(
        {
            schema.USER_ID: request.user_id,
            schema.TRACK_ID: np.array(request.candidates, dtype=np.int64),
            schema.EVENT_TIMESTAMP: pd.Timestamp(request.moment),
            "position": np.arange(len(request.candidates)),
        }
    )
    features = [schema.SEQUENCE_TRACK_IDS]
    rows = pa.concat_tables(point_in_time(store, entity_rows, schema.USER_SEQUENCE, features))
    track_ids, codes = read_codes_offline(
        store, manifest.parents["generation"], config["families"], config["levels"]
    )
    vocabulary = read_item_side(
        workspace.training_sets / manifest.parents["training_set"], config["history_length"]
    ).vocabulary
    side = ItemSide(
        items=ItemTable(track_ids_I=track_ids, codes_IFL=codes),
        vocabulary=vocabulary,
        history_length=config["history_length"],
    )
    model = load_ranker(config, load_file(folder / "model.safetensors"))
    return score_rows(model, side, rows.sort_by("position"))
