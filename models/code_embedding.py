"""Code tables: the semantic ID of one family as a vector.

Shapes: L levels, D width; `...` any leading shape.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from models.batch import MISSING_CODE
from models.ranker_config import EMBEDDING_STD


class CodeEmbedding(nn.Module):
    """Sum over the levels of one family's code embeddings: codes (..., L) -> (..., D).

    A missing code adds nothing, so a track without the modality is a zero vector.
    """

    def __init__(self, levels: int, codes: int, width: int) -> None:
        super().__init__()
        self.padding_row = levels * codes
        # All levels in one table, level l at rows l * codes; a last row of zeros for missing codes.
        self.table = nn.Embedding(levels * codes + 1, width, padding_idx=self.padding_row)
        nn.init.normal_(self.table.weight, std=EMBEDDING_STD)
        with torch.no_grad():
            self.table.weight[self.padding_row].zero_()
        self.first_row_L: Tensor
        self.register_buffer("first_row_L", torch.arange(levels) * codes, persistent=False)

    @torch.compiler.disable  # compiled and recorded, its gradients came out wrong (torch 2.11)
    def forward(self, codes: Tensor) -> Tensor:
        rows = torch.where(codes == MISSING_CODE, self.padding_row, codes + self.first_row_L)
        flat_LN = rows.flatten(0, -2).t().contiguous()
        summed = _SumOfRows.apply(self.table.weight, flat_LN, self.padding_row)
        return summed.view(*codes.shape[:-1], -1)


class _SumOfRows(Function):
    """sum_l table[rows_LN[l]], (N, D). torch's EmbeddingBag takes six times as long backward."""

    @staticmethod
    def forward(ctx: Any, table_RD: Tensor, rows_LN: Tensor, padding_row: int) -> Tensor:
        ctx.save_for_backward(rows_LN)
        ctx.table_shape, ctx.padding_row = table_RD.shape, padding_row
        summed_ND = table_RD.index_select(0, rows_LN[0])
        for rows_N in rows_LN[1:]:
            summed_ND += table_RD.index_select(0, rows_N)
        return summed_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None, None]:
        (rows_LN,) = ctx.saved_tensors
        grad_RD = grad_ND.new_zeros(ctx.table_shape)
        for rows_N in rows_LN:
            grad_RD.index_add_(0, rows_N, grad_ND)
        grad_RD[ctx.padding_row] = 0.0
        return grad_RD, None, None
