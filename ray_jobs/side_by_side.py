"""Rankers that share nothing but their rows, trained side by side: N workers, each a run at a time.

Called by `train_all` for `crescendo study --parallel N`. A worker is a Ray actor that takes one run
after the other, since starting one (torch, a CUDA context) costs more than a small run. It trains a
run to the end and writes its model, so that scoring the test part is shared out too. A worker that
dies is started again, and its run is tried `RESTARTS` times more, from the run's checkpoint on.
GPUs are split evenly: of N workers on one card each books 1/N.
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
    from ray.util import ActorPool

    resources = ray.cluster_resources()
    cpus, gpus = int(resources["CPU"]), int(resources.get("GPU", 0))
    if cpus < parallel:
        raise InputError(f"{parallel} runs at a time need a CPU each, Ray has {cpus}: give fewer")
    if gpu and not gpus:
        raise InputError("runs on a GPU need one, Ray has 0: give --cpu")
    use_gpu = bool(gpus) if gpu is None else gpu
    workers = min(parallel, len(runs))
    start = ray.remote(
        num_cpus=1,
        num_gpus=_share(gpus, workers) if use_gpu else 0,
        max_restarts=-1,  # bounded by the tries of each run
        max_task_retries=RESTARTS,
    )(_Worker)
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    absolute = Workspace(workspace.root.absolute())  # a worker may stand in another folder
    group = [start.remote(absolute, write_model, use_gpu, threads) for _ in range(workers)]
    pool = ActorPool(group)
    written: list[Written] = [None] * len(runs)
    with shown([(f"{run.options.model} seed {run.options.seed}", run.folder) for run in runs]):
        try:
            for numbered in enumerate(runs):
                pool.submit(lambda worker, of_run: worker.train.remote(*of_run), numbered)
            while pool.has_next():
                number, answer = pool.get_next_unordered()
                written[number] = answer
        except ray.exceptions.RayActorError as error:
            raise RuntimeError(
                f"a run's worker died {RESTARTS + 1} times; what all runs have done is kept, and "
                "the same command goes on from there"
            ) from error
        finally:  # a Ray that others use too would train on
            for worker in group:
                ray.kill(worker)
    return written


def _share(gpus: int, workers: int) -> float:
    """Of one card, in the ten-thousandths that Ray counts, so that all workers find a place.

    A worker never books more than one card.
    """
    of_one_card = -(-workers // gpus)
    return 10_000 // of_one_card / 10_000


class _Worker:
    """A Ray actor."""

    def __init__(
        self,
        workspace: Workspace,
        write_model: Callable[[Workspace, Run], dict[str, Any]],
        use_gpu: bool,
        threads: int,
    ) -> None:
        import ray
        import torch

        from ray_jobs.worker_group import WorkerGroup

        torch.set_num_threads(threads)
        self.workspace, self.write_model = workspace, write_model
        self.group = WorkerGroup(
            rank=0,
            world_size=1,
            device=torch.device("cuda:0" if use_gpu else "cpu"),
            node=ray.get_runtime_context().get_node_id(),
        )

    def train(self, number: int, run: Run) -> tuple[int, Written]:
        """Trains and writes one run. Returns `number` and what `write_model` answers."""
        from ray_jobs.train_loop import train_one

        finite = train_one(run.settings, self.group)
        return number, self.write_model(self.workspace, run) if finite else None
