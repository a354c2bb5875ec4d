"""The audio encoder's convolutions as matrix products, time before channels.

Layout: layer l keeps T / (product of its strides) frames of a window, one more than exist; nothing
that counts reads that one. All windows of a batch then lie in one matrix, and rows of a strided
view of it, overlapping where a kernel is longer than its stride, are what a convolution reads:

    y = GELU([x_2t, x_2t+1, x_2t+2] W)       one product for a kernel of 3 and a stride of 2

The first convolution's GroupNorm needs its output's mean and variance over time. Both follow from
the samples: with m_l the mean of x_(5t+l) and S their covariance (10 x 10),

    mean of channel c = w_c . m,    variance = w_c' S w_c

so that the output, 24 MB a window, is written once, scaled and after its GELU.

The convolution over positions (128 taps in 16 groups) becomes one product a group for blocks of
R = 16 frames at once: R - 1 more taps are multiplied by zeros (12%), the samples gathered shrink
by R.

Shapes: B windows, T samples, L taps, C channels, F frames of a layer with the unused one, D hidden,
G groups, J blocks of R frames, M rows of a product.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import gelu, pad

from models.encoders.hubert import Convolution, FrontEnd, Positions
from models.encoders.hubert_sizes import HubertSizes

BLOCK = 16
"""R: frames of a block of the convolution over positions."""


@dataclass(frozen=True)
class FirstConvolution:
    """Weights of the first convolution and of its GroupNorm, in float32."""

    w_LC: Tensor
    gain_C: Tensor
    bias_C: Tensor
    eps: float
    stride: int

    @classmethod
    def of(cls, front: FrontEnd, sizes: HubertSizes) -> "FirstConvolution":
        layer = cast(Convolution, front.conv_layers[0])
        norm = layer.layer_norm
        assert norm is not None
        return cls(
            w_LC=layer.conv.weight.float()[:, 0].T.contiguous(),
            gain_C=norm.weight.float(),
            bias_C=norm.bias.float(),
            eps=norm.eps,
            stride=sizes.conv_stride[0],
        )

    def scale_and_shift(self, x_BT: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """(B, C) float32 each: the GroupNorm of the convolution's `frames` real frames.

        In float64: a channel of high tones has a millionth of the samples' power.
        """
        taps, parts = len(self.w_LC), 64
        whole = x_BT.shape[1] // self.stride
        windows_BFL = pad(x_BT, (0, taps)).unfold(1, taps, self.stride)[:, :whole].double()
        windows_BFL[:, frames:] = 0
        mean_BL = windows_BFL.sum(1) / frames
        # Parts of a window side by side: one product of 24,000 terms leaves the device idle.
        split = windows_BFL.reshape(-1, whole // parts, taps) if whole % parts == 0 else windows_BFL
        second = (split.mT @ split).reshape(len(x_BT), -1, taps, taps).sum(1) / frames
        covariance_BLL = second - mean_BL[:, :, None] * mean_BL[:, None, :]
        w_LC = self.w_LC.double()
        variance_BC = ((covariance_BLL @ w_LC) * w_LC).sum(1)
        scale_BC = self.gain_C * torch.rsqrt(variance_BC + self.eps)
        shift_BC = self.bias_C - (mean_BL @ w_LC) * scale_BC
        return scale_BC.float(), shift_BC.float()

    def __call__(self, x_BT: Tensor, frames: int, dtype: torch.dtype) -> Tensor:
        """(B F + 1, C): GELU of the normed convolution; the last row belongs to no window."""
        scale_BC, shift_BC = self.scale_and_shift(x_BT, frames)
        (b, samples), (taps, channels) = x_BT.shape, self.w_LC.shape
        whole = samples // self.stride
        out = torch.empty(b * whole + 1, channels, dtype=dtype, device=x_BT.device)
        out_BFC = out[:-1].view(b, whole, channels)
        if x_BT.is_cuda:
            from models.encoders.cuda_hubert import first_convolution

            first_convolution(x_BT, self.w_LC, scale_BC, shift_BC, out_BFC, self.stride)
        else:
            windows_BFL = pad(x_BT, (0, taps)).unfold(1, taps, self.stride)[:, :whole]
            y_BFC = windows_BFL @ self.w_LC
            out_BFC.copy_(gelu(y_BFC * scale_BC[:, None] + shift_BC[:, None]))
        return out


@dataclass(frozen=True)
class StridedConvolution:
    """One of the later convolutions: weights (C, L C) with the taps before the channels."""

    w_CK: Tensor
    taps: int
    stride: int

    @classmethod
    def all_of(cls, front: FrontEnd, sizes: HubertSizes) -> list["StridedConvolution"]:
        layers = cast(list[Convolution], list(front.conv_layers))
        weights = [layer.conv.weight for layer in layers]
        return [
            cls(w.permute(0, 2, 1).flatten(1).contiguous(), kernel, stride)
            for w, kernel, stride in list(
                zip(weights, sizes.conv_kernel, sizes.conv_stride, strict=True)
            )[1:]
        ]

    def products(self, x: Tensor) -> Tensor:
        """(B F + 1, C) -> (B F / stride + 1, C), before GELU, by one product for the stride's
        frames and one that is added for the frames beyond, as cuBLAS takes no overlapping rows."""
        channels, step = x.shape[1], self.stride * x.shape[1]
        rows = (len(x) - 1) // self.stride
        out = x.new_empty(rows + 1, len(self.w_CK))
        torch.mm(x.as_strided((rows, step), (step, 1)), self.w_CK[:, :step].T, out=out[:-1])
        if more := (self.taps - self.stride) * channels:
            beyond = x.as_strided((rows, more), (step, 1), step)
            out[:-1].addmm_(beyond, self.w_CK[:, step:].T)
        return out

    def fused(self, x: Tensor) -> Tensor:
        """GELU of the same by one kernel of ours, which takes overlapping rows."""
        from models.encoders.cuda_hubert import gelu_product

        channels = x.shape[1]
        rows = (len(x) - 1) // self.stride
        out = x.new_empty(rows + 1, len(self.w_CK))
        view = x.as_strided((rows, self.taps * channels), (self.stride * channels, 1))
        gelu_product(view, self.w_CK, out[:-1])
        return out


def strided_convolutions(
    x: Tensor, windows: int, layers: Sequence[StridedConvolution], *, fused: bool
) -> Tensor:
    """(B F + 1, C) -> (B, F', C), GELU after each layer, the last frame not to be used."""
    for layer in layers:
        x = layer.fused(x) if fused else torch.ops.aten.gelu_(layer.products(x))
    return x[:-1].view(windows, -1, x.shape[1])


@dataclass(frozen=True)
class BlockedPositions:
    """The convolution over positions for `BLOCK` frames at once."""

    w_GKN: Tensor
    """Of group g, row (tap, input channel), column (frame of the block, output channel)."""
    bias_D: Tensor
    taps: int

    @classmethod
    def of(cls, positions: Positions) -> "BlockedPositions":
        conv = positions.conv
        groups, taps = conv.groups, conv.kernel_size[0]
        assert conv.bias is not None
        width = conv.out_channels // groups
        w_GLio = conv.weight.view(groups, width, width, taps).permute(0, 3, 2, 1)
        blocked = w_GLio.new_zeros(groups, taps + BLOCK - 1, width, BLOCK, width)
        for r in range(BLOCK):
            blocked[:, r : r + taps, :, r] = w_GLio
        w_GKN = blocked.view(groups, (taps + BLOCK - 1) * width, BLOCK * width)
        return cls(w_GKN, conv.bias.detach(), taps)

    def __call__(self, x_BFD: Tensor) -> Tensor:
        """The convolution with its bias, before GELU: (B, F, D) -> (B, F, D)"""
        b, frames, hidden = x_BFD.shape
        groups, terms, _ = self.w_GKN.shape
        width = hidden // groups
        blocks = -(-frames // BLOCK)
        left = self.taps // 2
        length = (blocks - 1) * BLOCK + self.taps + BLOCK - 1
        x_BFGd = x_BFD.view(b, frames, groups, width)
        padded = x_BFD.new_zeros(groups, b, length, width)
        padded[:, :, left : left + frames] = x_BFGd.permute(2, 0, 1, 3)
        size = (groups, b, blocks, terms)
        stride = (b * length * width, length * width, BLOCK * width, 1)
        rows_GMK = padded.as_strided(size, stride).reshape(groups, b * blocks, terms)
        y_GMN = torch.bmm(rows_GMK, self.w_GKN)
        y_GBFd = y_GMN.view(groups, b, blocks * BLOCK, width)[:, :, :frames]
        return y_GBFd.permute(1, 2, 0, 3).reshape(b, frames, hidden) + self.bias_D
