"""A Triton kernel: one Adam step on the rows of a table that a batch used.

Imported only where the table lies on a CUDA device; `models.ranker_optimizer` calls it. One
program a used position: the first one that comes to a row takes its mark and updates it, the
others leave. Reads and writes 7 rows a used row, whatever the size of the table.

Shape suffixes: V rows of the table, D width, N used positions.
"""

import triton
import triton.language as tl
from torch import Tensor

from models.batch import ZERO_ROW


@triton.jit
def _row_adam_kernel(
    rows_ptr,
    table_ptr,
    grad_ptr,
    mean_ptr,
    square_ptr,
    used_ptr,
    scale_ptr,
    beta1: tl.constexpr,
    beta2: tl.constexpr,
    eps: tl.constexpr,
    zero_row: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
):
    row = tl.load(rows_ptr + tl.program_id(0)).to(tl.int64)
    if tl.atomic_xchg(used_ptr + row, 0) == 1:
        dims = tl.arange(0, BD)
        inside = dims < D
        at = row * D + dims
        grad = tl.load(grad_ptr + at, mask=inside, other=0.0)
        tl.store(grad_ptr + at, tl.zeros([BD], tl.float32), mask=inside)
        if row != zero_row:
            # m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  e -= scale m / (sqrt(v) + eps)
            mean = tl.load(mean_ptr + at, mask=inside, other=0.0)
            square = tl.load(square_ptr + at, mask=inside, other=0.0)
            mean += (1 - beta1) * (grad - mean)
            square += (1 - beta2) * (grad * grad - square)
            scale = tl.load(scale_ptr)
            value = tl.load(table_ptr + at, mask=inside, other=0.0)
            tl.store(table_ptr + at, value - scale * mean / (tl.sqrt(square) + eps), mask=inside)
            tl.store(mean_ptr + at, mean, mask=inside)
            tl.store(square_ptr + at, square, mask=inside)


def row_adam(
    rows_N: Tensor,
    table_VD: Tensor,
    grad_VD: Tensor,
    mean_VD: Tensor,
    square_VD: Tensor,
    used_V: Tensor,
    scale: Tensor,
    *,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """Updates the marked rows among `rows_N` in place; clears their marks and gradients.

    `scale` () is lr sqrt(1 - b2^t) / (1 - b1^t) at step t.
    """
    width = table_VD.shape[1]
    _row_adam_kernel[(rows_N.numel(),)](
        rows_N,
        table_VD,
        grad_VD,
        mean_VD,
        square_VD,
        used_V,
        scale,
        beta1=betas[0],
        beta2=betas[1],
        eps=eps,
        zero_row=ZERO_ROW,
        D=width,
        BD=triton.next_power_of_2(width),
        num_warps=1,
    )
