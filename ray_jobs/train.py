"""Trains a ranker with Ray Train on a training set from the feature store.

    crescendo train --model mcca --label-rule complete

Writes `models/<model_id>/`: `model.safetensors` (best epoch by validation AUC),
`last.safetensors`, `vocabulary.safetensors`, `metrics.jsonl` (one line an epoch),
`test_scores.parquet`, `warm_up.safetensors` (scores that a release must give again),
`drift_baseline.safetensors` (what drift is measured against) and the manifest with options,
parents and test metrics.

A run that was killed is found by the same command, with any number of workers, and goes on from
its newest checkpoint (`run_folder.py`, `checkpoints.py`).
"""

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from feature_repo.artifacts import Manifest, write_artifact
from feature_repo.errors import InputError
from feature_repo.scratch import scratch_folder
from feature_repo.workspace import Workspace
from ray_jobs.progress import log, step
from ray_jobs.ray_session import ray_session
from ray_jobs.run_folder import CURVE_FILE, LAST_FILE, START_FILE, STARTS_FILE, json_lines
from ray_jobs.side_by_side import train_side_by_side
from ray_jobs.train_options import TrainOptions
from ray_jobs.train_run import Run, prepare
from ray_jobs.worker_fit import fit_on_workers


def train(workspace: Workspace, options: TrainOptions) -> dict[str, Any]:
    """Trains and evaluates one model. Returns `model_id`, the test metrics and the speed."""
    (result,) = train_all(workspace, [options])
    return result


def train_all(
    workspace: Workspace, options: Sequence[TrainOptions], parallel: int = 1
) -> list[dict[str, Any]]:
    """Trains models after each other, in one group of workers: starting one takes longer than some.

    With `parallel` above 1 so many are trained at a time, by one worker each (`side_by_side.py`).
    All must agree on `workers` and `gpu`. Models whose training had ended when an earlier call was
    killed are not trained again.
    """
    if len({(one.workers, one.gpu) for one in options}) != 1:
        raise InputError("models that are trained together must agree on workers and gpu")
    if parallel > 1 and options[0].workers != 1:
        raise InputError(
            f"models that are trained side by side have one worker each, got parallel {parallel} "
            f"and workers {options[0].workers}: give one of the two"
        )
    with ExitStack() as stack:
        runs = [prepare(workspace, stack, one) for one in options]
        if parallel > 1:
            gpu = options[0].gpu
            with ray_session(), step("train", models=len(runs), parallel=parallel):
                written = train_side_by_side(
                    workspace, runs, _write_model, parallel=parallel, gpu=gpu
                )
            for run in runs:
                _raise_if_not_finite(workspace, run)
            return [result for result in written if result is not None]
        ray_folder = stack.enter_context(scratch_folder(workspace.models, ".ray-"))
        with step("train", models=[run.model_id for run in runs]):
            _fit(ray_folder.absolute(), runs)
        for run in runs:
            _raise_if_not_finite(workspace, run)
        # The folders stay until the last is written: a kill before would train the first anew.
        return [_write_model(workspace, run) for run in runs]


def _fit(ray_folder: Path, runs: list[Run]) -> None:
    from ray_jobs.train_loop import train_loop

    options = runs[0].options
    fit_on_workers(
        train_loop,
        {"runs": [run.settings for run in runs]},
        runs=[(f"{run.options.model} seed {run.options.seed}", run.folder) for run in runs],
        ray_folder=ray_folder,
        workers=options.workers,
        gpu=options.gpu,
    )


def _raise_if_not_finite(workspace: Workspace, run: Run) -> None:
    from ray_jobs.not_finite import raise_if_not_finite

    raise_if_not_finite(
        run.folder,
        workspace.training_sets / run.data.id,
        seed=run.options.seed,
        batch_size=run.options.batch_size,
        learning_rate=run.options.learning_rate,
    )


def _write_model(workspace: Workspace, run: Run) -> dict[str, Any]:
    from ray_jobs.checkpoints import best_file
    from ray_jobs.drift_baseline import write_drift_baseline
    from ray_jobs.evaluate import write_test_scores
    from ray_jobs.warm_up_scores import write_warm_up

    curve = run.curve()
    best = max(curve, key=lambda epoch: epoch["validation_auc"])
    seconds = sum(epoch["seconds"] for epoch in curve)
    parents = {"training_set": run.data.id, "generation": run.data.parents["generation"]}
    if run.options.start_from is not None:
        parents["start_from"] = run.options.start_from
    manifest = Manifest(
        kind="model",
        id=run.model_id,
        parents=parents,
        options=asdict(run.options) | {"ranker": run.settings["ranker"]},
        rows={"train": curve[0]["rows"]},
        info={
            "features": run.data.info["features"],
            "best_epoch": best["epoch"],
            "epochs": len(curve),
            "validation_auc": best["validation_auc"],
            "seconds": seconds,
            "rows_per_second": sum(epoch["rows"] for epoch in curve) / seconds,
            "starts": json_lines(run.folder / STARTS_FILE),
        },
    )
    if run.options.start_from is not None:
        manifest.info["before_training"] = json.loads((run.folder / START_FILE).read_text())
    training_folder = workspace.training_sets / run.data.id
    with write_artifact(workspace.models / run.model_id, manifest) as partial:
        shutil.copy(best_file(run.folder, best["epoch"]), partial / "model.safetensors")
        shutil.copy(run.folder / LAST_FILE, partial / LAST_FILE)
        lines = [json.dumps(epoch) + "\n" for epoch in curve]
        (partial / CURVE_FILE).write_text("".join(lines))
        _write_vocabulary(training_folder, partial)
        manifest.info["metrics"] = write_test_scores(partial, training_folder, manifest)
        write_warm_up(partial, training_folder, manifest)
        write_drift_baseline(partial, training_folder, manifest)
    metrics = manifest.info["metrics"]
    log.info("trained", model_id=run.model_id, **{k: metrics[k] for k in ("auc", "cold_auc")})
    summary = ("best_epoch", "epochs", "validation_auc", "seconds", "rows_per_second")
    return {"model_id": run.model_id, **metrics, **{k: manifest.info[k] for k in summary}}


def _write_vocabulary(training_folder: Path, model_folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(training_folder / "items.safetensors")
    vocabulary = {
        "track_ids": tensors["vocabulary_track_ids"],
        "train_counts": tensors["vocabulary_train_counts"],
    }
    save_file(vocabulary, model_folder / "vocabulary.safetensors")
