"""What each Ray Train worker runs for `crescendo train-mme-sid`: steps, validation, checkpoints.

Every worker holds the whole model, takes its users of each batch and adds its gradients to those of
the others, so a run is the same, to rounding, on any number of them. Where it stands is kept in the
run's folder (`run_folder.py`): a group that Ray restarts, and a later command, go on from the
newest checkpoint, which can be in the middle of an epoch. A checkpoint has what is trained and its
moments; the base is read from its own folder again.

Losses stay on the device; every `WINDOW` steps the workers add them up, which is the one wait for
the device. A loss that is NaN or infinite is found there and ends the run.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from feature_repo.artifacts import write_json
from feature_repo.base_checkpoint import read_base
from feature_repo.errors import ArtifactError
from feature_repo.mme_sid_reader import ADAPTER_FILE, MATRIX_FILE, OWN_FILE
from models.matmul_speed import matmul_flops_per_s
from models.mme_sid import MmeSid, own_tensors
from models.mme_sid_items import MmeSidConfig
from models.mme_sid_training import CHOSEN_BY, MmeSidTrainer, MmeSidTraining
from ray_jobs.checkpoints import (
    Checkpoints,
    Progress,
    best_file,
    load_state,
    read_progress,
    write_weights,
)
from ray_jobs.mme_sid_base import load_backbone
from ray_jobs.mme_sid_lora import LoraSettings, adapter_tensors
from ray_jobs.mme_sid_tables import read_tables
from ray_jobs.next_item_fit import is_finished, say_diverged, share_of
from ray_jobs.next_item_set import read_next_items
from ray_jobs.run_folder import CURVE_FILE, FINISHED_FILE, check_owner
from ray_jobs.train_loop import agreed_start, begin
from ray_jobs.worker_group import WorkerGroup, take_threads

WINDOW = 16
"""Steps between two looks at the loss. Only there can a checkpoint be."""


class Trained:
    """What of a model is trained, with the two methods of a module that checkpoints call."""

    def __init__(self, trainer: MmeSidTrainer) -> None:
        self._trainer = trainer

    def state_dict(self) -> dict[str, Tensor]:
        return self._trainer.weights()

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        self._trainer.load_weights(tensors)


def mme_sid_loop(settings: dict[str, Any]) -> None:
    """One worker's whole work. `settings` are plain data, made by `ray_jobs.mme_sid`."""
    take_threads()
    train_one(settings, WorkerGroup.of_this_worker(use_gpu=settings["use_gpu"]))


def train_one(settings: dict[str, Any], group: WorkerGroup) -> None:
    """Trains to the end, or to a loss that is not finite, which is written down."""
    if is_finished(settings, group):
        return
    run_folder = Path(settings["folder"])
    trainer = _trainer(settings, group)
    flops_per_s = matmul_flops_per_s(group.device, trainer.model.dtype)
    start = agreed_start(run_folder, group)
    progress, trained = Progress(), cast(nn.Module, Trained(trainer))
    if start is not None:
        progress = read_progress(start)
        load_state(start, trained, trainer)
    checkpoints = Checkpoints(run_folder, every_s=settings["checkpoint_every_s"])
    begin(run_folder, progress, group)
    if group.is_first:
        checkpoints.rewind(start)

    def checkpoint_if_due() -> None:
        if group.is_first and checkpoints.due():
            check_owner(run_folder, settings["owner"])
            checkpoints.write(progress, trained, trainer)

    while progress.epoch < trainer.options.epochs:
        speed = _train_epoch(trainer, progress, group, checkpoint_if_due)
        if speed is None:
            if group.is_first:
                where = f"epoch {progress.epoch + 1} after step {progress.batch}"
                say_diverged(
                    run_folder,
                    f"the loss became not finite in {where}: give a smaller learning_rate than "
                    f"{trainer.options.learning_rate}",
                )
            return
        valid = trainer.metrics("valid")
        line = {
            "epoch": progress.epoch,
            "train_loss": progress.loss_sum / progress.rows,
            **valid,
            "positions": progress.rows,
            "seconds": progress.seconds,
            **speed,
            "floor_share": speed["flops_per_s"] / (flops_per_s * group.world_size),
        }
        # Every worker has the same metrics, so all take the same decision.
        is_best = progress.end_epoch(valid[CHOSEN_BY])
        if group.is_first:
            check_owner(run_folder, settings["owner"])
            if is_best:
                write_weights(trained, best_file(run_folder, progress.best_epoch))
            with (run_folder / CURVE_FILE).open("a") as stream:
                stream.write(json.dumps(line) + "\n")
        checkpoint_if_due()
    if group.world_size > 1:
        dist.barrier()  # the first has written the weights that all read now
    trainer.load_weights(load_file(best_file(run_folder, progress.best_epoch)))
    test = trainer.metrics("test")
    if group.is_first:
        write_model_files(trainer.model, trainer.data.track_ids_I, run_folder)
        speeds = {"matmul_flops_per_s": flops_per_s, "test": test}
        write_json(run_folder / FINISHED_FILE, asdict(progress) | speeds)
        checkpoints.rewind(None)


