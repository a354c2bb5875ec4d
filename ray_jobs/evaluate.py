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
from ray_jobs.slices import (
    CALIBRATION_BINS,
    TRACK_IMPRESSIONS,
    or_none,
    slice_columns,
    slice_metrics,
)
from ray_jobs.training_stream import ItemSide, read_item_side, score_rows


def evaluate(workspace: Workspace, model_id: str | None = None) -> dict[str, Any]:
    """Scores the test part anew. Returns `model_id`, `test_rows` and the metrics."""
    if model_id is None:
        model_id = newest(workspace.models, kind="model", made_by="train", option="ranker").id
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
    columns = {
        "score": score_rows(model, side, rows),
        TRACK_IMPRESSIONS: side.vocabulary.train_counts(track_ids),
        **slice_columns(rows, training_folder),
    }
    scored = rows.select(kept)
    for name, values_N in columns.items():
        scored = scored.append_column(name, pa.array(values_N))
    return scored


def score_metrics(scored: pa.Table) -> dict[str, Any]:
    """Metrics of all rows, the calibration curve, and the metrics of each slice (`slices.py`).

    GAUC is weighted by impressions, and unweighted. `calibration` has a bin a row: mean score,
    share of positives, rows. A part of one class only has no AUC: None, as JSON has no NaN.
    """
    truth, scores = scored["label"].to_numpy(), scored["score"].to_numpy()
    grouped = gauc(scored[schema.USER_ID].to_numpy(), truth, scores)
    bins = calibration(truth, scores, bins=CALIBRATION_BINS)
    slices = slice_metrics(scored)
    return {
        "test_rows": len(truth),
        "cold_rows": slices["cold_items"]["rows"],
        "auc": or_none(auc(truth, scores)),
        "gauc": or_none(grouped.gauc),
        "gauc_unweighted": or_none(grouped.unweighted),
        "gauc_users": grouped.users,
        "cold_auc": slices["cold_items"].get("auc"),
        "logloss": logloss(truth, scores),
        "calibration_error": expected_calibration_error(bins),
        "calibration": [[one.mean_score, one.mean_label, one.count] for one in bins],
        "slices": slices,
    }


@dataclass(frozen=True, kw_only=True)
class OfflineRequest:
    """Candidates to score for one user as of one moment."""

    user_id: int
    moment: datetime
    candidates: tuple[int, ...]


def score_offline(workspace: Workspace, model_id: str, request: OfflineRequest) -> np.ndarray:
    """Scores (B,) from the offline store's features as of the moment: what serving would say."""
    from feature_repo.item_table import read_codes_offline
    from feature_repo.store import open_store
    from ray_jobs.feature_rows import join_features

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
    groups = manifest.options.get("features", ())
    rows = pa.concat_tables(join_features(store, entity_rows, groups))
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
