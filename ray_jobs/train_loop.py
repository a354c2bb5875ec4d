"""What each Ray Train worker runs: epochs over the stream, exact validation, checkpoints.

A checkpoint is a folder with `model.safetensors`, `optimizer.safetensors` and `epoch.json`, so
that a restarted run goes on from it. Each epoch's metrics are appended to `metrics.jsonl` in the
run's folder, which the driver shows while it waits.
"""

import json
import os
import tempfile
import time
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


def train_loop(settings: dict[str, Any]) -> None:
    """One worker's whole run. `settings` is plain data, made by `ray_jobs.train`."""
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    torch.manual_seed(settings["seed"])
    config = RankerConfig(**settings["ranker"])
    folder = Path(settings["training_set"])
    side = read_item_side(folder, config.history_length)
    model = ray.train.torch.prepare_model(build_ranker(config))
    device = ray.train.torch.get_device()
    optimizer = torch.optim.Adam(model.parameters(), lr=settings["learning_rate"])
    first_epoch = _restore(model, optimizer)
    validation = pq.read_table(folder / "validation.parquet")
    for epoch in range(first_epoch, settings["epochs"]):
        started = time.perf_counter()
        place = StreamPlace(
            seed=settings["seed"],
            epoch=epoch,
            batch_size=settings["batch_size"],
            rank=rank,
            world_size=world_size,
        )
        train_loss, rows = _train_epoch(model, optimizer, folder, side, place, device)
        seconds = time.perf_counter() - started
        scores = _score_everywhere(model, side, validation, rank, world_size, device)
        truth = labels(validation).numpy()
        metrics = {
            "epoch": epoch,
            "train_loss": train_loss,
            "validation_auc": auc(truth, scores),
            "validation_logloss": logloss(truth, scores),
            "rows": rows,
            "seconds": seconds,
        }
        with tempfile.TemporaryDirectory() as partial:
            checkpoint = None
            if rank == 0:
                _save(Path(partial), model, optimizer, epoch)
                checkpoint = ray.train.Checkpoint.from_directory(partial)
                with Path(settings["metrics_file"]).open("a") as stream:
                    stream.write(json.dumps(metrics) + "\n")
            ray.train.report(metrics, checkpoint=checkpoint)


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


def _save(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, epoch: int
) -> None:
    save_file(_unwrapped(model).state_dict(), folder / "model.safetensors")
    moments = {
        f"{parameter}.{name}": value
        for parameter, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }
    save_file(moments, folder / "optimizer.safetensors")
    (folder / "epoch.json").write_text(json.dumps({"epoch": epoch}))


def _restore(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Loads the run's last checkpoint, if it has one. Returns the epoch to start with."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as path:
        folder = Path(path)
        _unwrapped(model).load_state_dict(load_file(folder / "model.safetensors"))
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in load_file(folder / "optimizer.safetensors").items():
            parameter, name = key.split(".")
            state.setdefault(int(parameter), {})[name] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        return int(json.loads((folder / "epoch.json").read_text())["epoch"]) + 1
