"""The workers of one Ray Train run, as a training loop needs them: who am I, and small exchanges.

With one worker nothing is exchanged. Tensors of an exchange lie on the worker's device, where the
group's backend (gloo, NCCL) wants them.

Shape suffixes: S rows of one worker's share, N rows of all.
"""

import os
from dataclasses import dataclass
from typing import cast

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor


def take_threads() -> None:
    """A worker's part of its node's cores: Ray gives it one thread. A driver keeps its own."""
    if ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None:
        local_workers = ray.train.get_context().get_local_world_size()
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_workers))


@dataclass(frozen=True, kw_only=True)
class WorkerGroup:
    rank: int
    world_size: int
    device: torch.device
    node: str
    """Id of the node that this worker is on; "" where there is no Ray."""

    @classmethod
    def of_this_worker(cls, *, use_gpu: bool) -> "WorkerGroup":
        context = ray.train.get_context()
        # Without `use_gpu` a worker sees no CUDA device, but in this process Ray Train takes one.
        device = ray.train.torch.get_device() if use_gpu else torch.device("cpu")
        return cls(
            rank=context.get_world_rank(),
            world_size=context.get_world_size(),
            device=cast(torch.device, device),
            node=ray.get_runtime_context().get_node_id() if ray.is_initialized() else "",
        )

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def spread(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model on this worker's device; with several workers, gradients are averaged."""
        if self.world_size == 1:
            return model.to(self.device)
        return cast(torch.nn.Module, ray.train.torch.prepare_model(model))

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all workers, element by element, on each of them and on the host.

        `values` is used up. NaN and inf of one worker reach all.
        """
        if self.world_size > 1:
            dist.all_reduce(values)
        return values.cpu()

    def from_first(self, values: Tensor) -> Tensor:
        """The first worker's values, on the host of every worker."""
        if self.world_size > 1:
            values = values.to(self.device)
            dist.broadcast(values, src=0)
        return values.cpu()

    def gather_to_first(self, share_S: Tensor) -> Tensor | None:
        """The shares (N,) of all workers after each other, on the host of the first; else None.

        All shares have one length.
        """
        if self.world_size == 1:
            return share_S
        share_S = share_S.to(self.device)
        shares = [torch.empty_like(share_S) for _ in range(self.world_size)]
        dist.gather(share_S, shares if self.is_first else None, dst=0)
        return torch.cat(shares).cpu() if self.is_first else None
