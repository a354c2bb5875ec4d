"""The audio encoder at full speed: the same function as `models.encoders.hubert`, in bf16.

What makes eager PyTorch slow here is not the transformer but what comes before it: convolutions
with time innermost, a GroupNorm and a GELU over 24 MB a window, a grouped convolution of 128 taps.
`hubert_front` turns them into matrix products. Here the transformer's layers get one product for
queries, keys and values, and their sums and norms in one kernel; a batch of one shape is recorded
and replayed as a CUDA graph, while the next windows are copied. Windows travel as int16.

Shapes: B windows of a batch, W windows in all, T samples, F frames, D hidden, K wanted states.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

from models.cuda_graph import Replayed
from models.encoders.hubert import Hubert, Layer, check_states, normalised
from models.encoders.hubert_front import (
    BlockedPositions,
    FirstConvolution,
    StridedConvolution,
    strided_convolutions,
)
from models.encoders.sent_home import sent_home


@dataclass(frozen=True, kw_only=True)
class HubertPlan:
    """Which way each part is computed. The defaults are the fastest on an H100, by
    `benchmarks/encoders.py`; `ANY_DEVICE` is what every device computes."""

    convolutions: str = "triton"
    """`products` (cuBLAS, then GELU), or `triton`, one kernel of ours."""
    sums: str = "triton"
    """A sum and its norm: `torch`, two kernels, or `triton`, one."""
    widening: str = "lt"
    """GELU(W_1 x): `torch`, or `lt`, the product's own epilogue, whose GELU is the tanh form: 5e-4
    off at most, below bf16's rounding, and 7% of all the time."""


WAYS = {"convolutions": ("products", "triton"), "sums": ("torch", "triton")}
WAYS |= {"widening": ("torch", "lt")}
ANY_DEVICE = HubertPlan(convolutions="products", sums="torch", widening="torch")


class LayerWeights(NamedTuple):
    """One transformer layer; of a pre-norm encoder `norm_2` is the next layer's first norm."""

    qkv: Tensor
    qkv_bias: Tensor
    out: Tensor
    out_bias: Tensor
    norm_1: Tensor
    norm_1_bias: Tensor
    widen: Tensor
    widen_bias: Tensor
    narrow: Tensor
    narrow_bias: Tensor
    norm_2: Tensor
    norm_2_bias: Tensor


def summed(
    x_BFD: Tensor, y_BFD: Tensor, gain_D: Tensor, shift_D: Tensor, eps: float, keep_sum: bool
) -> tuple[Tensor, Tensor]:
    """(x + y, LN(x + y)), or LN(x + y) twice: what is carried on, and what the next part reads."""
    s_BFD = x_BFD + y_BFD
    n_BFD = layer_norm(s_BFD, (x_BFD.shape[-1],), gain_D, shift_D, eps)
    return (s_BFD if keep_sum else n_BFD), n_BFD


