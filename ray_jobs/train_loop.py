"""What each Ray Train worker runs: one or several runs after each other, epoch by epoch.

A run ends when its validation AUC has not risen for `patience` epochs. Where it stands is kept in
its folder (`run_folder.py`), which all workers see: a group that Ray restarts, and a later command
with any number of workers, go on from the newest checkpoint there.

Losses stay on the device; every `WINDOW` batches the workers add them up, which is the one wait for
the device. A loss that is NaN or infinite is found there, to the batch, and ends all runs.

Shape suffixes: B rows of this worker's part of a batch, W batches of a window.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from feature_repo.artifacts import write_json
from models.ranker_config import RankerConfig
from models.ranker_optimizer import RankerOptimizer
from models.rankers import build_ranker
from ray_jobs.checkpoints import (
    Checkpoints,
    Progress,
    best_file,
    checkpoint_path,
    load_state,
    newest_checkpoint,
    read_progress,
    write_weights,
)
from ray_jobs.run_folder import (
    CURVE_FILE,
    FINISHED_FILE,
    LAST_FILE,
    NOT_FINITE_FILE,
    START_FILE,
    STARTS_FILE,
    check_owner,
)
from ray_jobs.train_step import TrainStep
from ray_jobs.training_stream import (
    ItemSide,
    StreamPlace,
    read_item_side,
    train_batches,
    train_rows,
)
from ray_jobs.validation import validate
from ray_jobs.worker_group import WorkerGroup, take_threads

WINDOW = 64
"""Batches between two looks at the loss. Only there can a checkpoint be."""


def train_loop(settings: dict[str, Any]) -> None:
    """One worker's whole work. `settings["runs"]` are plain data, made by `ray_jobs.train`."""
    take_threads()
    group = WorkerGroup.of_this_worker(use_gpu=settings["use_gpu"])
    for of_run in settings["runs"]:
        if not train_one(of_run, group):
            return


def train_one(settings: dict[str, Any], group: WorkerGroup) -> bool:
    """Trains one model to its end. False if the loss was no longer finite."""
    run_folder, data_folder = Path(settings["folder"]), Path(settings["training_set"])
    for folder in (run_folder, data_folder):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"a worker on this node does not see {folder}: on a cluster the workspace has to "
                "lie on storage that every node mounts under the same path"
            )
    if group.is_first:
        check_owner(run_folder, settings["owner"])
    finished = torch.tensor((run_folder / FINISHED_FILE).exists())
    if group.from_first(finished.int()):  # one answer for all, should a node see files later
        return True
    torch.manual_seed(settings["seed"])
    config = RankerConfig(**settings["ranker"])
    ranker = build_ranker(config)
    start = agreed_start(run_folder, group)
    if start is None and settings["start_weights"] is not None:
        ranker.load_state_dict(ranker.state_dict() | load_file(settings["start_weights"]))
    # The optimizer first: it changes how gradients of ID tables are kept, which DDP has to see.
    optimizer = RankerOptimizer(ranker.to(group.device), settings["learning_rate"])
    model = group.spread(ranker)
    progress = Progress()
    if start is not None:
        progress = read_progress(start)
        load_state(start, unwrapped(model), optimizer)
    checkpoints = Checkpoints(run_folder, every_s=settings["checkpoint_every_s"])
    begin(run_folder, progress, group)
    side = read_item_side(data_folder, config.history_length, group.device)
    step = TrainStep(
        model,
        optimizer,
        side.lookup,
        batch_size=settings["batch_size"],
        steps=settings["epochs"] * train_rows(data_folder) // settings["batch_size"],
        workers=group.world_size,
        bf16=settings["bf16"],
    )
    validation = data_folder / "validation.parquet"
    if group.is_first:
        checkpoints.rewind(start)
    if start is None and settings["warm"]:
        before = validate(unwrapped(model), side, validation, group)
        if group.is_first:
            write_json(run_folder / START_FILE, before)

    def checkpoint_if_due() -> None:
        # The first worker decides alone: the others hold the same weights and need not know.
        if group.is_first and checkpoints.due():
            check_owner(run_folder, settings["owner"])
            checkpoints.write(progress, unwrapped(model), optimizer)

    while progress.epoch < settings["epochs"] and progress.epochs_since_best < settings["patience"]:
        model.train()
        if not _train_epoch(step, side, settings, progress, group, checkpoint_if_due):
            return False
        metrics: dict[str, Any] = {
            "epoch": progress.epoch,
            "train_loss": progress.loss_sum / progress.rows,
            **validate(unwrapped(model), side, validation, group),
            "rows": progress.rows,
            "seconds": progress.seconds,
        }
        # Every worker has the same metrics, so all take the same decision.
        is_best = progress.end_epoch(metrics["validation_auc"])
        if group.is_first:
            check_owner(run_folder, settings["owner"])
            if is_best:
                write_weights(unwrapped(model), best_file(run_folder, metrics["epoch"]))
            with (run_folder / CURVE_FILE).open("a") as stream:
                stream.write(json.dumps(metrics) + "\n")
        checkpoint_if_due()
    if group.is_first:
        write_weights(unwrapped(model), run_folder / LAST_FILE)
        write_json(run_folder / FINISHED_FILE, asdict(progress))
        checkpoints.rewind(None)
    return True


