"""Target attention over a history as one differentiable function, for the CPU.

    h_bj = k_bj + q_b            a_bj = PReLU(h_bj)
    s_bj = (w . a_bj + c) m_bj   out_b = sum_j s_bj key_bj

The same as the plain operations of `models.attention`, with a backward pass written out: autograd's
PReLU costs ten times what the rest of this costs there, and two matrix-vector products give the
gradients of both w and the slopes. Holds one copy of the hidden layer and of its negative part.

Shapes: B rows, T history positions, D width of a key, H hidden width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class AttentionPooling(Function):
    """out_BD of keys_BTD, projected keys_BTH, query_BH, mask_BT, slope_H, weight_H, bias ()."""

    @staticmethod
    def forward(
        ctx: Any,
        keys_BTD: Tensor,
        projected_BTH: Tensor,
        query_BH: Tensor,
        mask_BT: Tensor,
        slope_H: Tensor,
        weight_H: Tensor,
        bias: Tensor,
    ) -> Tensor:
        hidden_NH = (projected_BTH + query_BH.unsqueeze(1)).flatten(0, 1)
        negative_NH = hidden_NH.clamp(max=0)
        # w . PReLU(h) = w . h + ((slope - 1) w) . min(h, 0)
        weights_N = torch.mv(hidden_NH, weight_H)
        weights_N.addmv_(negative_NH, (slope_H - 1) * weight_H)
        weights_BT = (weights_N + bias).view_as(mask_BT) * mask_BT
        ctx.save_for_backward(
            keys_BTD, hidden_NH, negative_NH, mask_BT, slope_H, weight_H, weights_BT
        )
        return torch.bmm(weights_BT.unsqueeze(1), keys_BTD).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BD: Tensor) -> tuple[Tensor | None, ...]:
        keys_BTD, hidden_NH, negative_NH, mask_BT, slope_H, weight_H, weights_BT = ctx.saved_tensors
        # ds_bj = m_bj key_bj . g_b
        score_BT = torch.bmm(keys_BTD, grad_BD.unsqueeze(2)).squeeze(2) * mask_BT
        score_N = score_BT.flatten()
        all_H = torch.mv(hidden_NH.t(), score_N)
        negative_H = torch.mv(negative_NH.t(), score_N)
        # dh_bj = ds_bj w (1 where h > 0, slope elsewhere)
        hidden_grad_NH = torch.ops.aten.threshold_backward(
            (weight_H * (1 - slope_H)).expand_as(hidden_NH), hidden_NH, 0
        )
        hidden_grad_NH = hidden_grad_NH.add_(weight_H * slope_H).mul_(score_N.unsqueeze(1))
        hidden_grad_BTH = hidden_grad_NH.view(*mask_BT.shape, -1)
        return (
            weights_BT.unsqueeze(2) * grad_BD.unsqueeze(1),
            hidden_grad_BTH,
            hidden_grad_BTH.sum(1),
            None,
            negative_H * weight_H,
            all_H - negative_H + slope_H * negative_H,
            score_N.sum(),
        )
