"""Sums of a table's rows by bags: EmbeddingBag forward, and its gradient as one more of the same.

    out_n  = sum_l table[rows_nl]
    grad_r = sum of out's gradient over the n at which row r occurs

EmbeddingBag's own gradient takes twenty times as long on a CPU as a sort of the rows and its
forward pass, and `index_add_` six times as long.

Shapes: N positions, L rows of each, R rows of the table.
"""

import numpy as np
import torch
from torch import Tensor


def bag_sums(table: Tensor, rows: Tensor, starts: Tensor) -> Tensor:
    """For each bag the sum of its rows of the table; bags follow each other in `rows`.

    Without a gradient.
    """
    return torch.embedding_bag(table.detach(), rows, starts)[0]


def positions_by_row(rows_NL: Tensor, table_rows: int) -> tuple[Tensor, Tensor]:
    """The positions n at which each row occurs, row by row; and (R,) where a row's begin.

    On the CPU.
    """
    rows = rows_NL.flatten()
    # numpy sorts 16-bit integers by radix, ten times as fast as others.
    narrow = rows.to(torch.int16 if table_rows <= 2**15 else torch.int32).numpy()
    order = torch.from_numpy(np.argsort(narrow, kind="stable"))
    counts_R = torch.bincount(rows, minlength=table_rows)
    return order // rows_NL.shape[1], counts_R.cumsum(0) - counts_R