def _trainer(settings: dict[str, Any], group: WorkerGroup) -> MmeSidTrainer:
    options = MmeSidTraining(**settings["training"])
    lora, config = LoraSettings(**settings["lora"]), MmeSidConfig(**settings["config"])
    base = read_base(Path(settings["base"]))
    if base.sha256 != settings["base_sha256"]:
        raise ArtifactError(
            f"the base {base.folder} has sha256 {base.sha256} on this node, the run began with "
            f"{settings['base_sha256']}; put the same files there"
        )
    backbone = load_backbone(
        base,
        lora,
        device=group.device,
        bf16=options.bf16,
        recompute=settings["recompute"],
        four_bit=settings["four_bit"],
        compiled=settings["compiled"],
        seed=options.seed,
    )
    torch.manual_seed(options.seed)
    model = MmeSid(backbone, config, **read_tables(Path(settings["folder"]), config))

    return MmeSidTrainer(
        model,
        read_next_items(Path(settings["next_item_set"])),
        options,
        group.device,
        share_of(group),
        rank=lora.rank,
    )


def _train_epoch(
    trainer: MmeSidTrainer,
    progress: Progress,
    group: WorkerGroup,
    after_window: Callable[[], None],
) -> dict[str, float] | None:
    """Trains what is left of the epoch, keeping `progress`; the speed of the steps that were done
    here, over all workers. None if a loss was not finite."""
    done, positions, squares, seconds = 0, 0.0, 0.0, 0.0
    window: list[Tensor] = []
    clock = time.perf_counter()
    for sums_3 in trainer.steps(progress.epoch, first=progress.batch):
        window.append(sums_3)
        last = progress.batch + len(window) == trainer.steps_per_epoch
        if len(window) < WINDOW and not last:
            continue
        loss, of_window, squares_of_window = group.sum(torch.stack(window).sum(0)).tolist()
        if not math.isfinite(loss):
            return None
        now = time.perf_counter()
        progress.loss_sum += loss
        progress.rows += int(of_window)
        progress.batch += len(window)
        progress.seconds += now - clock
        done, seconds = done + len(window), seconds + now - clock
        positions, squares = positions + of_window, squares + squares_of_window
        window.clear()
        after_window()
        clock = time.perf_counter()
    sequences = min(done * trainer.options.batch_size, trainer.sequences)
    if not done:  # the checkpoint was at the epoch's end
        return {"sequences_per_s": 0.0, "tokens_per_s": 0.0, "flops_per_s": 0.0}
    return {
        "sequences_per_s": sequences / seconds,
        "tokens_per_s": positions / seconds,
        "flops_per_s": trainer.needed_flops(positions, squares, done) / seconds,
    }


def write_model_files(model: MmeSid, track_ids_I: np.ndarray, folder: Path) -> None:
    """The three files of a model, as `feature_repo.mme_sid_reader` reads them."""
    with torch.no_grad():
        # In float32, as the item side is: what is kept is not rounded to the decoder's type.
        matrix_ID = model.items.matrix().float().cpu().contiguous()
    own = {name: tensor.cpu().contiguous() for name, tensor in own_tensors(model).items()}
    adapter = {
        name: tensor.contiguous() for name, tensor in adapter_tensors(model.backbone).items()
    }
    save_file(adapter, folder / ADAPTER_FILE)
    save_file(own, folder / OWN_FILE)
    save_file(
        {"track_ids": torch.from_numpy(track_ids_I), "matrix": matrix_ID}, folder / MATRIX_FILE
    )
