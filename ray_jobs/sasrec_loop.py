"""What each Ray Train worker runs for `crescendo sasrec`: epochs, validation, checkpoints.

Every worker takes its users of each batch and adds its gradients to those of the others, so a run
is the same, to rounding, on any number of them. It ends when validation nDCG@10 has not risen for
`patience` epochs; then the best epoch's weights rank the test targets. Where it stands is kept in
the run's folder (`run_folder.py`): a group that Ray restarts, and a later command, go on from the
newest checkpoint, after a whole epoch.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import load_file

from feature_repo.artifacts import write_json
from models.sasrec_training import CHOSEN_BY, SasRecOptions, Trainer
from ray_jobs.checkpoints import (
    Checkpoints,
    Progress,
    best_file,
    load_state,
    read_progress,
    write_weights,
)
from ray_jobs.next_item_fit import is_finished, say_diverged, share_of
from ray_jobs.next_item_set import read_next_items
from ray_jobs.run_folder import CURVE_FILE, FINISHED_FILE, check_owner
from ray_jobs.train_loop import agreed_start, begin
from ray_jobs.worker_group import WorkerGroup, take_threads


def sasrec_loop(settings: dict[str, Any]) -> None:
    """One worker's whole work. `settings` are plain data, made by `ray_jobs.sasrec`."""
    take_threads()
    train_one(settings, WorkerGroup.of_this_worker(use_gpu=settings["use_gpu"]))


def train_one(settings: dict[str, Any], group: WorkerGroup) -> None:
    """Trains to the end, or to a loss that is not finite, which is written down."""
    if is_finished(settings, group):
        return
    run_folder = Path(settings["folder"])
    trainer = Trainer(
        read_next_items(Path(settings["next_item_set"])),
        SasRecOptions(**settings["options"]),
        group.device,
        share_of(group),
    )
    start = agreed_start(run_folder, group)
    progress = Progress()
    if start is not None:
        progress = read_progress(start)
        load_state(start, trainer.model, trainer)
    checkpoints = Checkpoints(run_folder, every_s=settings["checkpoint_every_s"])
    begin(run_folder, progress, group)
    if group.is_first:
        checkpoints.rewind(start)
    options = trainer.options
    while progress.epoch < options.epochs and progress.epochs_since_best < options.patience:
        try:
            trained = trainer.epoch(progress.epoch)
        except ValueError as error:  # the same on every worker: it is told from the summed loss
            if group.is_first:
                say_diverged(run_folder, str(error))
            return
        valid = trainer.metrics("valid")
        line = {"epoch": progress.epoch, **trained, **valid}
        # Every worker has the same metrics, so all take the same decision.
        is_best = progress.end_epoch(valid[CHOSEN_BY])
        if group.is_first:
            check_owner(run_folder, settings["owner"])
            if is_best:
                write_weights(trainer.model, best_file(run_folder, progress.best_epoch))
            with (run_folder / CURVE_FILE).open("a") as stream:
                stream.write(json.dumps(line) + "\n")
            if checkpoints.due():
                checkpoints.write(progress, trainer.model, trainer)
    if group.world_size > 1:
        dist.barrier()  # the first has written the weights that all read now
    trainer.model.load_state_dict(load_file(best_file(run_folder, progress.best_epoch)))
    test = trainer.metrics("test")
    if group.is_first:
        write_json(run_folder / FINISHED_FILE, asdict(progress) | {"test": test})
        checkpoints.rewind(None)
