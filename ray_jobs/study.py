"""Many models x seeds on the same rows, and what their differences amount to.

    crescendo study --models din,mcca --seeds 3

Writes `reports/study.json`. A seed changes a model's start and the order of its rows; the
impressions and their split stay the same, so the runs of one seed are paired.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from feature_repo.artifacts import read_manifest, write_json
from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from ray_jobs.progress import step
from ray_jobs.train import TrainOptions, train_all

METRICS = ("auc", "gauc", "cold_auc", "logloss")


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    models: tuple[str, ...] = ("din", "mcca")
    """The first is the baseline of the differences."""
    seeds: int = 3
    train: TrainOptions = field(default_factory=TrainOptions)
    """What all runs share; its model and seed are replaced."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise InputError(f"seeds must be at least 1, got {self.seeds}")
        if not self.models or len(set(self.models)) < len(self.models):
            raise InputError(f"models must name models, each once, got {self.models}")
        for model in self.models:
            replace(self.train, model=model)  # raises on an unknown name


def study(workspace: Workspace, options: StudyOptions) -> dict[str, Any]:
    """Trains every model with every seed. Returns per model the metrics with their spread."""
    wanted = [
        replace(options.train, model=model, seed=seed)
        for seed in range(options.seeds)
        for model in options.models
    ]
    with step("study", models=options.models, seeds=options.seeds):
        results = train_all(workspace, wanted)
    runs: dict[str, list[dict[str, Any]]] = {model: [] for model in options.models}
    for one, result in zip(wanted, results, strict=True):
        runs[one.model].append(result)
    baseline = options.models[0]
    answer: dict[str, Any] = {
        "baseline": baseline,
        "training_set": _training_set_of(workspace, runs[baseline][0]["model_id"]),
        "models": {model: _summary(rows) for model, rows in runs.items()},
        "differences": {
            model: _differences(runs[model], runs[baseline]) for model in options.models[1:]
        },
    }
    write_json(workspace.reports / "study.json", answer)
    return answer


def _training_set_of(workspace: Workspace, model_id: str) -> str:
    manifest = read_manifest(workspace.models / model_id, kind="model", made_by="train")
    return str(manifest.parents["training_set"])


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {"model_ids": [row["model_id"] for row in rows]}
    for metric in METRICS:
        values = [row[metric] for row in rows if row[metric] is not None]
        if values:
            summary[metric] = {
                "mean": float(np.mean(values)),
                "spread": float(np.ptp(values)),
                "per_seed": values,
            }
    summary["validation_auc"] = float(np.mean([row["validation_auc"] for row in rows]))
    summary["best_epochs"] = [row["best_epoch"] for row in rows]
    summary["rows_per_second"] = float(np.mean([row["rows_per_second"] for row in rows]))
    return summary


def _differences(rows: list[dict[str, Any]], baseline: list[dict[str, Any]]) -> dict[str, Any]:
    """Per metric the paired differences by seed, and whether their mean exceeds both spreads.

    One seed has no spread: then None.
    """
    differences: dict[str, Any] = {}
    for metric in METRICS:
        ours = np.array([row[metric] for row in rows], dtype=float)
        theirs = np.array([row[metric] for row in baseline], dtype=float)
        if np.isnan(ours).any() or np.isnan(theirs).any():
            continue
        mean = float(np.mean(ours - theirs))
        differences[metric] = {
            "mean": mean,
            "per_seed": (ours - theirs).tolist(),
            "beyond_spread": None
            if len(ours) < 2
            else bool(abs(mean) > max(np.ptp(ours), np.ptp(theirs))),
        }
    return differences
