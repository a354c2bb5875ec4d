"""The trained models that the report compares: curves, test scores by slice, calibration.

They are the models of the newest study, or all models where there is no study.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.artifacts import MANIFEST, Manifest, read_manifest
from feature_repo.errors import ArtifactError
from feature_repo.workspace import Workspace
from models.ranking_metrics import CalibrationBin, auc, calibration
from ray_jobs.report.readings import checked_file
from ray_jobs.slices import CALIBRATION_BINS

SLICES = (("0", 0, 0), ("1-9", 1, 9), ("10-29", 10, 29), ("30-99", 30, 99), ("100+", 100, None))
"""Name, least and most training impressions of a track."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One trained model."""

    model_id: str
    kind: str
    seed: int
    training_set: str
    label_rule: str
    created_at: str
    metrics: dict[str, Any]
    rows_per_second: float
    curve: tuple[dict[str, Any], ...]
    """One row an epoch."""
    folder: Path
    manifest: Manifest

    def scored(self) -> pa.Table:
        """The test rows with their scores."""
        path = checked_file(self.folder, self.manifest, "test_scores.parquet", "train")
        return pq.read_table(path, columns=["label", "score", "train_impressions"])


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Test rows whose track had so many training impressions, and each model's AUC on them."""

    name: str
    rows: int
    positives: int
    aucs: dict[str, list[float]]
    """Per kind of model one AUC a run; none where the rows have one label only."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The runs that can be compared, and what was left out."""

    runs: tuple[Run, ...]
    from_study: bool
    notes: tuple[str, ...]

    def by_kind(self) -> dict[str, list[Run]]:
        """Runs on the same test rows: a study's seeds, or else the newest model of each kind."""
        kinds: dict[str, list[Run]] = {}
        if self.from_study:
            for run in self.runs:
                kinds.setdefault(run.kind, []).append(run)
        elif self.runs:
            newest = max(self.runs, key=lambda run: run.created_at)
            for run in sorted(self.runs, key=lambda run: run.created_at):
                if run.training_set == newest.training_set:
                    kinds[run.kind] = [run]
        return kinds


def _is_ranker(workspace: Workspace, model_id: str) -> bool:
    """Whether the report compares it: an MME-SID model ranks no impressions."""
    try:
        manifest = read_manifest(
            workspace.models / model_id, kind="model", made_by="train", verify=False
        )
    except ArtifactError:
        return True  # reading it says what is wrong
    return manifest.options.get("model") != "mme_sid"


def read_compared(workspace: Workspace, study: dict[str, Any] | None) -> Compared:
    """The models of the study, all models without one; damaged ones become notes."""
    if study is not None:
        ids = [name for summary in study["models"].values() for name in summary["model_ids"]]
    else:
        ids = sorted(path.parent.name for path in workspace.models.glob(f"*/{MANIFEST}"))
        ids = [name for name in ids if not name.startswith(".") and _is_ranker(workspace, name)]
    runs, notes = [], []
    for model_id in ids:
        try:
            runs.append(read_run(workspace, model_id))
        except ArtifactError as error:
            notes.append(str(error))
    return Compared(runs=tuple(runs), from_study=study is not None, notes=tuple(notes))


def read_run(workspace: Workspace, model_id: str) -> Run:
    folder = workspace.models / model_id
    manifest = read_manifest(folder, kind="model", made_by="train", verify=False)
    lines = checked_file(folder, manifest, "metrics.jsonl", "train").read_text().splitlines()
    # A restarted run may have written an epoch twice: the later line is the one it went on from.
    epochs = {row["epoch"]: row for row in map(json.loads, lines)}
    return Run(
        model_id=model_id,
        kind=manifest.options["model"],
        seed=manifest.options["seed"],
        training_set=manifest.parents["training_set"],
        label_rule=manifest.options["impressions"]["label_rule"],
        created_at=manifest.created_at,
        metrics=manifest.info["metrics"],
        rows_per_second=manifest.info["rows_per_second"],
        curve=tuple(epochs[epoch] for epoch in sorted(epochs)),
        folder=folder,
        manifest=manifest,
    )


def slices(scored: dict[str, list[pa.Table]]) -> list[Slice]:
    """AUC by training impressions of the track; `scored` are the test scores of each kind's runs.

    All of them hold the same rows. Slices without rows are left out.
    """
    any_table = next(iter(scored.values()))[0]
    found = []
    for name, least, most in SLICES:
        mask = _between(any_table, least, most)
        if not mask.any():
            continue
        aucs = {}
        for kind, tables in scored.items():
            values = [_auc_between(table, least, most) for table in tables]
            aucs[kind] = [value for value in values if not np.isnan(value)]
        positives = int(any_table["label"].to_numpy()[mask].sum())
        found.append(Slice(name=name, rows=int(mask.sum()), positives=positives, aucs=aucs))
    return found


def calibration_bins(scored: pa.Table) -> list[CalibrationBin]:
    truth, scores = scored["label"].to_numpy(), scored["score"].to_numpy()
    return calibration(truth, scores, bins=CALIBRATION_BINS)


def _between(scored: pa.Table, least: int, most: int | None) -> np.ndarray:
    impressions = scored["train_impressions"].to_numpy()
    return (impressions >= least) & (impressions <= (np.inf if most is None else most))


def _auc_between(scored: pa.Table, least: int, most: int | None) -> float:
    mask = _between(scored, least, most)
    return auc(scored["label"].to_numpy()[mask], scored["score"].to_numpy()[mask])
