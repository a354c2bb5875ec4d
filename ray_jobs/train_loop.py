"""What each Ray Train worker runs: one or several runs after each other, epoch by epoch.

Validation is exact over all workers. A run ends when its validation AUC has not risen for
`patience` epochs. Rank 0 writes `last.safetensors` and, when the AUC is the best so far,
`model.safetensors` and a line of `metrics.jsonl` an epoch into the run's folder, which the driver
reads. The Ray checkpoint holds what a restarted worker group needs to go on: which run, which
epoch, the weights and the optimizer's moments.
"""

import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.train
import ray.train.torch
import torch
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel

from models.batch import to_device
from models.ranker_config import RankerConfig
from models.rankers import build_ranker
from models.ranking_metrics import auc, logloss
from ray_jobs.training_stream import (
    ItemSide,
    StreamPlace,
    labels,
    read_item_side,
    score_rows,
    train_batches,
)


@dataclass(kw_only=True)
class Progress:
    """How far the worker group has come."""

    run: int = 0
    epochs_done: int = 0
    """Of this run."""
    best_auc: float = -1.0
    epochs_since_best: int = 0


def train_loop(settings: dict[str, Any]) -> None:
    """One worker's whole work. `settings["runs"]` are plain data, made by `ray_jobs.train`."""
    local_workers = ray.train.get_context().get_local_world_size()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_workers))
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        for run, settings_of_run in enumerate(settings["runs"]):
            _train(settings_of_run, Progress(run=run), None)
        return
    with checkpoint.as_directory() as folder:
        progress = Progress(**json.loads((Path(folder) / "progress.json").read_text()))
        _train(settings["runs"][progress.run], progress, Path(folder))
    for run in range(progress.run + 1, len(settings["runs"])):
        _train(settings["runs"][run], Progress(run=run), None)


def _train(settings: dict[str, Any], progress: Progress, resume_from: Path | None) -> None:
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.manual_seed(settings["seed"])
    config = RankerConfig(**settings["ranker"])
    folder = Path(settings["training_set"])
    side = read_item_side(folder, config.history_length)
    model = ray.train.torch.prepare_model(build_ranker(config))
    device = ray.train.torch.get_device()
    optimizer = torch.optim.Adam(model.parameters(), lr=settings["learning_rate"])
    if resume_from is not None:
        load_state(resume_from, _unwrapped(model), optimizer)
    validation = pq.read_table(folder / "validation.parquet")
    truth = labels(validation).numpy()
    while (
        progress.epochs_done < settings["epochs"]
        and progress.epochs_since_best < settings["patience"]
    ):
        started = time.perf_counter()
        place = StreamPlace(
            seed=settings["seed"],
            epoch=progress.epochs_done,
            batch_size=settings["batch_size"],
            rank=rank,
            world_size=world_size,
        )
        train_loss, rows = _train_epoch(model, optimizer, folder, side, place, device)
        seconds = time.perf_counter() - started
        scores = _score_everywhere(model, side, validation, rank, world_size, device)
        metrics = {
            "run": progress.run,
            "epoch": progress.epochs_done,
            "train_loss": train_loss,
            "validation_auc": auc(truth, scores),
            "validation_logloss": logloss(truth, scores),
            "rows": rows,
            "seconds": seconds,
        }
        # Every worker has all scores, so all take the same decision.
        is_best = metrics["validation_auc"] > progress.best_auc
        progress.epochs_done += 1
        progress.best_auc = max(progress.best_auc, metrics["validation_auc"])
        progress.epochs_since_best = 0 if is_best else progress.epochs_since_best + 1
        if rank > 0:
            ray.train.report(metrics)
            continue
        with tempfile.TemporaryDirectory() as partial:
            state = Path(partial)
            save_state(state, _unwrapped(model), optimizer)
            (state / "progress.json").write_text(json.dumps(asdict(progress)))
            _write_epoch(Path(settings["folder"]), _unwrapped(model), metrics, is_best)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(partial))


def _write_epoch(
    folder: Path, model: torch.nn.Module, metrics: dict[str, Any], is_best: bool
) -> None:
    """What the driver takes when the run has ended."""
    for name in ("last", "model") if is_best else ("last",):
        save_file(model.state_dict(), folder / f".{name}.partial")
        os.replace(folder / f".{name}.partial", folder / f"{name}.safetensors")
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(metrics) + "\n")


def _train_epoch(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    folder: Path,
    side: ItemSide,
    place: StreamPlace,
    device: torch.device,
) -> tuple[float, int]:
    """Mean training loss of this worker's rows, and the rows of all workers."""
    model.train()
    total_loss = torch.zeros((), device=device)
    mine = rows = 0
    for batch, labels_B, global_rows in train_batches(folder, side, place):
        logits_B = model(to_device(batch, device))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            logits_B, labels_B.to(device), reduction="sum"
        )
        optimizer.zero_grad()
        # DDP averages over workers: times their number, over the global batch's rows, it is the
        # mean over the global batch, however its rows are divided.
        (loss * place.world_size / global_rows).backward()
        optimizer.step()
        total_loss += loss.detach()
        mine += len(labels_B)
        rows += global_rows
    if rows == 0:
        raise ValueError(f"{folder} has no batch of as many training rows as workers")
    mean = float(total_loss) / max(1, mine)
    if not np.isfinite(mean):
        raise FloatingPointError(
            f"the training loss of epoch {place.epoch} is {mean}; lower --learning-rate"
        )
    return mean, rows


def _score_everywhere(
    model: torch.nn.Module,
    side: ItemSide,
    rows: pa.Table,
    rank: int,
    world_size: int,
    device: torch.device,
) -> np.ndarray:
    """Scores of all rows on every worker, each having scored its share: metrics stay exact."""
    model.eval()
    share = -(-rows.num_rows // world_size)
    mine = rows.slice(rank * share, share)
    scores_S = torch.zeros(share)
    scores_S[: mine.num_rows] = torch.from_numpy(score_rows(_unwrapped(model), side, mine))
    if world_size > 1:
        gathered = [torch.zeros(share, device=device) for _ in range(world_size)]
        torch.distributed.all_gather(gathered, scores_S.to(device))
        scores_S = torch.cat(gathered).cpu()
    return scores_S[: rows.num_rows].numpy()


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The ranker itself: with several workers it is wrapped for gradient averaging."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def save_state(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """`model.safetensors` and Adam's moments, `optimizer.safetensors`."""
    save_file(model.state_dict(), folder / "model.safetensors")
    moments = {
        f"{parameter}.{name}": value
        for parameter, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }
    save_file(moments, folder / "optimizer.safetensors")


def load_state(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The inverse of `save_state`, into a model and an optimizer of the same shape."""
    model.load_state_dict(load_file(folder / "model.safetensors"))
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(folder / "optimizer.safetensors").items():
        parameter, name = key.split(".")
        state.setdefault(int(parameter), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
