"""Rankers compared: each variant with several seeds, on the same rows, differences with intervals.

    crescendo study --models din,mcca --seeds 3

Writes `reports/study.json` (named questions, `study_questions.py`, write `study-<name>.json`) and
`reports/study.html`, a page of all that were studied. A seed changes a model's start and the order
of its rows; the impressions and their split stay the same, so the runs of one seed are paired, and
so are the test rows of all runs. A study that was killed goes on with the same command.

Shape suffixes: N test rows, U users, S seeds, R bootstrap draws.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from feature_repo.artifacts import read_manifest, write_json
from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from models.ranker_config import OWN_OPTIONS
from ray_jobs.bootstrap import DRAWS, interval
from ray_jobs.progress import step
from ray_jobs.report.study_page import write_study_page
from ray_jobs.study_answers import MEASURES, MODELS_STUDY, answer_file
from ray_jobs.study_scores import SharedRows, drawn_metrics
from ray_jobs.train import TrainOptions, train_all


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One line of a study: how a model is made, but for its seed."""

    name: str
    train: TrainOptions


@dataclass(frozen=True, kw_only=True)
class Question:
    """Variants that are compared with the first of them, the baseline."""

    name: str
    asks: str
    variants: tuple[Variant, ...]
    notes: tuple[str, ...] = ()
    """What was fixed for it beforehand, beside the shared training options."""


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    models: tuple[str, ...] = ("din", "mcca")
    """The first is the baseline of the differences."""
    seeds: int = 3
    parallel: int = 1
    """Runs that are trained at a time."""
    train: TrainOptions = field(default_factory=TrainOptions)
    """What all runs share; its model and seed are replaced."""

    def __post_init__(self) -> None:
        check_counts(self.seeds, self.parallel)
        if not self.models or len(set(self.models)) < len(self.models):
            raise InputError(f"models must name models, each once, got {self.models}")
        for model in self.models:
            of_model(self.train, model)  # raises on an unknown name


def study(workspace: Workspace, options: StudyOptions) -> dict[str, Any]:
    """Trains every model with every seed. Returns what `compare` says of them."""
    question = Question(
        name=MODELS_STUDY,
        asks="Which model ranks better, on the same rows and IDs?",
        variants=tuple(
            Variant(name=model, train=of_model(options.train, model)) for model in options.models
        ),
    )
    answers = compare(workspace, [question], options.seeds, options.parallel)
    return answers[MODELS_STUDY]


def compare(
    workspace: Workspace, questions: Sequence[Question], seeds: int, parallel: int = 1
) -> dict[str, dict[str, Any]]:
    """Trains every variant with every seed, all in one group of workers or `parallel` at a time;
    runs that questions share are trained once. Writes each question's answer and the page.

    Returns by question: `baseline`, `training_set` (the baseline's), `models` (per variant the
    measures with their spread, and the cost) and `differences` from the baseline (per measure the
    mean, per_seed, and `interval`, None where draws leave it undefined).
    """
    wanted = dict.fromkeys(
        replace(variant.train, seed=seed)
        for seed in range(seeds)
        for question in questions
        for variant in question.variants
    )
    with step("study", questions=[question.name for question in questions], seeds=seeds):
        trained = train_all(workspace, list(wanted), parallel)
        results = dict(zip(wanted, trained, strict=True))
    answers = {}
    for question in questions:
        with step("bootstrap", question=question.name, draws=DRAWS):
            answers[question.name] = _answer(workspace, question, seeds, results)
        write_json(workspace.reports / answer_file(question.name), answers[question.name])
    write_study_page(workspace)
    return answers


def check_counts(seeds: int, parallel: int) -> None:
    for name, count in (("seeds", seeds), ("parallel", parallel)):
        if count < 1:
            raise InputError(f"{name} must be at least 1, got {count}")


def of_model(shared: TrainOptions, model: str) -> TrainOptions:
    """The shared options for one model, without those that belong to another."""
    foreign: dict[str, Any] = {
        name: None for owner, own in OWN_OPTIONS.items() if owner != model for name in own
    }
    return replace(shared, model=model, **foreign)


