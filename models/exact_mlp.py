"""A multilayer perceptron whose output for a row depends on that row and the weights alone.

Its products are those of `models.exact_products`: neither batch, threads nor device change a bit.

Shape suffixes: N rows, M rows of one chunk, D dims of a layer's input, O of its output.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.exact_products import integers
from models.rows import chunks


@dataclass(frozen=True, kw_only=True)
class ExactMlp:
    """Linear layers with ReLU between them: `weights[i]` (O, D), `biases[i]` (O,), float32.

    ValueError where their shapes or types do not fit each other, or values are not finite.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        if not self.weights or len(self.weights) != len(self.biases):
            raise ValueError(f"{len(self.weights)} weights and {len(self.biases)} biases")
        dims = self.weights[0].shape[-1]
        for index, (weight_OD, bias_O) in enumerate(zip(self.weights, self.biases, strict=True)):
            if weight_OD.ndim != 2 or weight_OD.shape[1] != dims or len(bias_O) != len(weight_OD):
                raise ValueError(
                    f"layer {index} takes {dims} dims, got weight {tuple(weight_OD.shape)} "
                    f"and bias {tuple(bias_O.shape)}"
                )
            for tensor in (weight_OD, bias_O):
                if tensor.dtype != torch.float32 or not tensor.isfinite().all():
                    raise ValueError(f"layer {index} must be finite float32, got {tensor.dtype}")
            dims = len(weight_OD)

    @property
    def dims(self) -> int:
        """Of the input."""
        return self.weights[0].shape[1]

    @property
    def out_dims(self) -> int:
        return len(self.weights[-1])

    def __call__(self, x_ND: Tensor) -> Tensor:
        """(N, O) float32 of float32 rows, on their device."""
        here = x_ND.device
        factors = [integers(weight_OD.to(here).double()) for weight_OD in self.weights]
        biases = [bias_O.to(here).double() for bias_O in self.biases]
        y_NO = torch.empty(len(x_ND), self.out_dims, device=x_ND.device)
        for part in chunks(x_ND, max(len(weight_OD) for weight_OD in self.weights)):
            y_MO = x_ND[part].double()
            for index, (weight_OD, scale_O1) in enumerate(factors):
                x_MD, scale_M1 = integers(y_MO.relu() if index else y_MO)
                # Powers of two scale without rounding; the bias is rounded once.
                y_MO = x_MD @ weight_OD.T * scale_M1 * scale_O1.T + biases[index]
            y_NO[part] = y_MO.float()
        return y_NO
