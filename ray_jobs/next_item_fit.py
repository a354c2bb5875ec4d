"""What the jobs that train on a next-item set share: the driver's side and the worker's.

`crescendo sasrec` and `crescendo train-mme-sid` differ in what they train and in what they keep.
Both run a loop on Ray Train's workers in a run's folder (`run_folder.py`); both end with an error
that the first worker wrote down where a loss is not finite, which no restart would mend.
"""

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from feature_repo.artifacts import write_json
from feature_repo.errors import InputError
from feature_repo.scratch import scratch_folder
from feature_repo.workspace import Workspace
from models.sasrec_training import Share
from ray_jobs.run_folder import FINISHED_FILE, OWNER_FILE, PREFIX, check_owner, say_where_it_goes_on
from ray_jobs.worker_fit import fit_on_workers
from ray_jobs.worker_group import WorkerGroup

DIVERGED_FILE = "diverged.json"


def fit_next_items(
    workspace: Workspace,
    run: Path,
    loop: Callable[[dict[str, Any]], None],
    settings: dict[str, Any],
    *,
    name: str,
    set_id: str,
    workers: int,
    gpu: bool | None,
) -> None:
    """Runs the loop to its end in the run's folder, on `settings` and what every loop needs.

    InputError for a loss that was not finite, and as `fit_on_workers`.
    """
    say_where_it_goes_on(run, run.name.removeprefix(PREFIX))
    owner = uuid.uuid4().hex
    (run / OWNER_FILE).write_text(owner)
    (run / DIVERGED_FILE).unlink(missing_ok=True)
    common = {
        "folder": str(run),
        "owner": owner,
        "next_item_set": str((workspace.training_sets / set_id).absolute()),
    }
    with scratch_folder(workspace.models, ".ray-") as ray_folder:
        fit_on_workers(
            loop,
            settings | common,
            runs=[(name, run)],
            ray_folder=ray_folder.absolute(),
            workers=workers,
            gpu=gpu,
        )
    if (run / DIVERGED_FILE).exists():
        raise InputError(json.loads((run / DIVERGED_FILE).read_text())["error"])


def is_finished(settings: dict[str, Any], group: WorkerGroup) -> bool:
    """Whether the run has ended already; FileNotFoundError where this node lacks its folders."""
    folder = Path(settings["folder"])
    needed = [
        folder,
        *(Path(settings[key]) for key in ("next_item_set", "base") if key in settings),
    ]
    for one in needed:
        if not one.is_dir():
            raise FileNotFoundError(
                f"a worker on this node does not see {one}: on a cluster the workspace (and the "
                "base) has to lie on storage that every node mounts under the same path"
            )
    if group.is_first:
        check_owner(folder, settings["owner"])
    finished = torch.tensor((folder / FINISHED_FILE).exists())
    # One answer for all, should a node see files later.
    return bool(group.from_first(finished.int()))


def share_of(group: WorkerGroup) -> Share:
    """Which worker of how many, as the trainers take it."""

    def add_up(tensor: Tensor) -> None:
        if group.world_size > 1:
            dist.all_reduce(tensor)

    return Share(rank=group.rank, workers=group.world_size, add_up=add_up)


def say_diverged(folder: Path, error: str) -> None:
    write_json(folder / DIVERGED_FILE, {"error": error})
