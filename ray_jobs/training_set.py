"""Impressions joined with what the feature store knew at their moment.

Writes `training_sets/<id>/`: `train-*.parquet` (rows shuffled with the seed), `validation.parquet`,
`test.parquet` (ordered by time), `items.safetensors` (the generation's codes, and the training
impressions of each track) and, with feature groups, `numbers.safetensors` (their mean and spread
over the training part). Everything that a training run reads is in this one folder.
"""

from collections.abc import Iterator, Sequence
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
from feature_repo.parquet_form import parquet_settings
from feature_repo.workspace import Workspace
from models.number_rows import NumberStatistics
from ray_jobs.impressions import PARTS, ImpressionOptions, impressions
from ray_jobs.number_features import (
    FEATURE_GROUPS,
    NUMBERS,
    STATS_VIEWS,
    check_groups,
    feature_references,
    number_names,
    numbers_of,
)
from ray_jobs.progress import log, step
from ray_jobs.sequences import deletions, events_id

ROWS_PER_FILE = 65_536
NUMBERS_FILE = "numbers.safetensors"


@dataclass(frozen=True, kw_only=True)
class TrainingSetOptions:
    generation: str | None = None
    """Generation whose IDs the rankers see; the newest when not given."""
    impressions: ImpressionOptions = field(default_factory=ImpressionOptions)
    features: tuple[str, ...] = ()
    """Groups of numbers that rankers see beside IDs: `user`, `track`, `context`."""

    def __post_init__(self) -> None:
        check_groups(self.features)


def training_set(workspace: Workspace, options: TrainingSetOptions) -> Manifest:
    """The manifest of the training set, which is built if it does not exist yet."""
    workspace.require(workspace.events, "ingest --source KIND --path FOLDER")
    generation_id = options.generation
    if generation_id is None:
        generation_id = newest(workspace.generations, kind="generation", made_by="quantize").id
    generation = read_manifest(
        workspace.generations / generation_id, kind="generation", made_by="quantize"
    )
    log_now = events_id(workspace)
    sequence = _feature_source(workspace, schema.USER_SEQUENCE, log_now)
    parents = {
        "generation": generation.id,
        "generation_files": generation.files,
        "events": log_now,
        "sequences": sequence.files,
    }
    settings = asdict(options.impressions)
    if options.features:  # in the order that the numbers have, whatever was asked in which
        settings["features"] = [group for group in FEATURE_GROUPS if group in options.features]
        for group, view in STATS_VIEWS.items():
            if group in options.features:
                parents[view] = _feature_source(workspace, view, log_now).files
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
            "features": feature_references(options.features),
            "numbers": list(number_names(options.features)),
        },
    )
    with write_artifact(folder, manifest) as partial:
        manifest.rows = _write_rows(workspace, rows, options, partial)
        if options.features:
            _write_number_statistics(number_names(options.features), partial)
        train = rows.loc[rows["part"] == "train", schema.TRACK_ID].to_numpy()
        _write_items(workspace, generation, train, partial / "items.safetensors")
    log.info("training set", id=training_set_id, **manifest.rows)
    return manifest


def _feature_source(workspace: Workspace, view: str, log_now: str) -> Manifest:
    """The manifest of a view's source, made from the event log as it is now."""
    source = read_manifest(
        workspace.feature_source(view), kind="feature_source", made_by="sequences"
    )
    if source.parents["events"] != log_now:
        raise ArtifactError(
            f"the sequences were made from {source.parents['events']}, the event log is "
            f"{log_now} now; run `crescendo sequences` and `crescendo publish`"
        )
    return source


def _write_rows(
    workspace: Workspace, rows: pd.DataFrame, options: TrainingSetOptions, folder: Path
) -> dict[str, int]:
    """Joins the impressions with their features and writes each part; returns its rows.

    The rows are brought into their order before the join, which keeps it, so that the joined ones
    need not be held: the training part shuffled with the seed, the others by time.
    """
    from feature_repo.store import open_store
    from ray_jobs.feature_rows import join_features

    parts = {part: np.flatnonzero(rows["part"] == part) for part in PARTS}
    parts["train"] = np.random.default_rng(options.impressions.seed).permutation(parts["train"])
    train_rows = len(parts["train"])
    files = {
        f"train-{start // ROWS_PER_FILE:05d}.parquet": min(ROWS_PER_FILE, train_rows - start)
        for start in range(0, train_rows, ROWS_PER_FILE)
    } | {f"{part}.parquet": len(parts[part]) for part in PARTS[1:]}
    ordered = rows.iloc[np.concatenate(list(parts.values()))]
    with step("point-in-time join", rows=len(rows)):
        joined = join_features(open_store(workspace), ordered, options.features)
        _write_files(joined, files, folder)
    return {part: len(positions) for part, positions in parts.items()}


def _write_number_statistics(names: Sequence[str], folder: Path) -> None:
    """Mean and spread over the training part: what a ranker normalises its numbers with."""
    statistics = NumberStatistics(names)
    for path in sorted(folder.glob("train-*.parquet")):
        numbers_BN = numbers_of(pq.read_table(path, columns=[NUMBERS]))
        assert numbers_BN is not None
        statistics.add(numbers_BN)
    save_file(statistics.tensors(), folder / NUMBERS_FILE)


def _write_files(tables: Iterator[pa.Table], files: dict[str, int], folder: Path) -> None:
    """Cuts a stream of rows into files of so many rows each. Errors if they are more or fewer."""
    held = next(tables)
    for name, rows in files.items():
        with pq.ParquetWriter(
            folder / name, held.schema, **parquet_settings(held.schema)
        ) as writer:
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
