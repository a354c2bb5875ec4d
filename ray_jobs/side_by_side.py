"""Rankers that share nothing but their rows, trained side by side: a Ray task each, N at a time.

Called by `train_all` for `crescendo study --parallel N`. A task is a group of one worker: it trains
its run to the end and writes its model, so that scoring the test part is shared out too. A worker
that dies has its task started again `RESTARTS` times, which goes on from the run's checkpoint. GPUs
are split evenly: N runs on one card book 1/N of it each.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from ray_jobs.train_run import Run
from ray_jobs.worker_fit import RESTARTS, shown

Written = dict[str, Any] | None
"""What `train_all` answers of a run; None where its loss was no longer finite."""


def train_side_by_side(
    workspace: Workspace,
    runs: Sequence[Run],
    write_model: Callable[[Workspace, Run], dict[str, Any]],
    *,
    parallel: int,
    gpu: bool | None,
) -> list[Written]:
    """Trains and writes all runs, `parallel` at a time, in a connected Ray; answers in their order.

    `gpu` None: where Ray has a GPU. InputError where Ray has too few CPUs, or no GPU for `gpu`;
    RuntimeError when the last restart of a run has failed, which ends the others.
    """
    import ray

    resources = ray.cluster_resources()
    cpus, gpus = int(resources["CPU"]), int(resources.get("GPU", 0))
    if cpus < parallel:
        raise InputError(f"{parallel} runs at a time need a CPU each, Ray has {cpus}: give fewer")
    if gpu and not gpus:
        raise InputError("runs on a GPU need one, Ray has 0: give --cpu")
    use_gpu = bool(gpus) if gpu is None else gpu
    task = ray.remote(
        num_cpus=1, num_gpus=_share(gpus, parallel) if use_gpu else 0, max_retries=RESTARTS
    )(_train_and_write)
    threads = max(1, (os.cpu_count() or 1) // parallel)
    absolute = Workspace(workspace.root.absolute())  # a worker may stand in another folder
    numbers: dict[Any, int] = {}
    written: list[Written] = [None] * len(runs)
    with shown([(f"{run.options.model} seed {run.options.seed}", run.folder) for run in runs]):
        try:
            for number, run in enumerate(runs):
                if len(numbers) == parallel:
                    _take_one(numbers, written)
                numbers[task.remote(absolute, run, write_model, use_gpu, threads)] = number
            while numbers:
                _take_one(numbers, written)
        finally:  # a Ray that others use too would train on
            for unfinished in numbers:
                ray.cancel(unfinished, force=True)
    return written


def _share(gpus: int, parallel: int) -> float:
    """Of one card, in the ten-thousandths that Ray counts; a run never books more than one."""
    return 1.0 if gpus >= parallel else gpus * 10_000 // parallel / 10_000


def _take_one(numbers: dict[Any, int], written: list[Written]) -> None:
    """Waits until a task has ended and keeps its answer; raises what the task raised."""
    import ray

    (ended,), _ = ray.wait(list(numbers))
    number = numbers.pop(ended)
    try:
        written[number] = ray.get(ended)
    except ray.exceptions.WorkerCrashedError as error:
        raise RuntimeError(
            f"a run's worker died {RESTARTS + 1} times; what all runs have done is kept, and the "
            "same command goes on from there"
        ) from error


def _train_and_write(
    workspace: Workspace,
    run: Run,
    write_model: Callable[[Workspace, Run], dict[str, Any]],
    use_gpu: bool,
    threads: int,
) -> Written:
    """One task, in a Ray worker process."""
    import ray
    import torch

    from ray_jobs.train_loop import train_one
    from ray_jobs.worker_group import WorkerGroup

    torch.set_num_threads(threads)
    group = WorkerGroup(
        rank=0,
        world_size=1,
        device=torch.device("cuda" if use_gpu else "cpu"),
        node=ray.get_runtime_context().get_node_id(),
    )
    return write_model(workspace, run) if train_one(run.settings, group) else None
