"""Rows split over the workers of a torch.distributed group: what they must add up or agree on.

Each worker holds a run of the rows, in rank order. Sums of counts are exact, and so, for values of
like magnitude, are float64 sums of float32 values: any number of workers finds the same codes.

Shape suffixes: N rows, S sampled rows, D dims.
"""

import torch
import torch.distributed as dist
from torch import Tensor


class Shards:
    """This worker's part in a fit; `Shards(n)` without a process group is the only worker."""

    def __init__(self, rows: int, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        counts = torch.tensor([rows])
        if group is not None:
            counts = torch.zeros(dist.get_world_size(group), dtype=torch.int64)
            counts[dist.get_rank(group)] = rows
            counts = self.sum(counts)
        rank = 0 if group is None else dist.get_rank(group)
        self.first = int(counts[:rank].sum())
        """Number, among all workers' rows, of this worker's first row."""
        self.rows = rows
        self.total = int(counts.sum())

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all workers, on every worker."""
        if self.group is None:
            return values
        device = values.device
        if dist.get_backend(self.group) == "nccl":
            values = values.cuda()
        values = values.clone()
        dist.all_reduce(values, group=self.group)
        return values.to(device)

    def gather(self, x_ND: Tensor, index_S: Tensor) -> Tensor:
        """Rows (S, ...) of all workers' rows by their number, on every worker."""
        local_S = index_S.to(x_ND.device) - self.first
        if self.group is None:
            return x_ND.index_select(0, local_S)
        mine_S = (local_S >= 0) & (local_S < self.rows)
        found = torch.zeros(len(index_S), *x_ND.shape[1:], dtype=x_ND.dtype, device=x_ND.device)
        found[mine_S] = x_ND.index_select(0, local_S[mine_S])
        return self.sum(found)

    def concatenate(self, values: Tensor) -> Tensor:
        """Every worker's tensor, in rank order; all have one shape."""
        if self.group is None:
            return values
        size, rank = dist.get_world_size(self.group), dist.get_rank(self.group)
        parts = torch.zeros(size, *values.shape, dtype=values.dtype, device=values.device)
        parts[rank] = values
        return self.sum(parts).flatten(0, 1)

    def agree(self, values: Tensor) -> Tensor:
        """The first worker's values, on every worker: what each draws or rounds for itself."""
        first = self.group is None or dist.get_rank(self.group) == 0
        return self.sum(values if first else torch.zeros_like(values))
