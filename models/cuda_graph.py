"""A step of many small kernels on a CUDA device, launched as one graph.

Lloyd's iterations and the picks of k-means++ launch dozens of kernels of a few microseconds each:
launched one by one, the device waits for the host most of the time.
"""

from collections.abc import Callable

import torch


class Replayed:
    """Calls `step` once, records it, and then replays the record.

    `step` must work in place on tensors that outlive it, and wait for nothing.
    """

    def __init__(self, step: Callable[[], None], device: torch.device) -> None:
        self.step, self.device = step, device
        self.graph: torch.cuda.CUDAGraph | None = None
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        if self.device.type != "cuda" or self.calls == 1:
            self.step()  # the first call also compiles and loads kernels, which no graph may hold
            return
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            torch.cuda.synchronize(self.device)
            # thread_local: threads that read ahead may pin memory meanwhile, which ends a recording
            # of the default mode. The first run of a process compiles meanwhile, later ones do not.
            with (
                torch.cuda.device(self.device),
                torch.cuda.graph(self.graph, capture_error_mode="thread_local"),
            ):
                self.step()
        self.graph.replay()