class FastHubert:
    """The encoder of a loaded `Hubert`, for windows of a multiple of `sizes.hop` samples."""

    def __init__(self, model: Hubert, plan: HubertPlan) -> None:
        sizes = model.sizes
        for name, known in WAYS.items():
            if (way := getattr(plan, name)) not in known:
                raise ValueError(f"{name}: expected {' or '.join(known)}, got {way!r}")
        for kernel, stride in list(zip(sizes.conv_kernel, sizes.conv_stride, strict=True))[1:]:
            if not stride <= kernel <= 2 * stride:
                raise ValueError(f"conv_kernel: {kernel} at stride {stride}, expected 1 to 2 times")
        self.model, self.sizes, self.plan = model, sizes, plan
        self.dtype = model.feature_projection.projection.weight.dtype
        self.first = FirstConvolution.of(model.feature_extractor, sizes)
        self.later = StridedConvolution.all_of(model.feature_extractor, sizes)
        self.blocked = BlockedPositions.of(model.encoder.pos_conv_embed)
        layers = cast(list[Layer], list(model.encoder.layers))
        self.first_norm = layers[0].layer_norm
        self.layers = [
            _weights(layer, layers[i + 1] if i + 1 < len(layers) else None, model)
            for i, layer in enumerate(layers)
        ]

    @torch.inference_mode()
    def __call__(self, samples_BT: Tensor, states: Sequence[int]) -> Tensor:
        """(B, K, D) float32, as `Hubert.forward`."""
        check_states(states, self.sizes.layers)
        return self.transformed(self.positioned(self.convolved(samples_BT)), states)

    def convolved(self, samples_BT: Tensor) -> Tensor:
        """(B, F, C) of int16 or float samples."""
        b, samples = samples_BT.shape
        if samples % self.sizes.hop:
            raise ValueError(f"samples_BT: {samples} samples are no multiple of {self.sizes.hop}")
        frames = (samples - self.sizes.conv_kernel[0]) // self.sizes.conv_stride[0] + 1
        x = self.first(normalised(samples_BT), frames, self.dtype)
        x_BFC = strided_convolutions(x, b, self.later, fused=self.plan.convolutions == "triton")
        return x_BFC[:, : self.sizes.frames(samples)]

    def positioned(self, x_BFC: Tensor) -> Tensor:
        """(B, F, D): projected, positions added; a post-norm encoder's first norm applied."""
        encoder = self.model.encoder
        x_BFD = self.model.feature_projection(x_BFC)
        x_BFD = x_BFD + gelu(self.blocked(x_BFD))
        return x_BFD if self.sizes.pre_norm else encoder.layer_norm(x_BFD)

    def transformed(self, x_BFD: Tensor, states: Sequence[int]) -> Tensor:
        """(B, K, D) float32: means over time of the wanted states."""
        n_BFD = self.first_norm(x_BFD) if self.sizes.pre_norm else x_BFD
        means = {0: x_BFD.mean(1, dtype=torch.float32)}
        for i, w in enumerate(self.layers[: max(states)], 1):
            mixed_BFD = linear(self.attended(n_BFD, w), w.out, w.out_bias)
            x_BFD, n_BFD = self.summed(x_BFD, mixed_BFD, w.norm_1, w.norm_1_bias)
            narrow_BFD = linear(self.widened(n_BFD, w), w.narrow, w.narrow_bias)
            x_BFD, n_BFD = self.summed(x_BFD, narrow_BFD, w.norm_2, w.norm_2_bias)
            if i in states:
                state = n_BFD if i == self.sizes.layers else x_BFD
                means[i] = state.mean(1, dtype=torch.float32)
        return torch.stack([means[i] for i in states], dim=1)

    def attended(self, n_BFD: Tensor, w: LayerWeights) -> Tensor:
        """softmax(q k' / sqrt(d)) v of all heads: (B, F, D)"""
        b, frames, _ = n_BFD.shape
        qkv = linear(n_BFD, w.qkv, w.qkv_bias).view(b, frames, 3, self.sizes.heads, -1)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        return scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n_BFD.shape)

    def widened(self, m_BFD: Tensor, w: LayerWeights) -> Tensor:
        """GELU(W_1 m + b)"""
        if self.plan.widening == "torch":
            return gelu(linear(m_BFD, w.widen, w.widen_bias))
        flat = m_BFD.flatten(0, 1)
        wide = torch._addmm_activation(w.widen_bias, flat, w.widen.T, use_gelu=True)
        return wide.unflatten(0, m_BFD.shape[:2])

    def summed(
        self, x_BFD: Tensor, y_BFD: Tensor, gain_D: Tensor, shift_D: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What is carried on, and what the next part reads: x + y and LN(x + y) before a norm,
        LN(x + y) twice after one."""
        eps, keep_sum = self.sizes.layer_norm_eps, self.sizes.pre_norm
        if self.plan.sums == "triton":
            from models.encoders.cuda_hubert import sum_and_norm

            return sum_and_norm(x_BFD, y_BFD, gain_D, shift_D, eps, keep_sum=keep_sum)
        s_BFD = x_BFD + y_BFD
        n_BFD = layer_norm(s_BFD, (x_BFD.shape[-1],), gain_D, shift_D, eps)
        return (s_BFD if keep_sum else n_BFD), n_BFD


def _weights(layer: Layer, following: Layer | None, model: Hubert) -> LayerWeights:
    attention, net = layer.attention, layer.feed_forward
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    if not model.sizes.pre_norm:
        norm_1, norm_2 = layer.layer_norm, layer.final_layer_norm
    else:
        norm_1 = layer.final_layer_norm
        norm_2 = following.layer_norm if following else model.encoder.layer_norm
    return LayerWeights(
        qkv=torch.cat([p.weight for p in projections]),
        qkv_bias=torch.cat([p.bias for p in projections]),
        out=attention.out_proj.weight,
        out_bias=attention.out_proj.bias,
        norm_1=norm_1.weight,
        norm_1_bias=norm_1.bias,
        widen=net.intermediate_dense.weight,
        widen_bias=net.intermediate_dense.bias,
        narrow=net.output_dense.weight,
        narrow_bias=net.output_dense.bias,
        norm_2=norm_2.weight,
        norm_2_bias=norm_2.bias,
    )


class HubertStream:
    """Means of any number of windows, in batches of one shape, copies hidden behind arithmetic.

    On CUDA a batch is recorded once and replayed; the next batch's samples travel on a stream of
    their own, those of the next call of `begin` too. A last batch that is not full keeps old
    windows in its other rows: windows do not see each other. One thread may begin while another
    waits for its means, and two may not begin at once.
    """

    def __init__(
        self, model: FastHubert, *, batch: int, samples: int, states: Sequence[int]
    ) -> None:
        self.model, self.batch, self.states = model, batch, tuple(states)
        self.device = model.first.w_LC.device
        shape = (batch, samples)
        self.on_host = torch.zeros(2, *shape, dtype=torch.int16)
        if self.device.type == "cuda":
            self.on_host = self.on_host.pin_memory()
        self.arrived = torch.zeros(2, *shape, dtype=torch.int16, device=self.device)
        self.input_BT = torch.zeros(shape, dtype=torch.int16, device=self.device)
        hidden = model.sizes.hidden
        self.means_BKD = torch.zeros(batch, len(self.states), hidden, device=self.device)
        self.step = Replayed(self._step, self.device)
        self.batches = 0
        if self.device.type == "cuda":
            self.copies = torch.cuda.Stream(self.device)
            # Blocking: a wait that spins would take a core from the decoders.
            self.sent, self.used = (
                [torch.cuda.Event(blocking=True) for _ in range(2)] for _ in range(2)
            )
            for _ in range(2):  # compiled, then recorded: later another thread may be waiting
                self.step()

    def _step(self) -> None:
        self.means_BKD.copy_(self.model(self.input_BT, self.states))

    def __call__(self, pieces: Sequence[np.ndarray]) -> Tensor:
        """(W, K, D) float32 on the host, of int16 windows in pieces of (any number, T) there."""
        return self.begin(pieces)()

    def begin(self, pieces: Sequence[np.ndarray]) -> Callable[[], Tensor]:
        """Starts with the windows; the call that it returns waits for their means.

        Pieces are read where they lie, in shared memory for instance: one array of all would cost
        another copy of every sample. They are not read any more when it returns.
        """
        starts = np.cumsum([0, *map(len, pieces)])
        count = int(starts[-1])
        means_WKD = torch.empty(count, *self.means_BKD.shape[1:], device=self.device)
        cuda = self.device.type == "cuda"
        for first in range(0, count, self.batch):
            slot, end = self.batches % 2, min(first + self.batch, count)
            self.batches += 1
            if cuda:
                self.sent[slot].synchronize()  # the host's copy of two batches ago has left
            host_BT = self.on_host[slot].numpy()
            for piece, start in zip(pieces, starts, strict=False):
                low, high = max(first, start), min(end, start + len(piece))
                if low < high:
                    host_BT[low - first : high - first] = piece[low - start : high - start]
            if not cuda:
                means_WKD[first:end] = self.model(self.on_host[slot, : end - first], self.states)
                continue
            main = torch.cuda.current_stream(self.device)
            with torch.cuda.stream(self.copies):
                self.copies.wait_event(self.used[slot])
                self.arrived[slot].copy_(self.on_host[slot], non_blocking=True)
                self.sent[slot].record(self.copies)
            main.wait_event(self.sent[slot])
            self.input_BT.copy_(self.arrived[slot])
            self.used[slot].record(main)
            self.step()
            means_WKD[first:end].copy_(self.means_BKD[: end - first])
        return sent_home(means_WKD)
