"""The numbers beside the IDs, as a model sees them: `models.number_rows` makes and explains them.

Shape suffixes: B rows, N numbers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.batch import Batch
from models.number_rows import CONTEXT


class Numbers(nn.Module):
    """z = (f(x) - mean) / spread of a batch's numbers, 0 for a missing one.

    Gives a list of one tensor (B, N), or of none for a model without numbers, so that a tower's
    input is `torch.cat([..., *numbers(batch)])` either way. Mean and spread are buffers: they are
    saved with the weights. ValueError where the batch holds other numbers than `names`.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.width = len(names)
        if not names:
            return
        self.is_count_N: Tensor
        self.mean_N: Tensor
        self.spread_N: Tensor
        is_count_N = torch.tensor([name not in CONTEXT for name in names])
        self.register_buffer("is_count_N", is_count_N, persistent=False)
        self.register_buffer("mean_N", torch.zeros(len(names)))
        self.register_buffer("spread_N", torch.ones(len(names)))

    def forward(self, batch: Batch) -> list[Tensor]:
        if not self.width:
            return []
        x_BN = batch.numbers_BN
        if x_BN is None or x_BN.shape[1] != self.width:
            came = "none" if x_BN is None else str(x_BN.shape[1])
            raise ValueError(f"Batch.numbers_BN must hold {self.width} numbers a row, got {came}")
        return [self.standardised(x_BN)]

    def standardised(self, x_BN: Tensor) -> Tensor:
        """z (B, N) of raw numbers."""
        f_BN = torch.where(self.is_count_N, torch.log1p(x_BN), x_BN)
        return torch.nan_to_num((f_BN - self.mean_N) / self.spread_N, nan=0.0)
