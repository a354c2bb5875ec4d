"""How fast this machine multiplies matrices: the floor that needed arithmetic is held against."""

import statistics
import time

import torch

SIZES = {"cpu": 1024, "cuda": 8192}
"""Of the square matrices, by device: large enough to be bound by arithmetic."""
TURNS, WARM_UP, PRODUCTS = 6, 2, 3


def matmul_flops_per_s(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """FLOP/s of products of random square matrices, the median of a few turns.

    Random and not zeros: those multiply faster than any data does.
    """
    size = size or SIZES[device.type]
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = []
    for turn in range(WARM_UP + TURNS):
        _wait(device)
        started = time.perf_counter()
        for _ in range(PRODUCTS):
            a @ b
        _wait(device)
        if turn >= WARM_UP:
            times.append((time.perf_counter() - started) / PRODUCTS)
    return 2 * size**3 / statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