def _answer(
    workspace: Workspace,
    question: Question,
    seeds: int,
    results: dict[TrainOptions, dict[str, Any]],
) -> dict[str, Any]:
    runs = {
        variant.name: [results[replace(variant.train, seed=seed)] for seed in range(seeds)]
        for variant in question.variants
    }
    baseline = question.variants[0]
    rows = SharedRows.read(workspace, runs[baseline.name][0]["model_id"], seeds)
    drawn = {
        name: drawn_metrics(workspace, rows, [run["model_id"] for run in of_variant])
        for name, of_variant in runs.items()
    }
    others = [name for name in runs if name != baseline.name]
    return {
        "question": question.name,
        "asks": question.asks,
        "made_at": datetime.now(UTC).isoformat(),
        "seeds": seeds,
        "baseline": baseline.name,
        "training_set": _parents(workspace, runs[baseline.name][0])["training_set"],
        "rows": rows.counts(),
        "fixed": {"train": _shared(question.variants), "notes": list(question.notes)},
        "models": {
            variant.name: _summary(workspace, variant, runs[variant.name])
            for variant in question.variants
        },
        "differences": {
            name: _differences(
                runs[name], runs[baseline.name], drawn[name], drawn[baseline.name], rows.counts_SR
            )
            for name in others
        },
    }


def _shared(variants: Sequence[Variant]) -> dict[str, Any]:
    """The training options that are the same in all variants."""
    every = [asdict(variant.train) for variant in variants]
    return {
        name: value
        for name, value in every[0].items()
        if name != "seed" and all(one[name] == value for one in every)
    }


def _parents(workspace: Workspace, run: dict[str, Any]) -> dict[str, Any]:
    folder = workspace.models / run["model_id"]
    return read_manifest(folder, kind="model", made_by="train", verify=False).parents


def _summary(workspace: Workspace, variant: Variant, rows: list[dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "model": variant.train.model,
        "generation": _parents(workspace, rows[0])["generation"],
        "model_ids": [row["model_id"] for row in rows],
    }
    for measure in MEASURES:
        values = [value for row in rows if (value := _value(row, measure)) is not None]
        if values:
            summary[measure] = {
                "mean": float(np.mean(values)),
                "spread": float(np.ptp(values)),
                "per_seed": values,
            }
    for name in ("validation_auc", "rows_per_second", "seconds"):
        summary[name] = float(np.mean([row[name] for row in rows]))
    summary["best_epochs"] = [row["best_epoch"] for row in rows]
    summary["parameters"] = _parameters(workspace, rows[0]["model_id"])
    return summary


def _value(row: dict[str, Any], measure: str) -> float | None:
    value = row["slices"]["cold_items"].get("gauc") if measure == "cold_gauc" else row[measure]
    return None if value is None else float(value)


def _parameters(workspace: Workspace, model_id: str) -> int:
    """Values in a model's weights, read from the head of the file."""
    from safetensors import safe_open

    with safe_open(workspace.models / model_id / "model.safetensors", "numpy") as weights:
        names = weights.keys()
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in names)


def _differences(
    rows: list[dict[str, Any]],
    baseline: list[dict[str, Any]],
    drawn: dict[str, np.ndarray],
    drawn_baseline: dict[str, np.ndarray],
    counts_SR: np.ndarray,
) -> dict[str, Any]:
    """Per measure the paired differences by seed, whether their mean exceeds both spreads (None
    for one seed, which has none), and the bootstrap interval of the mean.
    """
    differences: dict[str, Any] = {}
    for measure in MEASURES:
        ours = np.array([_value(row, measure) for row in rows], dtype=float)
        theirs = np.array([_value(row, measure) for row in baseline], dtype=float)
        if np.isnan(ours).any() or np.isnan(theirs).any():
            continue
        mean = float(np.mean(ours - theirs))
        differences[measure] = {
            "mean": mean,
            "per_seed": (ours - theirs).tolist(),
            "interval": interval(drawn[measure], drawn_baseline[measure], counts_SR),
            "beyond_spread": None
            if len(ours) < 2
            else bool(abs(mean) > max(np.ptp(ours), np.ptp(theirs))),
        }
    return differences
