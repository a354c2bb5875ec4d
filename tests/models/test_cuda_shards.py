"""Rows split over two CUDA devices joined by NCCL give one device's books, codes and weight.

    pytest -m gpu tests/models/test_cuda_shards.py

Skipped with fewer than two devices.
"""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.multiprocessing.spawn import spawn

from models.psrq import PsrqOptions, fit
from tests.models.blobs import blobs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
OPTIONS = PsrqOptions(codes=256, levels=3)


def rows() -> torch.Tensor:
    return blobs(1_000_000, 64, 600, 5)


def fitted(x_ND: torch.Tensor, device: int, group: dist.ProcessGroup | None) -> dict:
    book, codes_NL, trace = fit(x_ND, OPTIONS, device=torch.device("cuda", device), group=group)
    assert trace.auto is not None
    found = {name: tensor.cpu().contiguous() for name, tensor in book.tensors().items()}
    found["codes_NL"] = codes_NL.cpu().contiguous()
    found["weight"] = torch.tensor([trace.auto.weight], dtype=torch.float64)
    return found


def worker(rank: int, folder: str) -> None:
    torch.cuda.set_device(rank)
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("nccl", init_method=rendezvous, rank=rank, world_size=2)
    x_ND = rows()
    cut = len(x_ND) * 2 // 5  # uneven on purpose
    part = x_ND[:cut] if rank == 0 else x_ND[cut:]
    save_file(fitted(part, rank, dist.group.WORLD), f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


def test_two_devices_fit_what_one_fits(tmp_path: Path):
    spawn(worker, (str(tmp_path),), nprocs=2)
    whole = fitted(rows(), 0, None)
    parts = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    for name, expected in whole.items():
        if name == "codes_NL":
            assert torch.equal(torch.cat([part[name] for part in parts]), expected)
        else:
            for part in parts:
                assert torch.equal(part[name], expected), name