def agreed_start(run_folder: Path, group: WorkerGroup) -> Path | None:
    """The checkpoint that the first worker found whole, so that all begin from one."""
    found = newest_checkpoint(run_folder) if group.is_first else None
    place = torch.tensor([-1, -1])
    if found is not None:
        progress = read_progress(found)
        place = torch.tensor([progress.epoch, progress.batch])
    epoch, batch = group.from_first(place).tolist()
    if epoch < 0:
        return None
    return checkpoint_path(run_folder, Progress(epoch=epoch, batch=batch))


def begin(run_folder: Path, progress: Progress, group: WorkerGroup) -> None:
    """Says which process this rank is; the first drops the epochs that will be trained again."""
    (run_folder / "workers").mkdir(exist_ok=True)
    write_json(
        run_folder / "workers" / f"{group.rank}.json", {"pid": os.getpid(), "node": group.node}
    )
    if not group.is_first:
        return
    curve = run_folder / CURVE_FILE
    lines = curve.read_text().splitlines(keepends=True) if curve.exists() else []
    curve.write_text("".join(lines[: progress.epoch]))
    start = {"epoch": progress.epoch, "batch": progress.batch, "workers": group.world_size}
    with (run_folder / STARTS_FILE).open("a") as stream:
        stream.write(json.dumps(start) + "\n")


def _train_epoch(
    step: TrainStep,
    side: ItemSide,
    settings: dict[str, Any],
    progress: Progress,
    group: WorkerGroup,
    after_window: Callable[[], None],
) -> bool:
    """Trains what is left of the epoch, keeping `progress`. False if a loss was not finite."""
    place = StreamPlace(
        seed=settings["seed"],
        epoch=progress.epoch,
        batch_size=settings["batch_size"],
        rank=group.rank,
        world_size=group.world_size,
        first_batch=progress.batch,
    )
    loss_W = torch.zeros(WINDOW, dtype=torch.float64, device=group.device)
    rows: list[int] = []
    """Of the global batches of this window."""
    clock = time.perf_counter()

    def end_window() -> bool:
        nonlocal clock
        total_W = group.sum(loss_W[: len(rows)].clone())
        if not total_W.isfinite().all():
            if group.is_first:
                first = int((~total_W.isfinite()).int().argmax())
                batch, loss = progress.batch + first, str(float(total_W[first]))
                found = {"epoch": progress.epoch, "batch": batch, "loss": loss}
                write_json(Path(settings["folder"]) / NOT_FINITE_FILE, found)
            return False
        progress.loss_sum += float(total_W.sum())
        progress.rows += sum(rows)
        progress.batch += len(rows)
        rows.clear()
        now = time.perf_counter()
        progress.seconds, clock = progress.seconds + now - clock, now
        return True

    for batch, labels_B, global_rows in train_batches(Path(settings["training_set"]), side, place):
        if not rows:
            _seed_window(place, progress.batch)
        weight = group.world_size / global_rows
        loss_W[len(rows)] = step(batch, labels_B, weight)
        rows.append(global_rows)
        if len(rows) == WINDOW:
            if not end_window():
                return False
            after_window()
            clock = time.perf_counter()
    if rows and not end_window():
        return False
    if progress.rows == 0:
        raise ValueError(
            f"{settings['training_set']} has no batch of as many training rows as workers"
        )
    return True


def _seed_window(place: StreamPlace, batch: int) -> None:
    """Seeds torch by the place in the run, so that a resumed one draws the same numbers."""
    seeds = np.random.SeedSequence((place.seed, place.epoch, batch, place.rank))
    torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The ranker itself: with several workers it is wrapped for gradient averaging."""
    return model.module if isinstance(model, DistributedDataParallel) else model
