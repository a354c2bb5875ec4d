"""The k-means fits of `crescendo quantize --workers N`: Ray Train workers that split the rows.

    crescendo quantize --method psrq --workers 4

Each worker takes one run of the rows from Ray's object store, and all fit together
(`models.shards`): their sums and counts are added up, so books and codes are those of one worker.
On CUDA devices, one a worker, where Ray has enough of them; else on the CPU. Nothing is written but
what Ray Train keeps of a run, in a scratch folder that ends with the fit.

Shape suffixes: N rows, M rows of one worker, D dims, L levels.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import (
    ControllerError,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer, get_device
from torch import Tensor

from feature_repo.errors import InputError
from feature_repo.scratch import scratch_folder
from models.psrq import AutoWeight, FitTrace, LevelTrace, PsrqOptions, fit
from models.quantizers import Fitted, Quantizer, load_quantizer
from models.residual_codebook import Codebook
from models.rows import check_rows
from models.shards import Shards
from ray_jobs.progress import log
from ray_jobs.ray_session import ray_session
from ray_jobs.worker_group import take_threads

CPUS_OF_A_WORKER = 0.5
"""Booked; a worker's threads are its share of the machine's cores, whatever it books."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One fit: the arguments of `models.quantizers.fit_quantizer`."""

    x_ND: Tensor
    options: PsrqOptions
    start: Quantizer | None = None


def fit_in_workers(jobs: Sequence[Job], *, workers: int, device: str, folder: Path) -> list[Fitted]:
    """Fits after each other in one group of workers, which takes long to start, as one would.

    `device`: cpu, cuda, or auto: cuda if Ray has one for each worker. `folder`: where the scratch
    folder is made; on a cluster all its machines must see it. All rows are copied once into Ray's
    object store, which sends to disk what exceeds its memory. InputError for more workers than
    rows, CPUs or, with cuda, CUDA devices; ValueError for rows that no fit takes; RuntimeError
    when a worker failed.
    """
    parts = []
    for job in jobs:
        # Here, before any worker starts: an error names the row's number among all rows.
        x_ND = check_rows(job.x_ND).cpu()
        if workers > len(x_ND):
            raise InputError(f"workers={workers} is more than the {len(x_ND)} rows: give fewer")
        parts.append(np.array_split(x_ND.numpy(), workers))

    def config() -> dict[str, Any]:
        settings = [
            {
                "parts": [ray.put(part_MD) for part_MD in of_job],
                "start": None if job.start is None else ray.put(book_arrays(job.start)),
                "options": asdict(job.options),
            }
            for job, of_job in zip(jobs, parts, strict=True)
        ]
        return {"jobs": settings}

    with ray_session():
        found = run_in_workers(worker_fits, config, workers=workers, device=device, folder=folder)
    return [_fitted(one) for one in found]


def run_in_workers(
    loop: Callable[[dict[str, Any]], Any],
    config: Callable[[], dict[str, Any]],
    *,
    workers: int,
    device: str,
    folder: Path,
) -> Any:
    """What the first worker's `loop` returns; `config` makes its argument, once Ray has room.

    In a Ray that is connected. The rest is as in `fit_in_workers`.
    """
    use_gpu = _use_gpu(workers, device)
    log.info("fit on workers", workers=workers, device="cuda" if use_gpu else "cpu")
    with scratch_folder(folder, ".fit-") as scratch:
        trainer = TorchTrainer(
            loop,
            train_loop_config=config(),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": CPUS_OF_A_WORKER} | ({"GPU": 1} if use_gpu else {}),
            ),
            run_config=RunConfig(
                name="ray",
                storage_path=str(scratch.absolute()),
                # A fit keeps no state from which a new group could go on.
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            ),
        )
        try:
            return trainer.fit().return_value
        except TrainingFailedError as error:
            raise RuntimeError(
                f"the fit ended because {_cause(error)}; nothing was written. Run it again, or "
                "with fewer --workers if memory ran out"
            ) from error


def this_worker() -> tuple[int, torch.device]:
    """Inside a worker: its number and its device, made ready for work."""
    take_threads()
    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return ray.train.get_context().get_world_rank(), device


def worker_fits(settings: dict[str, Any]) -> list[dict[str, Any]] | None:
    """What each worker runs. The first returns books, traces and the codes of all rows."""
    rank, device = this_worker()
    found = [_fit(job, rank, device) for job in settings["jobs"]]
    return found if rank == 0 else None


def _fit(job: dict[str, Any], rank: int, device: torch.device) -> dict[str, Any]:
    x_MD = read_only(ray.get(job["parts"][rank]))
    start: Quantizer | None = None
    if job["start"] is not None:
        tensors, book_settings = ray.get(job["start"])
        loaded = {name: read_only(values) for name, values in tensors.items()}
        start = load_quantizer(loaded, book_settings)
    assert isinstance(start, Codebook | None)
    group = dist.group.WORLD
    options = PsrqOptions(**job["options"])
    book, codes_ML, trace = fit(x_MD, options, start=start, device=device, group=group)
    shards = Shards(len(x_MD), group)
    codes_NL = shards.gather(codes_ML, torch.arange(shards.total))
    tensors, book_settings = book_arrays(book)
    return {
        "tensors": tensors,
        "settings": book_settings,
        "codes_NL": codes_NL.numpy(),
        "trace": asdict(trace),
    }


def _fitted(found: dict[str, Any]) -> Fitted:
    # Copies: what Ray hands over is read-only.
    tensors = {name: torch.tensor(values) for name, values in found["tensors"].items()}
    trace = found["trace"]
    return Fitted(
        book=load_quantizer(tensors, found["settings"]),
        codes_NL=torch.tensor(found["codes_NL"]),
        trace=FitTrace(
            levels=tuple(LevelTrace(**level) for level in trace["levels"]),
            auto=None if trace["auto"] is None else AutoWeight(**trace["auto"]),
        ),
    )


def _use_gpu(workers: int, device: str) -> bool:
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    use_gpu = device == "cuda" or (device == "auto" and gpus >= workers)
    for name, there in (("CPU", int(resources["CPU"])), *([("GPU", gpus)] if use_gpu else [])):
        if there < workers:
            raise InputError(
                f"{workers} workers need a {name} each, Ray has {there}: give fewer "
                f"--workers{', or --device cpu' if name == 'GPU' else ''}"
            )
    return use_gpu


def book_arrays(book: Quantizer) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A book as arrays, which processes share without copies, and JSON."""
    tensors = {name: tensor.cpu().numpy() for name, tensor in book.tensors().items()}
    return tensors, book.settings()


def read_only(values: np.ndarray) -> Tensor:
    """A tensor on the object store's own memory. It must not be written to, nor does a fit."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(values)


def _cause(error: TrainingFailedError) -> str:
    """One line on each worker that failed; when one dies, others lose their connection to it."""
    if not isinstance(error, WorkerGroupError):
        failure = error.controller_failure if isinstance(error, ControllerError) else error
        return f"its workers did not start or died: {_first_line(failure)}"
    failures = sorted(error.worker_failures.items())
    return ", ".join(f"worker {rank} failed: {_first_line(failure)}" for rank, failure in failures)


def _first_line(failure: BaseException) -> str:
    return (str(failure).strip() or type(failure).__name__).splitlines()[0]
