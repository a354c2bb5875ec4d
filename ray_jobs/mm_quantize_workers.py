"""The fit of `crescendo quantize --method mm_rq_vae --workers N`: Ray Train workers.

    crescendo quantize --method mm_rq_vae --modalities collaborative,text --workers 4

Every worker reads all rows from Ray's object store (on one machine they are in memory once) and
takes its share of each batch; gradients are added up (`models.mm_rq_vae_training`). On CUDA
devices, one a worker, where Ray has enough of them; else on the CPU. Nothing is written but what
Ray Train keeps of a run, in a scratch folder that ends with the fit.

Shape suffixes: N tracks of any modality, M rows of one worker, D dims of a modality, L levels.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist

from models.mm_rq_vae import MmRqVaeOptions
from models.mm_rq_vae_training import MmRqVaeTrace, fit
from models.quantizers import Fitted, load_quantizer
from models.shards import Shards
from ray_jobs.mm_quantize import Family, encode, side_by_side
from ray_jobs.quantize_workers import book_arrays, read_only, run_in_workers, this_worker
from ray_jobs.ray_session import ray_session


def fit_modalities_in_workers(
    families: Mapping[str, Family],
    options: MmRqVaeOptions,
    *,
    workers: int,
    device: str,
    folder: Path,
) -> dict[str, Fitted]:
    """Book, codes and trace of each family, as `ray_jobs.mm_quantize.fit_modalities`.

    `device`, `folder` and errors are those of `ray_jobs.quantize_workers.fit_in_workers`.
    """
    x, rows = side_by_side(families)
    with ray_session():
        found = run_in_workers(
            worker_fits,
            lambda: {
                "x": {name: ray.put(x_ND.numpy()) for name, x_ND in x.items()},
                "options": asdict(options),
            },
            workers=workers,
            device=device,
            folder=folder,
        )
    # Copies: what Ray hands over is read-only.
    return {
        name: Fitted(
            book=load_quantizer(
                {key: torch.tensor(values) for key, values in one["tensors"].items()},
                one["settings"],
            ),
            codes_NL=torch.tensor(one["codes_NL"])[rows[name]],
            trace=MmRqVaeTrace(**one["trace"]),
        )
        for name, one in found.items()
    }


def worker_fits(settings: dict[str, Any]) -> dict[str, Any] | None:
    """What each worker runs. The first returns books, traces and the codes of all rows."""
    rank, device = this_worker()
    x = {name: read_only(ray.get(there)) for name, there in settings["x"].items()}
    options = settings["options"] | {"hidden": tuple(settings["options"]["hidden"])}
    group = dist.group.WORLD
    books = fit(x, MmRqVaeOptions(**options), device=device, group=group)
    found = {}
    for name, (book, trace) in books.items():
        x_MD = x[name].tensor_split(dist.get_world_size(group))[rank]
        shards = Shards(len(x_MD), group)
        codes_NL = shards.gather(encode(book, x_MD, device), torch.arange(shards.total))
        tensors, book_settings = book_arrays(book)
        found[name] = {
            "tensors": tensors,
            "settings": book_settings,
            "codes_NL": codes_NL.numpy(),
            "trace": asdict(trace),
        }
    return found if rank == 0 else None
