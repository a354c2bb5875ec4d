"""Impressions joined with what the feature store knew at their moment.

Writes `training_sets/<id>/`: `train-*.parquet` (rows shuffled with the seed), `validation.parquet`,
`test.parquet` (ordered by time) and `items.safetensors` (the generation's codes, and the training
impressions of each track). Everything that a training run reads is in this one folder.
"""

from collections.abc import Iterator
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
from ray_jobs.impressions import PARTS, ImpressionOptions, impressions
from ray_jobs.progress import log, step
from ray_jobs.sequences import deletions, events_id

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
        rows = impressions(workspace.events, options.impressions, deletions(workspace))
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
        manifest.rows = _write_rows(workspace, rows, options.impressions.seed, partial)
        train = rows.loc[rows["part"] == "train", schema.TRACK_ID].to_numpy()
        _write_items(workspace, generation, train, partial / "items.safetensors")
    log.info("training set", id=training_set_id, **manifest.rows)
    return manifest


def _write_rows(
    workspace: Workspace, rows: pd.DataFrame, seed: int, folder: Path
) -> dict[str, int]:
    """Joins the impressions with the user's sequence and writes each part; returns its rows.

    The rows are brought into their order before the join, which keeps it, so that the joined ones
    need not be held: the training part shuffled with the seed, the others by time.
    """
    parts = {part: np.flatnonzero(rows["part"] == part) for part in PARTS}
    parts["train"] = np.random.default_rng(seed).permutation(parts["train"])
    train_rows = len(parts["train"])
    files = {
        f"train-{start // ROWS_PER_FILE:05d}.parquet": min(ROWS_PER_FILE, train_rows - start)
        for start in range(0, train_rows, ROWS_PER_FILE)
    } | {f"{part}.parquet": len(parts[part]) for part in PARTS[1:]}
    ordered = rows.iloc[np.concatenate(list(parts.values()))]
    with step("point-in-time join", rows=len(rows)):
        _write_files(_join_history(workspace, ordered), files, folder)
    return {part: len(positions) for part, positions in parts.items()}


def _join_history(workspace: Workspace, rows: pd.DataFrame) -> Iterator[pa.Table]:
    """Feast's point-in-time join of the user's sequence; an unknown user has an empty one."""
    from feature_repo.offline import point_in_time
    from feature_repo.store import open_store

    store = open_store(workspace)
    return point_in_time(store, rows, schema.USER_SEQUENCE, [schema.SEQUENCE_TRACK_IDS])


def _write_files(tables: Iterator[pa.Table], files: dict[str, int], folder: Path) -> None:
    """Cuts a stream of rows into files of so many rows each. Errors if they are more or fewer."""
    held = next(tables)
    for name, rows in files.items():
        with pq.ParquetWriter(folder / name, held.schema) as writer:
            while rows:
                if held.num_rows == 0:
                    following = next(tables, None)
                    if following is None:
                        raise RuntimeError(f"the point-in-time join lacks {rows} rows for {name}")
                    held = following
                    continue
                part = held.slice(0, rows)
                writer.write_table(part)
                rows -= part.num_rows
                held = held.slice(part.num_rows)
    left = held.num_rows + sum(table.num_rows for table in tables)
    if left:
        raise RuntimeError(
            f"the point-in-time join gave {left} rows more than there are impressions"
        )


def _write_items(workspace: Workspace, generation: Manifest, train: np.ndarray, path: Path) -> None:
    from feature_repo.item_table import read_codes_offline
    from feature_repo.store import open_store

    track_ids, codes = read_codes_offline(
        open_store(workspace),
        generation.id,
        generation.info["families"],
        generation.info["levels"],
    )
    seen, counts = np.unique(train, return_counts=True)
    tensors: dict[str, Any] = {
        "track_ids": track_ids,
        "codes": codes,
        "vocabulary_track_ids": seen,
        "vocabulary_train_counts": counts,
    }
    save_file(tensors, path)
