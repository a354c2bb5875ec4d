"""Impressions joined with what the feature store knew at their moment.

Writes `training_sets/<id>/`: `train-*.parquet` (rows shuffled with the seed), `validation.parquet`,
`test.parquet` (ordered by time) and `items.safetensors` (the generation's codes, and the training
impressions of each track). Everything that a training run reads is in this one folder.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from feature_repo import schema
from feature_repo.artifacts import (
    Manifest,
    content_id,
    newest,
    read_manifest,
    write_artifact,
)
from feature_repo.errors import ArtifactError
from feature_repo.workspace import Workspace
from ray_jobs.impressions import ImpressionOptions, impressions
from ray_jobs.progress import log, step
from ray_jobs.sequences import events_id

ROWS_PER_FILE = 65_536


@dataclass(frozen=True, kw_only=True)
class TrainingSetOptions:
    generation: str | None = None
    """Generation whose IDs the rankers see; the newest when not given."""
    impressions: ImpressionOptions = field(default_factory=ImpressionOptions)


def training_set(workspace: Workspace, options: TrainingSetOptions) -> Manifest:
    """The manifest of the training set, which is built if it does not exist yet."""
    workspace.require(workspace.events, "ingest --source KIND --path FOLDER")
    generation_id = options.generation
    if generation_id is None:
        generation_id = newest(workspace.generations, kind="generation", made_by="quantize").id
    generation = read_manifest(
        workspace.generations / generation_id, kind="generation", made_by="quantize"
    )
    sequence_source = workspace.feature_source(schema.USER_SEQUENCE)
    sequence = read_manifest(sequence_source, kind="feature_source", made_by="sequences")
    log_now = events_id(workspace)
    if sequence.parents["events"] != log_now:
        raise ArtifactError(
            f"the sequences were made from {sequence.parents['events']}, the event log is "
            f"{log_now} now; run `crescendo sequences` and `crescendo publish`"
        )
    parents = {
        "generation": generation.id,
        "generation_files": generation.files,
        "events": log_now,
        "sequences": sequence.files,
    }
    settings = asdict(options.impressions)
    training_set_id = content_id("ts", parents, settings)
    folder = workspace.training_sets / training_set_id
    if folder.exists():
        return read_manifest(folder, kind="training_set", made_by="train")

    with step("impressions", label_rule=options.impressions.label_rule):
        rows = impressions(workspace.events, options.impressions)
    manifest = Manifest(
        kind="training_set",
        id=training_set_id,
        parents=parents,
        options=settings,
        info={
            "families": generation.info["families"],
            "levels": generation.info["levels"],
            "codes": generation.info["codes"],
            "history_length": sequence.options["length"],
            "features": [f"{schema.USER_SEQUENCE}:{schema.SEQUENCE_TRACK_IDS}"],
        },
    )
    with write_artifact(folder, manifest) as partial:
        joined = _join_history(workspace, rows)
        for part in ("validation", "test"):
            selected = joined.filter(pa.compute.equal(joined["part"], part))
            pq.write_table(selected.sort_by("impression_id"), partial / f"{part}.parquet")
            manifest.rows[part] = selected.num_rows
        train = joined.filter(pa.compute.equal(joined["part"], "train")).sort_by("impression_id")
        order = np.random.default_rng(options.impressions.seed).permutation(train.num_rows)
        for start in range(0, train.num_rows, ROWS_PER_FILE):
            shuffled = train.take(order[start : start + ROWS_PER_FILE])
            pq.write_table(shuffled, partial / f"train-{start // ROWS_PER_FILE:05d}.parquet")
        manifest.rows["train"] = train.num_rows
        _write_items(workspace, generation, train, partial / "items.safetensors")
    log.info("training set", id=training_set_id, **manifest.rows)
    return manifest


def _join_history(workspace: Workspace, rows: pd.DataFrame) -> pa.Table:
    """Feast's point-in-time join of the user's sequence; an unknown user has an empty one."""
    from feature_repo.offline import point_in_time
    from feature_repo.store import open_store

    store = open_store(workspace)
    with step("point-in-time join", rows=len(rows)):
        tables = list(point_in_time(store, rows, schema.USER_SEQUENCE, [schema.SEQUENCE_TRACK_IDS]))
    joined = pa.concat_tables(tables)
    if joined.num_rows != len(rows):
        raise RuntimeError(
            f"the point-in-time join gave {joined.num_rows} rows for {len(rows)} impressions"
        )
    return joined


def _write_items(workspace: Workspace, generation: Manifest, train: pa.Table, path: Path) -> None:
    from feature_repo.item_table import read_codes_offline
    from feature_repo.store import open_store

    track_ids, codes = read_codes_offline(
        open_store(workspace),
        generation.id,
        generation.info["families"],
        generation.info["levels"],
    )
    seen, counts = np.unique(train[schema.TRACK_ID].to_numpy(), return_counts=True)
    tensors: dict[str, Any] = {
        "track_ids": track_ids,
        "codes": codes,
        "vocabulary_track_ids": seen,
        "vocabulary_train_counts": counts,
    }
    save_file(tensors, path)
