"""Trains a ranker with Ray Train on a training set from the feature store.

    crescendo train --model mcca --label-rule complete

Writes `models/<model_id>/`: `model.safetensors` (best epoch by validation AUC),
`last.safetensors`, `vocabulary.safetensors`, `metrics.jsonl` (one line an epoch),
`test_scores.parquet` and the manifest with options, parents and test metrics.
"""

import json
import shutil
import threading
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from feature_repo.artifacts import Manifest, content_id, write_artifact
from feature_repo.errors import InputError
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
    epochs: int = 3
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
        for name in ("epochs", "batch_size", "embedding_width", "workers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate must be above 0, got {self.learning_rate}")


def train(workspace: Workspace, options: TrainOptions) -> dict[str, Any]:
    """Trains and evaluates one model. Returns `model_id`, the test metrics and the speed."""
    data = training_set(
        workspace,
        TrainingSetOptions(generation=options.generation, impressions=options.impressions),
    )
    folder = workspace.training_sets / data.id
    settings = _settings(folder, data, options)
    model_id = content_id("model", data.id, settings["ranker"], asdict(options))
    run = workspace.models / f".run-{model_id}-{uuid.uuid4().hex[:8]}"
    run.mkdir(parents=True)
    settings["metrics_file"] = str((run / "metrics.jsonl").absolute())
    try:
        with ray_session(), step("train", model=options.model, model_id=model_id):
            started = time.perf_counter()
            best, last = _fit(run, settings, options)
            seconds = time.perf_counter() - started
        return _write_model(
            workspace,
            run,
            best,
            last,
            Manifest(
                kind="model",
                id=model_id,
                parents={"training_set": data.id, "generation": data.parents["generation"]},
                options=asdict(options) | {"ranker": settings["ranker"]},
                info={"features": data.info["features"], "seconds": seconds},
            ),
        )
    finally:
        shutil.rmtree(run)


def _settings(folder: Path, data: Manifest, options: TrainOptions) -> dict[str, Any]:
    from models.ranker_config import RankerConfig
    from ray_jobs.training_stream import read_item_side

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
    return {
        "training_set": str(folder.absolute()),
        "ranker": asdict(ranker),
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "seed": options.seed,
    }


def _fit(run: Path, settings: dict[str, Any], options: TrainOptions) -> tuple[Path, Path]:
    """Runs the workers. Returns the best and the last checkpoint's folders."""
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from ray_jobs.train_loop import train_loop

    use_gpu = options.gpu
    if use_gpu is None:
        use_gpu = ray.cluster_resources().get("GPU", 0) >= options.workers
    trainer = TorchTrainer(
        train_loop,
        train_loop_config=settings,
        scaling_config=ScalingConfig(num_workers=options.workers, use_gpu=use_gpu),
        run_config=RunConfig(
            name="ray",  # in a folder of its own: Ray would resume a run of the same name
            storage_path=str(run.absolute()),
            failure_config=FailureConfig(max_failures=2),
            checkpoint_config=CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="validation_auc"
            ),
        ),
    )
    finished = threading.Event()
    shower = threading.Thread(target=_show, args=(settings, finished), daemon=True)
    shower.start()
    try:
        result = trainer.fit()
    finally:
        finished.set()
        shower.join()
    if result.checkpoint is None or not result.best_checkpoints:
        raise RuntimeError(f"training ended without a checkpoint: {result.error}")
    best, _ = max(result.best_checkpoints, key=lambda pair: pair[1]["validation_auc"])
    return Path(best.path), Path(result.checkpoint.path)


def _show(settings: dict[str, Any], finished: threading.Event) -> None:
    """Logs each epoch that a worker has written down, until the run has ended."""
    path, shown = Path(settings["metrics_file"]), 0
    while True:
        ended = finished.wait(SHOW_EVERY_S)
        lines = path.read_text().splitlines() if path.exists() else []
        for line in lines[shown:]:
            metrics = json.loads(line)
            rounded = {k: round(v, 4) for k, v in metrics.items() if isinstance(v, float)}
            log.info(f"epoch {metrics['epoch'] + 1} of {settings['epochs']}", **rounded)
        shown = len(lines)
        if ended:
            return


def _write_model(
    workspace: Workspace, run: Path, best: Path, last: Path, manifest: Manifest
) -> dict[str, Any]:
    from ray_jobs.evaluate import write_test_scores

    training_folder = workspace.training_sets / manifest.parents["training_set"]
    with write_artifact(workspace.models / manifest.id, manifest) as partial:
        shutil.copy(best / "model.safetensors", partial / "model.safetensors")
        shutil.copy(last / "model.safetensors", partial / "last.safetensors")
        shutil.copy(run / "metrics.jsonl", partial / "metrics.jsonl")
        _write_vocabulary(training_folder, partial)
        curve = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        rows = sum(epoch["rows"] for epoch in curve)
        manifest.info["rows_per_second"] = rows / sum(epoch["seconds"] for epoch in curve)
        manifest.info["metrics"] = write_test_scores(partial, training_folder, manifest)
        manifest.rows = {"train": curve[0]["rows"]}
    metrics = manifest.info["metrics"]
    log.info("trained", model_id=manifest.id, **{k: metrics[k] for k in ("auc", "cold_auc")})
    speed = {key: manifest.info[key] for key in ("seconds", "rows_per_second")}
    return {"model_id": manifest.id, **metrics, **speed}


def _write_vocabulary(training_folder: Path, model_folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(training_folder / "items.safetensors")
    vocabulary = {
        "track_ids": tensors["vocabulary_track_ids"],
        "train_counts": tensors["vocabulary_train_counts"],
    }
    save_file(vocabulary, model_folder / "vocabulary.safetensors")
