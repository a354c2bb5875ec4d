"""Trains a ranker with Ray Train on a training set from the feature store.

    crescendo train --model mcca --label-rule complete

Writes `models/<model_id>/`: `model.safetensors` (best epoch by validation AUC),
`last.safetensors`, `vocabulary.safetensors`, `metrics.jsonl` (one line an epoch),
`test_scores.parquet` and the manifest with options, parents and test metrics.
"""

import json
import shutil
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from feature_repo.artifacts import Manifest, content_id, write_artifact
from feature_repo.errors import InputError
from feature_repo.scratch import scratch_folder
from feature_repo.workspace import Workspace
from ray_jobs.impressions import ImpressionOptions
from ray_jobs.progress import log, step
from ray_jobs.ray_session import ray_session
from ray_jobs.training_set import TrainingSetOptions, training_set

MODELS = ("mcca", "din")
SHOW_EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    model: str = "mcca"
    generation: str | None = None
    impressions: ImpressionOptions = field(default_factory=ImpressionOptions)
    epochs: int = 12
    """Passes over the training part at most."""
    patience: int = 2
    """Epochs without a better validation AUC after which a run ends."""
    batch_size: int = 512
    """Rows of one optimizer step, over all workers."""
    learning_rate: float = 3e-3
    embedding_width: int = 64
    workers: int = 1
    gpu: bool | None = None
    """One CUDA device a worker; by default where Ray has one for each."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise InputError(f"model must be one of {MODELS}, got {self.model!r}")
        for name in ("epochs", "patience", "batch_size", "embedding_width", "workers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size < self.workers:
            raise InputError(
                f"batch_size must be at least the {self.workers} workers, got {self.batch_size}"
            )
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate must be above 0, got {self.learning_rate}")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One model that a fit trains: its options, its data, and what its workers are told."""

    options: TrainOptions
    data: Manifest
    model_id: str
    settings: dict[str, Any]


def train(workspace: Workspace, options: TrainOptions) -> dict[str, Any]:
    """Trains and evaluates one model. Returns `model_id`, the test metrics and the speed."""
    (result,) = train_all(workspace, [options])
    return result


def train_all(workspace: Workspace, options: Sequence[TrainOptions]) -> list[dict[str, Any]]:
    """Trains models after each other in one group of workers: starting one takes 15 s.

    All must agree on `workers` and `gpu`.
    """
    if len({(one.workers, one.gpu) for one in options}) != 1:
        raise InputError("models that are trained together must agree on workers and gpu")
    with scratch_folder(workspace.models, ".fit-") as scratch:
        scratch = scratch.absolute()
        runs = [_prepare(workspace, scratch, one) for one in options]
        with ray_session(), step("train", models=[run.model_id for run in runs]):
            _fit(scratch, runs)
        return [_write_model(workspace, run) for run in runs]


def _prepare(workspace: Workspace, scratch: Path, options: TrainOptions) -> Run:
    from models.ranker_config import RankerConfig
    from ray_jobs.training_stream import read_item_side

    data = training_set(
        workspace,
        TrainingSetOptions(generation=options.generation, impressions=options.impressions),
    )
    folder = workspace.training_sets / data.id
    vocabulary = read_item_side(folder, data.info["history_length"]).vocabulary
    ranker = RankerConfig(
        model=options.model,
        id_rows=vocabulary.rows,
        families=data.info["families"],
        levels=data.info["levels"],
        codes=data.info["codes"],
        history_length=data.info["history_length"],
        embedding_width=options.embedding_width,
    )
    model_id = content_id("model", data.id, asdict(ranker), asdict(options))
    run_folder = scratch / model_id
    run_folder.mkdir()
    settings = {
        "folder": str(run_folder),
        "training_set": str(folder.absolute()),
        "ranker": asdict(ranker),
        "epochs": options.epochs,
        "patience": options.patience,
        "batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "seed": options.seed,
    }
    return Run(options=options, data=data, model_id=model_id, settings=settings)


def _fit(scratch: Path, runs: list[Run]) -> None:
    """Starts the workers and waits for them, showing each epoch."""
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from ray_jobs.train_loop import train_loop

    options = runs[0].options
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    use_gpu = gpus >= options.workers if options.gpu is None else options.gpu
    for name, there in (("CPU", int(resources["CPU"])), *([("GPU", gpus)] if use_gpu else [])):
        if there < options.workers:
            raise InputError(
                f"{options.workers} workers need a {name} each, Ray has {there}: give fewer "
                f"--workers{', or --cpu' if name == 'GPU' else ''}"
            )
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"runs": [run.settings for run in runs]},
        scaling_config=ScalingConfig(num_workers=options.workers, use_gpu=use_gpu),
        run_config=RunConfig(
            name="ray",  # in a folder of its own: Ray would resume a run of the same name
            storage_path=str(scratch),
            failure_config=FailureConfig(max_failures=2),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    finished = threading.Event()
    shower = threading.Thread(target=_show, args=(runs, finished), daemon=True)
    shower.start()
    try:
        trainer.fit()
    finally:
        finished.set()
        shower.join()


def _curve(run: Run) -> list[dict[str, Any]]:
    """One line an epoch; of an epoch that a restart repeated, the later one."""
    path = Path(run.settings["folder"]) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    by_epoch = {line["epoch"]: line for line in map(json.loads, lines)}
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def _show(runs: list[Run], finished: threading.Event) -> None:
    """Logs each epoch that a worker has written down, until the fit has ended."""
    shown = dict.fromkeys((run.model_id for run in runs), 0)
    while True:
        ended = finished.wait(SHOW_EVERY_S)
        for run in runs:
            curve = _curve(run)
            for metrics in curve[shown[run.model_id] :]:
                rounded = {k: round(v, 4) for k, v in metrics.items() if isinstance(v, float)}
                name, seed = run.options.model, run.options.seed
                log.info(f"{name} seed {seed}: epoch {metrics['epoch'] + 1}", **rounded)
            shown[run.model_id] = len(curve)
        if ended:
            return


def _write_model(workspace: Workspace, run: Run) -> dict[str, Any]:
    from ray_jobs.evaluate import write_test_scores

    trained = Path(run.settings["folder"])
    curve = _curve(run)
    best = max(curve, key=lambda epoch: epoch["validation_auc"])
    seconds = sum(epoch["seconds"] for epoch in curve)
    manifest = Manifest(
        kind="model",
        id=run.model_id,
        parents={"training_set": run.data.id, "generation": run.data.parents["generation"]},
        options=asdict(run.options) | {"ranker": run.settings["ranker"]},
        rows={"train": curve[0]["rows"]},
        info={
            "features": run.data.info["features"],
            "best_epoch": best["epoch"],
            "epochs": len(curve),
            "validation_auc": best["validation_auc"],
            "seconds": seconds,
            "rows_per_second": sum(epoch["rows"] for epoch in curve) / seconds,
        },
    )
    training_folder = workspace.training_sets / run.data.id
    with write_artifact(workspace.models / run.model_id, manifest) as partial:
        for name in ("model.safetensors", "last.safetensors"):
            shutil.copy(trained / name, partial / name)
        lines = [json.dumps(epoch) + "\n" for epoch in curve]
        (partial / "metrics.jsonl").write_text("".join(lines))
        _write_vocabulary(training_folder, partial)
        manifest.info["metrics"] = write_test_scores(partial, training_folder, manifest)
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
