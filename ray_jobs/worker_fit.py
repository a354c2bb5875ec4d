"""A training loop on a group of Ray Train workers, started and watched by the driver.

A worker that dies takes its group with it; the group is started again `RESTARTS` times, and the
loop goes on from its newest checkpoint (`checkpoints.py`). The driver shows what the first worker
writes into a run's folder (`run_folder.py`).

With 0 workers Ray Train runs the loop in this process (its local mode): there is no Ray and no
group to start, and a debugger stops in the loop; what fails ends the command.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_repo.errors import InputError
from ray_jobs.progress import log
from ray_jobs.ray_session import ray_session
from ray_jobs.run_folder import CURVE_FILE, STARTS_FILE, json_lines

if TYPE_CHECKING:
    from ray.train.torch import TorchConfig

SHOW_EVERY_S = 1.0
RESTARTS = 2
"""Times that a group of workers is started again after one of them died."""


def fit_on_workers(
    loop: Callable[[dict[str, Any]], None],
    settings: dict[str, Any],
    *,
    runs: Sequence[tuple[str, Path]],
    ray_folder: Path,
    workers: int,
    gpu: bool | None,
) -> None:
    """Runs `loop(settings)` on each worker and waits until all have ended; 0 workers: runs it here.

    `loop` finds `use_gpu` among its settings. `runs`: the name under which an epoch is shown, and
    the folder that it is written to. `gpu`: one CUDA device a worker; None: where there is one for
    each. InputError where there are not enough; RuntimeError when the last restart has failed; the
    loop's own error where it ran here.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    with _this_process() if workers == 0 else _ray(workers) as gpus:
        needed = max(workers, 1)
        use_gpu = gpus >= needed if gpu is None else gpu
        if use_gpu and gpus < needed:
            fewer = "fewer --workers, or " if workers > 1 else ""
            raise InputError(
                f"{needed} GPU{'s are' if needed > 1 else ' is'} needed, there are {gpus}: give "
                f"{fewer}--cpu"
            )
        trainer = TorchTrainer(
            loop,
            train_loop_config=settings | {"use_gpu": use_gpu},
            torch_config=None if use_gpu or workers else _without_cuda(),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu),
            run_config=RunConfig(
                name="ray",  # in a folder of its own: Ray would resume a run of the same name
                storage_path=str(ray_folder),
                failure_config=FailureConfig(max_failures=RESTARTS),
            ),
        )
        with shown(runs):
            try:
                trainer.fit()
            except TrainingFailedError as error:
                raise RuntimeError(
                    f"the training failed {RESTARTS + 1} times; what it has done is kept, and the "
                    "same command goes on from there"
                ) from error


@contextmanager
def _ray(workers: int) -> Iterator[int]:
    """A connected Ray with a CPU for each worker; yields how many CUDA devices it has."""
    import ray

    with ray_session():
        resources = ray.cluster_resources()
        cpus = int(resources["CPU"])
        if cpus < workers:
            raise InputError(
                f"{workers} workers need a CPU each, Ray has {cpus}: give fewer --workers"
            )
        yield int(resources.get("GPU", 0))


@contextmanager
def _this_process() -> Iterator[int]:
    """Keeps the loop's seed, as far as the CPU goes, to the block; yields how many CUDA devices."""
    import torch

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # of torchrun: each would be a driver
        raise InputError(
            "WORLD_SIZE is set, as by torchrun: with --workers 0 one process trains; start the "
            "command alone, with --workers for more"
        )
    logging.getLogger("ray.train").setLevel(logging.ERROR)  # as `connect_to_ray` has it
    with torch.random.fork_rng(devices=[]):
        yield torch.cuda.device_count()


def _without_cuda() -> "TorchConfig":
    """For a loop on the CPU of this process: Ray Train would take a CUDA device that is there."""
    from ray.train.torch import TorchConfig

    class Config(TorchConfig):
        @property
        def train_func_context(self) -> Callable[[], AbstractContextManager[None]]:
            return nullcontext

    return Config()


@contextmanager
def shown(runs: Sequence[tuple[str, Path]]) -> Iterator[None]:
    """Shows what the workers write into the folders of `runs`, (name, folder), during the block."""
    finished = threading.Event()
    shower = threading.Thread(target=_show, args=(runs, finished), daemon=True)
    shower.start()
    try:
        yield
    finally:
        finished.set()
        shower.join()


def _show(runs: Sequence[tuple[str, Path]], finished: threading.Event) -> None:
    """Logs each epoch and each new start that a worker has written down, until the fit ends."""
    shown = {folder: len(json_lines(folder / CURVE_FILE)) for _, folder in runs}
    starts = {folder: len(json_lines(folder / STARTS_FILE)) + 1 for _, folder in runs}
    while True:
        ended = finished.wait(SHOW_EVERY_S)
        for name, folder in runs:
            for start in json_lines(folder / STARTS_FILE)[starts[folder] :]:
                starts[folder] += 1
                shown[folder] = min(shown[folder], start["epoch"])
                where = f"epoch {start['epoch'] + 1}, batch {start['batch']}"
                log.warning(f"{name}: a worker died; going on from {where}")
            curve = json_lines(folder / CURVE_FILE)
            for metrics in curve[shown[folder] :]:
                rounded = {k: round(v, 4) for k, v in metrics.items() if isinstance(v, float)}
                log.info(f"{name}: epoch {metrics['epoch'] + 1}", **rounded)
            shown[folder] = len(curve)
        if ended:
            return
