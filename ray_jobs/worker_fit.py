"""A training loop on a group of Ray Train workers, started and watched by the driver.

A worker that dies takes its group with it; the group is started again `RESTARTS` times, and the
loop goes on from its newest checkpoint (`checkpoints.py`). The driver shows what the first worker
writes into a run's folder (`run_folder.py`).
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from feature_repo.errors import InputError
from ray_jobs.progress import log
from ray_jobs.run_folder import CURVE_FILE, STARTS_FILE, json_lines

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
    """Runs `loop(settings)` on each worker, in a connected Ray, and waits until all have ended.

    `runs`: the name under which an epoch is shown, and the folder that it is written to. `gpu`:
    one CUDA device a worker; None: where Ray has one for each. InputError where Ray has not enough
    of either; RuntimeError when the last restart has failed.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    use_gpu = gpus >= workers if gpu is None else gpu
    for name, there in (("CPU", int(resources["CPU"])), *([("GPU", gpus)] if use_gpu else [])):
        if there < workers:
            raise InputError(
                f"{workers} workers need a {name} each, Ray has {there}: give fewer "
                f"--workers{', or --cpu' if name == 'GPU' else ''}"
            )
    trainer = TorchTrainer(
        loop,
        train_loop_config=settings,
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
                f"the training failed {RESTARTS + 1} times; what it has done is kept, and the same "
                "command goes on from there"
            ) from error


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
