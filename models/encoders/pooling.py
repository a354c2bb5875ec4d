"""One vector a text from the states of its tokens, sequences packed one after the other.

Shapes: P tokens of S sequences, D dims.
"""

import torch
from torch import Tensor


def sequence_means(x_PD: Tensor, lengths_S: Tensor, *, skip_first: bool = False) -> Tensor:
    """(S, D) float32: the mean of each sequence's rows, summed in float32.

    bf16 sums would cost 3e-6 of cosine. `lengths_S` integers that sum to P. `skip_first` leaves
    out each sequence's first row, a start token whose state is many times as long as the others
    and says nothing of the text; every sequence needs a second one then.
    """
    least = 2 if skip_first else 1
    if int(lengths_S.min()) < least:
        raise ValueError(f"lengths_S: expected at least {least}, got {int(lengths_S.min())}")
    lengths_S = lengths_S.to(x_PD.device, torch.int64)
    wide_PD = x_PD.to(torch.float32, copy=skip_first)
    counts_S = lengths_S
    if skip_first:
        wide_PD[lengths_S.cumsum(0) - lengths_S] = 0
        counts_S = lengths_S - 1
    sums_SD = torch.segment_reduce(wide_PD, "sum", lengths=lengths_S, unsafe=True)
    return sums_SD / counts_S[:, None]
