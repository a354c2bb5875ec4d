"""Code tables: the semantic ID of one family as a vector.

Shapes: L levels, D width, R rows of a table, N positions, H width of a projection; `...` any
leading shape.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from models.bag_sums import bag_sums, positions_by_row
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

    def forward(self, codes: Tensor) -> Tensor:
        (summed_ND,) = _SumsOfRows.apply(self._rows(codes), self.padding_row, self.table.weight)
        return summed_ND.view(*codes.shape[:-1], -1)

    def projected(self, codes: Tensor, weight_HD: Tensor) -> tuple[Tensor, Tensor | None]:
        """The sums (..., D), and W times each (..., H), for an attention net's first layer.

        W sum_l E[c_l] = sum_l (W E)[c_l]: on a CPU the table's few hundred rows are projected, and
        not a batch's ten thousand positions. None where that saves nothing: on a CUDA device, whose
        products are cheaper than its reads, and for fewer positions than rows.
        """
        table_RD = self.table.weight
        if table_RD.device.type != "cpu" or codes[..., 0].numel() <= len(table_RD):
            return self(codes), None
        table_RH = linear(table_RD, weight_HD).to(table_RD.dtype)  # autocast may make it bfloat16
        sums = _SumsOfRows.apply(self._rows(codes), self.padding_row, table_RD, table_RH)
        keys, projected = (sum_N.view(*codes.shape[:-1], -1) for sum_N in sums)
        return keys, projected

    def _rows(self, codes: Tensor) -> Tensor:
        """Rows of the table, (N, L)."""
        rows = torch.where(codes == MISSING_CODE, self.padding_row, codes + self.first_row_L)
        return rows.flatten(0, -2)


class _SumsOfRows(Function):
    """sum_l table[rows_NL[:, l]] for each of some tables of R rows, (N, its width)."""

    @staticmethod
    def forward(ctx: Any, rows_NL: Tensor, padding_row: int, *tables: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(rows_NL)
        ctx.table_rows, ctx.padding_row = len(tables[0]), padding_row
        if rows_NL.device.type != "cpu":
            return tuple(_gathered_sum(table, rows_NL) for table in tables)
        starts_N = torch.arange(0, rows_NL.numel(), rows_NL.shape[1])
        return tuple(bag_sums(table, rows_NL.flatten(), starts_N) for table in tables)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (rows_NL,) = ctx.saved_tensors
        by_table = []
        if rows_NL.device.type == "cpu":
            position_of, starts_R = positions_by_row(rows_NL, ctx.table_rows)
            by_table = [bag_sums(grad_N.contiguous(), position_of, starts_R) for grad_N in grads]
        else:
            for grad_N in grads:
                by_table.append(grad_N.new_zeros(ctx.table_rows, grad_N.shape[1]))
                for rows_N in rows_NL.t().contiguous():
                    by_table[-1].index_add_(0, rows_N, grad_N)
        for grad_R in by_table:
            grad_R[ctx.padding_row] = 0.0
        return None, None, *by_table


def _gathered_sum(table: Tensor, rows_NL: Tensor) -> Tensor:
    rows_LN = rows_NL.t().contiguous()
    summed_N = table.index_select(0, rows_LN[0])
    for rows_N in rows_LN[1:]:
        summed_N += table.index_select(0, rows_N)
    return summed_N
