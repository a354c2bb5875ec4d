"""The ID-embedding table e^r, whose gradient is kept for the rows that a batch used.

A catalogue has millions of tracks and a batch thousands: a gradient of the whole table, and an
optimizer that walks it, cost more than the ranker. On the CPU the gradient is a sparse tensor; on
a CUDA device a `RowGradient`, whose shapes do not depend on the data, so that a step can be
recorded as a graph.

Shapes: V rows of the table, D width; `...` any leading shape.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from models.batch import ZERO_ROW
from models.ranker_config import EMBEDDING_STD


@dataclass(frozen=True, kw_only=True)
class RowGradient:
    """A table's gradient on a CUDA device: zero outside the rows that are marked."""

    values_VD: Tensor
    used_V: Tensor
    """int32: 1 for rows that took part since the last step."""
    anchor: Tensor
    """A zero that requires a gradient: it makes autograd visit the gather, although the table
    itself has no gradient of autograd's."""
    gathered: list[Tensor] = field(default_factory=list)
    """The rows of each gather since the last step."""

    @classmethod
    def of(cls, table_VD: Tensor) -> "RowGradient":
        return cls(
            values_VD=torch.zeros_like(table_VD),
            used_V=torch.zeros(len(table_VD), dtype=torch.int32, device=table_VD.device),
            anchor=torch.zeros((), device=table_VD.device, requires_grad=True),
        )


class TrackEmbedding(nn.Embedding):
    """ID rows (...) -> (..., D). ZERO_ROW is zero and stays so."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__(rows, width, padding_idx=ZERO_ROW)
        nn.init.normal_(self.weight, std=EMBEDDING_STD)
        with torch.no_grad():
            self.weight[ZERO_ROW] = 0.0
        self.row_gradient: RowGradient | None = None

    def keep_row_gradients(self) -> RowGradient | None:
        """From now on gradients are kept by row; the RowGradient, if that is where they go."""
        if self.weight.device.type != "cuda":
            self.sparse = True  # DistributedDataParallel looks at it, too
            return None
        self.weight.requires_grad_(False)
        self.row_gradient = RowGradient.of(self.weight)
        return self.row_gradient

    def forward(self, rows: Tensor) -> Tensor:
        kept = self.row_gradient
        if not torch.is_grad_enabled() or (kept is None and not self.sparse):
            return super().forward(rows)
        if kept is None:
            return _SparseGather.apply(self.weight, rows)
        kept.gathered.append(rows)
        return _Gather.apply(self.weight, rows, kept.values_VD, kept.used_V, kept.anchor)


class _SparseGather(Function):
    """Its gradient is a sparse tensor of the rows as they came, ZERO_ROW's too: torch's own copies
    the others out."""

    @staticmethod
    def forward(ctx: Any, table_VD: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = table_VD.shape
        return table_VD.index_select(0, rows.flatten()).view(*rows.shape, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        entries = rows.flatten().unsqueeze(0), grad.flatten(0, -2)
        return torch.sparse_coo_tensor(*entries, ctx.shape, check_invariants=False), None


class _Gather(Function):
    @staticmethod
    def forward(
        ctx: Any, table_VD: Tensor, rows: Tensor, values_VD: Tensor, used_V: Tensor, anchor: Tensor
    ) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.values_VD, ctx.used_V = values_VD, used_V
        return table_VD.index_select(0, rows.flatten()).view(*rows.shape, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        (rows,) = ctx.saved_tensors
        flat_N = rows.flatten()
        ctx.values_VD.index_add_(0, flat_N, grad.flatten(0, -2).to(ctx.values_VD.dtype))
        ctx.used_V.index_fill_(0, flat_N, 1)
        return None, None, None, None, None
