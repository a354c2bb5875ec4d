"""Adam for a ranker, whose ID tables move only at the rows that a batch used.

The moments of other rows wait (torch.optim.SparseAdam's rule): a step costs what the batch costs,
not what the catalogue costs. Everything else is torch's fused Adam.

Shapes: V rows of a table, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.track_embedding import RowGradient, TrackEmbedding

BETAS = (0.9, 0.999)
EPS = 1e-8


class RankerOptimizer:
    """Make it when the model is on its device, and before it is wrapped for several workers."""

    def __init__(self, model: nn.Module, learning_rate: float) -> None:
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        tables = [module for module in model.modules() if isinstance(module, TrackEmbedding)]
        of_tables = {id(table.weight) for table in tables}
        others = [p for p in model.parameters() if id(p) not in of_tables]
        on_cuda = others[0].is_cuda
        # A recorded graph cannot read a learning rate or a step count from the host.
        self._adam = torch.optim.Adam(
            others, lr=learning_rate, betas=BETAS, eps=EPS, fused=True, capturable=on_cuda
        )
        kept = [(table, table.keep_row_gradients()) for table in tables]
        self._cuda = [
            _CudaRows.of(table.weight, gradient, learning_rate)
            for table, gradient in kept
            if gradient is not None
        ]
        on_host = [table.weight for table, gradient in kept if gradient is None]
        self._sparse = (
            torch.optim.SparseAdam(on_host, lr=learning_rate, betas=BETAS, eps=EPS)
            if on_host
            else None
        )

    def zero_grad(self) -> None:
        self._adam.zero_grad()
        if self._sparse is not None:
            self._sparse.zero_grad()

    def step(self) -> None:
        self._adam.step()
        if self._sparse is not None:
            self._sparse.step()
        for rows in self._cuda:
            rows.step()

    def state_tensors(self) -> dict[str, Tensor]:
        """Moments and step counts, as `<parameter>.<exp_avg | exp_avg_sq | step>`."""
        tensors = {}
        for optimizer in (self._adam, self._sparse):
            for parameter, state in {} if optimizer is None else optimizer.state.items():
                for key, value in state.items():
                    tensors[f"{self._names[id(parameter)]}.{key}"] = torch.as_tensor(value)
        for rows in self._cuda:
            for key, value in rows.state().items():
                tensors[f"{self._names[id(rows.table_VD)]}.{key}"] = value
        return tensors

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state_tensors`, for a model of the same shape on any device."""
        for optimizer in (self._adam, self._sparse):
            if optimizer is None:
                continue
            saved = optimizer.state_dict()
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            saved["state"] = {
                number: self._state_of(parameter, tensors)
                for number, parameter in enumerate(parameters)
            }
            optimizer.load_state_dict(saved)
        if self._sparse is not None:  # its step counts are numbers
            for state in self._sparse.state.values():
                state["step"] = int(state["step"])
        for rows in self._cuda:
            for key, value in rows.state().items():
                value.copy_(tensors[f"{self._names[id(rows.table_VD)]}.{key}"])

    def _state_of(self, parameter: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        start = self._names[id(parameter)] + "."
        return {
            key.removeprefix(start): value
            for key, value in tensors.items()
            if key.startswith(start)
        }


@dataclass(frozen=True, kw_only=True)
class _CudaRows:
    """The moments of one ID table on a CUDA device. `step` waits for nothing."""

    table_VD: Tensor
    gradient: RowGradient
    learning_rate: float
    exp_avg_VD: Tensor
    exp_avg_sq_VD: Tensor
    steps: Tensor
    """() float64 on the device, so that a recorded graph counts too."""

    @classmethod
    def of(cls, table_VD: Tensor, gradient: RowGradient, learning_rate: float) -> "_CudaRows":
        return cls(
            table_VD=table_VD,
            gradient=gradient,
            learning_rate=learning_rate,
            exp_avg_VD=torch.zeros_like(table_VD),
            exp_avg_sq_VD=torch.zeros_like(table_VD),
            steps=torch.zeros((), dtype=torch.float64, device=table_VD.device),
        )

    def state(self) -> dict[str, Tensor]:
        return {"exp_avg": self.exp_avg_VD, "exp_avg_sq": self.exp_avg_sq_VD, "step": self.steps}

    @torch.no_grad()
    def step(self) -> None:
        from models.cuda_row_adam import row_adam

        rows_N = torch.cat([rows.flatten() for rows in self.gradient.gathered])
        self.gradient.gathered.clear()
        if dist.is_initialized() and dist.get_world_size() > 1:
            # As DistributedDataParallel does: the mean over the workers. Another worker's rows are
            # known by their marks only, so all rows are looked at.
            dist.all_reduce(self.gradient.values_VD, op=dist.ReduceOp.AVG)
            dist.all_reduce(self.gradient.used_V, op=dist.ReduceOp.MAX)
            rows_N = torch.arange(len(self.table_VD), device=self.table_VD.device)
        self.steps.add_(1)
        scale = (
            self.learning_rate * (1 - BETAS[1] ** self.steps).sqrt() / (1 - BETAS[0] ** self.steps)
        )
        row_adam(
            rows_N,
            self.table_VD,
            self.gradient.values_VD,
            self.exp_avg_VD,
            self.exp_avg_sq_VD,
            self.gradient.used_V,
            scale.float(),
            betas=BETAS,
            eps=EPS,
        )
