"""How `benchmarks/encoders.py` times work on a device, and goes on where a way fails."""

import time
import traceback
from collections.abc import Callable
from typing import Any

import torch


class Timer:
    """Seconds a call on one device: a call to warm up, one to see how long it takes, then as many
    as fill `turn_s`, at least one."""

    def __init__(self, device: torch.device, turn_s: float) -> None:
        self.device, self.turn_s = device, turn_s

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def __call__(self, work: Callable[[], Any]) -> float:
        work()
        self.wait()
        started = time.perf_counter()
        work()
        self.wait()
        calls = max(1, round(self.turn_s / (time.perf_counter() - started)))
        started = time.perf_counter()
        for _ in range(calls):
            work()
        self.wait()
        return (time.perf_counter() - started) / calls

    def tried(self, name: str, work: Callable[[], Any]) -> float | None:
        """The same, printed; None with the error where the way does not work."""
        started = time.perf_counter()
        try:
            with torch.inference_mode():
                seconds = self(work)
        except Exception as error:
            lines = traceback.format_exc(limit=-3)
            print(
                f"    {name}: failed: {type(error).__name__}: {error}\n{lines}"[:1500], flush=True
            )
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            return None
        whole = time.perf_counter() - started
        print(f"    {name:<44} {seconds * 1e3:9.3f} ms   ({whole:.1f} s)", flush=True)
        return seconds


def product_flops(timer: Timer) -> float:
    """FLOP/s of a bf16 product of 8192 cubed on CUDA, of float32 and 1024 on the CPU."""
    cuda = timer.device.type == "cuda"
    size, dtype = (8192, torch.bfloat16) if cuda else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=timer.device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / timer(lambda: a @ b)
