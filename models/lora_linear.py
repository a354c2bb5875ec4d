"""A linear layer with LoRA in few passes over memory, for layers that `peft` has made.

    y = W x + s B A drop(x),   s = alpha / r;   W frozen

peft's own layer adds the adapter's product to the base's in separate passes, in the type of the
adapter (float32) and over outputs as wide as the LLM's: of an 8B Llama's MLP that is half as much
time as the matrix products. Here the product is added inside the second matrix product
(beta = 1), in the type of the input, and backward takes the gradients of x, A and B alone.
Parameters are peft's own objects under peft's own names, so saving and loading stay peft's.

Shapes: P positions, I input width, O output width, R rank.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def use_fast_lora(model: nn.Module, adapter: str = "default") -> int:
    """Replaces every LoRA layer of peft over a plain `nn.Linear` without bias; how many it were.

    Others (quantized bases, biases) keep peft's forward.
    """
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if hasattr(child, "lora_A") and not isinstance(child, LoraLinear)
    ]
    replaced = 0
    for parent, name, child in found:
        base: Any = child.base_layer
        if type(base) is nn.Linear and base.bias is None:
            setattr(parent, name, LoraLinear(child, adapter))
            replaced += 1
    return replaced


class LoraLinear(nn.Module):
    """(..., I) -> (..., O). `layer`: peft's, whose parameters this one shares."""

    def __init__(self, layer: Any, adapter: str) -> None:
        super().__init__()
        self.base_layer: nn.Linear = layer.base_layer
        self.lora_A: nn.ModuleDict = layer.lora_A
        self.lora_B: nn.ModuleDict = layer.lora_B
        self.adapter, self.scale = adapter, float(layer.scaling[adapter])
        drop = layer.lora_dropout[adapter]
        self.dropout = float(drop.p) if isinstance(drop, nn.Dropout) else 0.0

    def forward(self, x: Tensor) -> Tensor:
        y_PO: Tensor = _LoraProduct.apply(
            x.flatten(0, -2),
            self.base_layer.weight,
            self.lora_A[self.adapter].weight,
            self.lora_B[self.adapter].weight,
            self.scale,
            self.dropout if self.training else 0.0,
        )
        return y_PO.view(*x.shape[:-1], -1)


class _LoraProduct(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_PI: Tensor,
        weight_OI: Tensor,
        a_RI: Tensor,
        b_OR: Tensor,
        scale: float,
        dropout: float,
    ) -> Tensor:
        dropped_PI, mask_PI = x_PI, None
        if dropout:
            dropped_PI, mask_PI = torch.native_dropout(x_PI, dropout, True)
        low_PR = (dropped_PI @ a_RI.T.to(x_PI.dtype)).mul_(scale)
        y_PO = (x_PI @ weight_OI.T).addmm_(low_PR, b_OR.T.to(x_PI.dtype))
        ctx.save_for_backward(x_PI, mask_PI, low_PR, weight_OI, a_RI, b_OR)
        ctx.scale, ctx.kept = scale, 1 - dropout
        return y_PO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_PO: Tensor) -> tuple[Tensor | None, ...]:
        x_PI, mask_PI, low_PR, weight_OI, a_RI, b_OR = ctx.saved_tensors
        grad_low_PR = (grad_PO @ b_OR.to(grad_PO.dtype)).mul_(ctx.scale)
        grad_b_OR = (grad_PO.T @ low_PR).to(b_OR.dtype)
        if mask_PI is None:
            grad_a_RI = grad_low_PR.T @ x_PI
        else:
            # drop(x) = x * mask / kept, made again rather than kept; the scale goes to the R side.
            grad_low_PR /= ctx.kept
            grad_a_RI = grad_low_PR.T @ (x_PI * mask_PI)
        grad_x_PI = None
        if ctx.needs_input_grad[0]:
            grad_x_PI = grad_PO @ weight_OI
            if mask_PI is None:
                grad_x_PI.addmm_(grad_low_PR, a_RI.to(grad_PO.dtype))
            else:
                grad_x_PI.addcmul_(grad_low_PR @ a_RI.to(grad_PO.dtype), mask_PI)
        return grad_x_PI, None, grad_a_RI.to(a_RI.dtype), grad_b_OR, None, None
