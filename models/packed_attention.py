"""Attention over sequences that lie one after the other in one tensor, without padding.

Two ways to the same numbers. On CUDA in bf16 or float16: flash attention, which reads where each
sequence begins (`torch.nn.attention.varlen`). Elsewhere: sequences of like length are gathered
side by side, and a causal mask needs no other: what a shorter one repeats at its end comes after
all that is kept.

Shapes: P tokens of S sequences, H heads of queries, G of keys and values (H a multiple of G), D
dims of a head; of one bucket B sequences, L tokens of its longest.
"""

from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

_VARLEN = signature(varlen_attn).parameters
_GROUPED = "enable_gqa" in _VARLEN
_CAUSAL: dict[str, Any] = (
    {"window_size": (-1, 0)} if "window_size" in _VARLEN else {"is_causal": True}
)
"""PyTorch renamed the argument in 2.11."""


@dataclass(frozen=True)
class Bucket:
    """Sequences whose lengths are within a factor of two: `rows_BL` are their tokens' rows, the
    last one repeated, and `kept_BL` says which count."""

    rows_BL: Tensor
    kept_BL: Tensor


class Packed:
    """Where S sequences lie among P tokens.

    `lengths_S` integers >= 1, best on the host: their sum and maximum are read there, which on a
    CUDA tensor waits for the device.
    """

    def __init__(self, lengths_S: Tensor, device: torch.device) -> None:
        lengths_S = lengths_S.detach().to("cpu", torch.int64)
        if lengths_S.ndim != 1 or not len(lengths_S) or int(lengths_S.min()) < 1:
            shown = f"shape {tuple(lengths_S.shape)}" if lengths_S.ndim != 1 else lengths_S.tolist()
            raise ValueError(f"lengths_S: expected at least one length, all >= 1, got {shown}")
        self.lengths_S, self.device = lengths_S, device
        ends_S = lengths_S.cumsum(0)
        self.starts_S = ends_S - lengths_S
        self.tokens, self.longest = int(ends_S[-1]), int(lengths_S.max())

    @cached_property
    def bounds(self) -> Tensor:
        """(S + 1,) int32 on the device: where sequences start, and P."""
        bounds = torch.cat([self.starts_S, torch.tensor([self.tokens])]).int()
        return bounds.to(self.device, non_blocking=True)

    @cached_property
    def positions_P(self) -> Tensor:
        """Of each token in its sequence, from 0, on the device."""
        starts_P = torch.repeat_interleave(self.starts_S, self.lengths_S)
        positions_P = (torch.arange(self.tokens) - starts_P).int()
        return positions_P.to(self.device, non_blocking=True)

    @cached_property
    def buckets(self) -> list[Bucket]:
        order_S = self.lengths_S.argsort(descending=True)
        buckets = []
        while len(order_S):
            longest = int(self.lengths_S[order_S[0]])
            fits = int((self.lengths_S[order_S] * 2 > longest).sum())
            of_bucket, order_S = order_S[:fits], order_S[fits:]
            steps_L = torch.arange(longest)
            lengths_B1 = self.lengths_S[of_bucket, None]
            rows_BL = self.starts_S[of_bucket, None] + torch.minimum(steps_L, lengths_B1 - 1)
            kept_BL = steps_L < lengths_B1
            buckets.append(Bucket(rows_BL.to(self.device), kept_BL.to(self.device)))
        return buckets

    @cached_property
    def back_P(self) -> Tensor:
        """Of each token, its place among the kept ones of all buckets, in their order."""
        return torch.cat([b.rows_BL[b.kept_BL] for b in self.buckets]).argsort()


def causal_attention(q_PHD: Tensor, k_PGD: Tensor, v_PGD: Tensor, packed: Packed) -> Tensor:
    """softmax(q k' / sqrt(D)) v over each token's own sequence up to itself: (P, H, D)."""
    if q_PHD.is_cuda and q_PHD.dtype in (torch.bfloat16, torch.float16):
        return _flash(q_PHD, k_PGD, v_PGD, packed)
    return _bucketed(q_PHD, k_PGD, v_PGD, packed)


def _flash(q_PHD: Tensor, k_PGD: Tensor, v_PGD: Tensor, packed: Packed) -> Tensor:
    options = dict(_CAUSAL)
    if (heads := q_PHD.shape[1] // k_PGD.shape[1]) > 1:
        if _GROUPED:
            options["enable_gqa"] = True
        else:
            k_PGD, v_PGD = (x.repeat_interleave(heads, dim=1) for x in (k_PGD, v_PGD))
    bounds, longest = packed.bounds, packed.longest
    mixed = varlen_attn(q_PHD, k_PGD, v_PGD, bounds, bounds, longest, longest, **options)
    assert isinstance(mixed, Tensor)
    return mixed


def _bucketed(q_PHD: Tensor, k_PGD: Tensor, v_PGD: Tensor, packed: Packed) -> Tensor:
    kept = []
    for bucket in packed.buckets:
        q, k, v = (_side_by_side(x, bucket.rows_BL) for x in (q_PHD, k_PGD, v_PGD))
        mixed_BHLD = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        kept.append(mixed_BHLD.transpose(1, 2)[bucket.kept_BL])
    return torch.cat(kept)[packed.back_P]


def _side_by_side(x_PHD: Tensor, rows_BL: Tensor) -> Tensor:
    """(B, H, L, D)"""
    return x_PHD[rows_BL].transpose(1, 2)
