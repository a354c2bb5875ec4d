"""Adam for a ranker, whose ID tables move only at the rows that a batch used.

The moments of other rows wait (torch.optim.SparseAdam's rule): a step costs what the batch costs,
not what the catalogue costs. Everything else is torch's fused Adam.

Shapes: V rows of a table, D width.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.bag_sums import bag_sums, positions_by_row
from models.batch import ZERO_ROW
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
        self._rows = [_TableRows(table, learning_rate) for table in tables]

    def zero_grad(self) -> None:
        self._adam.zero_grad()
        for rows in self._rows:
            rows.table_VD.grad = None

    def step(self) -> None:
        self._adam.step()
        for rows in self._rows:
            rows.step()

    def state_tensors(self) -> dict[str, Tensor]:
        """Moments and step counts, as `<parameter>.<exp_avg | exp_avg_sq | step>`."""
        tensors = {}
        for parameter, state in self._adam.state.items():
            for key, value in state.items():
                tensors[f"{self._names[id(parameter)]}.{key}"] = torch.as_tensor(value)
        for rows in self._rows:
            for key, value in rows.state().items():
                tensors[f"{self._names[id(rows.table_VD)]}.{key}"] = value
        return tensors

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state_tensors`, for a model of the same shape on any device."""
        saved = self._adam.state_dict()
        parameters = [p for group in self._adam.param_groups for p in group["params"]]
        saved["state"] = {
            number: self._state_of(parameter, tensors)
            for number, parameter in enumerate(parameters)
        }
        self._adam.load_state_dict(saved)
        for rows in self._rows:
            for key, value in rows.state().items():
                value.copy_(tensors[f"{self._names[id(rows.table_VD)]}.{key}"])

    def _state_of(self, parameter: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        start = self._names[id(parameter)] + "."
        return {
            key.removeprefix(start): value
            for key, value in tensors.items()
            if key.startswith(start)
        }


class _TableRows:
    """One ID table and its moments. On a CUDA device `step` waits for nothing.

    m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,
    e -= lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps)  at step t
    """

    def __init__(self, table: TrackEmbedding, learning_rate: float) -> None:
        self.gradient = table.keep_row_gradients()
        self.table_VD, self.learning_rate = table.weight, learning_rate
        zeros_VD = torch.zeros_like(table.weight, requires_grad=False)
        self.exp_avg_VD, self.exp_avg_sq_VD = zeros_VD, zeros_VD.clone()
        # () float64 on the device, so that a recorded graph counts too.
        self.steps = torch.zeros((), dtype=torch.float64, device=zeros_VD.device)
        on_host = len(zeros_VD) if self.gradient is None else 0
        self.place_V = torch.zeros(on_host, dtype=torch.int64)
        """On the host, a position of the batch at which a row was used last."""

    def state(self) -> dict[str, Tensor]:
        return {"exp_avg": self.exp_avg_VD, "exp_avg_sq": self.exp_avg_sq_VD, "step": self.steps}

    @torch.no_grad()
    def step(self) -> None:
        self.steps.add_(1)
        scale = (
            self.learning_rate * (1 - BETAS[1] ** self.steps).sqrt() / (1 - BETAS[0] ** self.steps)
        )
        if self.gradient is None:
            self._step_on_host(float(scale))
        else:
            self._step_on_cuda(self.gradient, scale.float())

    def _step_on_host(self, scale: float) -> None:
        gradient = self.table_VD.grad
        if gradient is None:
            return
        # Coalesced where workers have exchanged it, else with a row as often as it was used.
        rows_N, values_ND = gradient._indices()[0], gradient._values()
        positions_N = torch.arange(len(rows_N))
        self.place_V.scatter_(0, rows_N, positions_N)
        place_N = self.place_V[rows_N]
        first_N = place_N == positions_N
        used_U = rows_N[first_N]
        number_N = (first_N.cumsum(0) - 1)[place_N]
        grad_UD = bag_sums(values_ND, *positions_by_row(number_N.unsqueeze(1), len(used_U)))
        grad_UD[used_U == ZERO_ROW] = 0.0
        mean_UD = self.exp_avg_VD.index_select(0, used_U).lerp_(grad_UD, 1 - BETAS[0])
        square_UD = self.exp_avg_sq_VD.index_select(0, used_U).mul_(BETAS[1])
        square_UD.addcmul_(grad_UD, grad_UD, value=1 - BETAS[1])
        self.exp_avg_VD.index_copy_(0, used_U, mean_UD)
        self.exp_avg_sq_VD.index_copy_(0, used_U, square_UD)
        moved_UD = self.table_VD.index_select(0, used_U)
        moved_UD.addcdiv_(mean_UD, square_UD.sqrt_().add_(EPS), value=-scale)
        self.table_VD.index_copy_(0, used_U, moved_UD)

    def _step_on_cuda(self, gradient: RowGradient, scale: Tensor) -> None:
        from models.cuda_row_adam import row_adam

        rows_N = torch.cat([rows.flatten() for rows in gradient.gathered])
        gradient.gathered.clear()
        if dist.is_initialized() and dist.get_world_size() > 1:
            # As DistributedDataParallel does: the mean over the workers. Another worker's rows are
            # known by their marks only, so all rows are looked at.
            dist.all_reduce(gradient.values_VD, op=dist.ReduceOp.AVG)
            dist.all_reduce(gradient.used_V, op=dist.ReduceOp.MAX)
            rows_N = torch.arange(len(self.table_VD), device=self.table_VD.device)
        row_adam(
            rows_N,
            self.table_VD,
            gradient.values_VD,
            self.exp_avg_VD,
            self.exp_avg_sq_VD,
            gradient.used_V,
            scale,
            betas=BETAS,
            eps=EPS,
        )
