"""Triton kernels of the audio encoder, on a CUDA device: what would be written and read again.

Imported only there (Triton comes with PyTorch's CUDA builds). GELU is x/2 (1 + erf(x / sqrt 2)),
with erf to 1.5e-7 (Abramowitz and Stegun, 7.1.26): CUDA's own takes three times as long, which a
product's last step cannot hide.

Shapes: B windows, T samples, F frames with the unused one at the end (`front_end`), C channels,
L taps; M rows, N columns, K terms of a product.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

BF = 64
"""Frames of a tile of the first convolution."""
BM, BN, BK = 128, 256, 64
"""Rows, columns and terms of a step of a product: of five shapes the fastest on an H100."""


@triton.jit
def _gelu(x):
    z = tl.abs(x) * 0.7071067811865476
    t = 1.0 / (1.0 + 0.3275911 * z)
    p = t * (
        0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
    )
    tail = 0.5 * p * tl.exp(-z * z)  # of the normal distribution, beyond |x|
    return x * tl.where(x < 0, tail, 1.0 - tail)


@triton.jit
def _first_kernel(
    x_ptr,
    w_ptr,
    scale_ptr,
    shift_ptr,
    out_ptr,
    samples,
    frames,
    STRIDE: tl.constexpr,
    L: tl.constexpr,
    TAPS: tl.constexpr,
    C: tl.constexpr,
    BC: tl.constexpr,
    BF: tl.constexpr,
):
    window = tl.program_id(1).to(tl.int64)
    frame = tl.program_id(0) * BF + tl.arange(0, BF)
    channel = tl.program_id(2) * BC + tl.arange(0, BC)
    tap = tl.arange(0, TAPS)
    at = frame[:, None] * STRIDE + tap[None, :]
    wanted = (tap < L)[None, :] & (at < samples)
    x = tl.load(x_ptr + window * samples + at, mask=wanted, other=0.0)
    wanted = (tap < L)[:, None]
    w = tl.load(w_ptr + tap[:, None] * C + channel[None, :], mask=wanted, other=0.0)
    # Three products of 11-bit parts: as exact as float32, on the tensor cores.
    y = tl.dot(x, w, input_precision="tf32x3")
    scale = tl.load(scale_ptr + window * C + channel)
    shift = tl.load(shift_ptr + window * C + channel)
    y = _gelu(y * scale[None, :] + shift[None, :])
    to = (window * frames + frame)[:, None] * C + channel[None, :]
    inside = (frame < frames)[:, None] & (channel < C)[None, :]
    tl.store(out_ptr + to, y.to(out_ptr.dtype.element_ty), mask=inside)


def first_convolution(
    x_BT: Tensor, w_LC: Tensor, scale_BC: Tensor, shift_BC: Tensor, out_BFC: Tensor, stride: int
) -> None:
    """out = GELU(scale (w * x) + shift): a window's 24 MB are written, nothing as large is read."""
    (b, samples), (taps, channels) = x_BT.shape, w_LC.shape
    frames = out_BFC.shape[1]
    block = min(128, triton.next_power_of_2(channels))
    if channels % block:
        raise ValueError(f"channels: expected a multiple of {block}, got {channels}")
    grid = (triton.cdiv(frames, BF), b, channels // block)
    with torch.cuda.device(x_BT.device):
        _first_kernel[grid](
            x_BT, w_LC, scale_BC, shift_BC, out_BFC, samples, frames,
            STRIDE=stride, L=taps, TAPS=max(16, triton.next_power_of_2(taps)), C=channels,
            BC=block, BF=BF, num_warps=4,
        )  # fmt: skip


@triton.jit
def _product_kernel(
    a_desc,
    w_desc,
    out_desc,
    K: tl.constexpr,
    tiles_n,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
):
    # Neighbours in the grid share rows of a, which are read from memory once.
    row = (tl.program_id(0) // tiles_n) * BM
    column = (tl.program_id(0) % tiles_n) * BN
    y = tl.zeros([BM, BN], tl.float32)
    for k in tl.range(0, K, BK, num_stages=STAGES):
        y = tl.dot(a_desc.load([row, k]), w_desc.load([column, k]).T, y)
    out_desc.store([row, column], _gelu(y).to(out_desc.dtype))


def gelu_product(a_MK: Tensor, w_NK: Tensor, out_MN: Tensor) -> None:
    """out = GELU(a w'), in float32 until it is written.

    Rows of `a_MK` may overlap (a view with a stride below K): a convolution is such a product.
    """
    m, k = a_MK.shape
    n = len(w_NK)
    columns = min(BN, n)
    if n % columns or columns & (columns - 1) or k % BK:
        raise ValueError(
            f"w_NK: expected a power of two or multiples of {BN} rows and multiples "
            f"of {BK} columns, got {(n, k)}"
        )
    tiles_n = n // columns
    with torch.cuda.device(a_MK.device):
        _product_kernel[(triton.cdiv(m, BM) * tiles_n,)](
            TensorDescriptor(a_MK, list(a_MK.shape), list(a_MK.stride()), [BM, BK]),
            TensorDescriptor.from_tensor(w_NK, [columns, BK]),
            TensorDescriptor.from_tensor(out_MN, [BM, columns]),
            k, tiles_n, BM=BM, BN=columns, BK=BK, STAGES=4, num_warps=8,
        )  # fmt: skip


@triton.jit
def _sum_norm_kernel(
    x_ptr,
    y_ptr,
    gain_ptr,
    shift_ptr,
    sum_ptr,
    norm_ptr,
    eps,
    D: tl.constexpr,
    BD: tl.constexpr,
    KEEP_SUM: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * D
    dims = tl.arange(0, BD)
    inside = dims < D
    x = tl.load(x_ptr + start + dims, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(y_ptr + start + dims, mask=inside, other=0.0).to(tl.float32)
    if KEEP_SUM:
        tl.store(sum_ptr + start + dims, x.to(sum_ptr.dtype.element_ty), mask=inside)
    centred = tl.where(inside, x - tl.sum(x, 0) / D, 0.0)
    scaled = centred * tl.rsqrt(tl.sum(centred * centred, 0) / D + eps)
    gain = tl.load(gain_ptr + dims, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(shift_ptr + dims, mask=inside, other=0.0).to(tl.float32)
    normed = scaled * gain + shift
    tl.store(norm_ptr + start + dims, normed.to(norm_ptr.dtype.element_ty), mask=inside)


def sum_and_norm(
    x: Tensor, y: Tensor, gain_D: Tensor, shift_D: Tensor, eps: float, *, keep_sum: bool
) -> tuple[Tensor, Tensor]:
    """(x + y, LN(x + y)) over the last axis, or LN(x + y) twice without `keep_sum`."""
    hidden = x.shape[-1]
    norm = torch.empty_like(x)
    total = torch.empty_like(x) if keep_sum else norm
    block = triton.next_power_of_2(hidden)
    with torch.cuda.device(x.device):
        _sum_norm_kernel[(x.numel() // hidden,)](
            x, y, gain_D, shift_D, total, norm, eps,
            D=hidden, BD=block, KEEP_SUM=keep_sum, num_warps=max(1, min(8, block // 256)),
        )  # fmt: skip
    return total, norm
