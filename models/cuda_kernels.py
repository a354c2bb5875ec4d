"""Triton kernels of the search: rows in float16, the nearest of K centroids, and what is left open.

Imported only where rows lie on a CUDA device (Triton comes with PyTorch's CUDA builds); `models.
cuda_rows` prepares what they read. Products are float16 with float32 accumulation, each row scaled
by a power of two first: at bf16's speed they round to 11 bits instead of 8.

Shape suffixes: N rows, P dims padded to a multiple of BK, K codes padded to a multiple of BN,
T tiles of rows, G groups of tiles, J gathered tables, C their rows, O rows left open.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

BM = 128
"""Rows of a tile. All rows of a tile have one level-1 code, so its table row is a plain bias."""
BK = 64
NO_INDEX = tl.constexpr(2**31 - 1)


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Runs of at most BM rows, int32: first row, number of rows, row of the bias table."""

    start_T: Tensor
    length_T: Tensor
    group_T: Tensor


def tiles(group_N: Tensor, groups: int) -> Tiles:
    """The tiles of rows sorted by `group_N` (0 to groups - 1); a tile never spans two groups."""
    if groups == 1:  # known without reading the device
        start_T = torch.arange(0, len(group_N), BM, dtype=torch.int32, device=group_N.device)
        length_T = (len(group_N) - start_T).clamp_max(BM)
        return Tiles(start_T=start_T, length_T=length_T, group_T=torch.zeros_like(start_T))
    count_G = torch.bincount(group_N, minlength=groups)
    group_T = torch.repeat_interleave((count_G + BM - 1) // BM)
    first_G = ((count_G + BM - 1) // BM).cumsum(0) - (count_G + BM - 1) // BM
    inside_T = (torch.arange(len(group_T), device=group_N.device) - first_G[group_T]) * BM
    return Tiles(
        start_T=((count_G.cumsum(0) - count_G)[group_T] + inside_T).int(),
        length_T=(count_G[group_T] - inside_T).clamp_max(BM).int(),
        group_T=group_T.int(),
    )


def column_block(codes: int) -> int:
    """Columns of one step of the search: a power of two, so that K is padded little."""
    return min(256, max(64, triton.next_power_of_2(codes)))


@triton.jit
def _nearest_kernel(
    x_desc,
    c_desc,
    bias_ptr,
    table_ptr,
    table_scale_ptr,
    unit_ptr,
    centroid_unit_ptr,
    code_ptr,
    start_ptr,
    length_ptr,
    group_ptr,
    out_ptr,
    n,
    k,
    table_size,
    norm_ptr,
    error_ptr,
    c_norm_ptr,
    c_left_ptr,
    rough_ptr,
    order_ptr,
    out_stride,
    count_ptr,
    open_ptr,
    floor_ptr,
    P: tl.constexpr,
    J: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    EXACT: tl.constexpr,
    ORDERED: tl.constexpr,
    STAGES: tl.constexpr,
):
    tile = tl.program_id(0)
    row = tl.load(start_ptr + tile)
    length = tl.load(length_ptr + tile)
    group = tl.load(group_ptr + tile).to(tl.int64)
    rows = tl.arange(0, BM)
    mask = rows < length
    unit = tl.load(unit_ptr + row + rows, mask=mask, other=1.0)
    unit = unit * tl.load(centroid_unit_ptr)
    if EXACT:
        norm = tl.load(norm_ptr + row + rows, mask=mask, other=0.0)
        error = tl.load(error_ptr + row + rows, mask=mask, other=0.0)
        # Rounding leaves out much the same share of all rows: the tile's largest serves.
        share = tl.max(tl.where(norm > 0, error / norm, 0.0), 0) + tl.load(rough_ptr)
    best = tl.full([BM], -float("inf"), tl.float32)
    second = tl.full([BM], -float("inf"), tl.float32)
    arg = tl.zeros([BM], tl.int32)
    for block in tl.range(0, k, BN, num_stages=1):
        cols = block + tl.arange(0, BN)
        score = tl.zeros([BM, BN], tl.float32)
        for d in tl.range(0, P, BK, num_stages=STAGES):
            score = tl.dot(x_desc.load([row, d]), c_desc.load([block, d]).T, score)
        scale = unit
        if J > 0:
            # Row r wants row code[r] of each table. The tensor cores do it: the identity times the
            # gathered rows, exact, for BM / P of a product's price; gathering into the
            # accumulators' own layout took three times as long. Last: a sum of P products loses
            # more where it starts from a large value.
            scale = tl.load(table_scale_ptr) + tl.zeros([BM], tl.float32)
            score = score * (unit / scale)[:, None]
            identity = tl.where(rows[:, None] == rows[None, :], 1.0, 0.0).to(tl.float16)
            for j in tl.range(0, J, num_stages=2):
                code = tl.load(code_ptr + j * n + row + rows, mask=mask, other=0).to(tl.int64)
                line = j * table_size + code[:, None] * k
                score = tl.dot(identity, tl.load(table_ptr + line + cols[None, :]), score)
        score = score * scale[:, None] + tl.load(bias_ptr + group * k + cols)[None, :]
        if EXACT:
            reach = share * tl.load(c_norm_ptr + cols) + tl.load(c_left_ptr + cols)
            score += norm[:, None] * reach[None, :]
        top = tl.max(score, 1)
        at = tl.min(tl.where(score == top[:, None], cols[None, :], NO_INDEX), 1)
        if EXACT:
            rest = tl.where(cols[None, :] == at[:, None], -float("inf"), score)
            second = tl.maximum(tl.maximum(second, tl.max(rest, 1)), tl.minimum(best, top))
        arg = tl.where(top > best, at, arg)
        best = tl.maximum(top, best)
    if EXACT:
        reach = share * tl.load(c_norm_ptr + arg) + tl.load(c_left_ptr + arg)
        # Upper limits were compared: the winner's lower limit is twice its reach less.
        rough = tl.load(rough_ptr + 1) + tl.load(rough_ptr + 2)
        floor = best - 2.0 * norm * reach - rough
        is_open = mask & ~(floor > second + rough)
        here = is_open.to(tl.int32)
        first = tl.atomic_add(count_ptr, tl.sum(here, 0), sem="relaxed")
        to = first + tl.cumsum(here, 0) - 1
        tl.store(open_ptr + to, row + rows, mask=is_open)
        tl.store(floor_ptr + to, floor, mask=is_open)
        at = (row + rows).to(tl.int64)
        if ORDERED:
            at = tl.load(order_ptr + row + rows, mask=mask, other=0)
        tl.store(out_ptr + at * out_stride, arg.to(tl.int64), mask=mask)
    else:
        tl.store(out_ptr + row + rows, arg, mask=mask)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Rows or centroids in float16: `values_NP` times `unit_N` (powers of two) are the values."""

    values_NP: Tensor
    unit_N: Tensor
    norm_N: Tensor
    error_N: Tensor
    """Norm of each row, and of what float16 left out of it."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What the products of one set of centroids read; `values_KP` float16 times `unit`."""

    values_KP: Tensor
    unit: Tensor
    bias_GK: Tensor
    """float32, of each group of tiles; -inf: never."""
    tables_JCK: Tensor | None
    table_scale: Tensor | None
    """float16 times `table_scale`: what the codes of earlier levels add."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How far a score may be off: (error + rough[0] norm) norm_K + norm left_K + rough[1], and by
    rough[2] where tables are float16."""

    norm_K: Tensor
    left_K: Tensor
    rough_3: Tensor


@dataclass(frozen=True, kw_only=True)
class Open:
    """Rows that float16 leaves open: how many, their places in the packed rows, and the lower
    limits of their best scores. Only the device knows how many there are."""

    count_1: Tensor
    place_N: Tensor
    floor_N: Tensor


def nearest(
    rows: Packed,
    c: Scored,
    run: Tiles,
    codes_JN: Tensor | None,
    *,
    limits: Limits | None = None,
    order_N: Tensor | None = None,
    out_N: Tensor | None = None,
) -> tuple[Tensor, Open | None]:
    """argmax_k x.c_k + bias[group, k] + scale sum_j tables[j, codes[j], k]; ties to the lowest k.

    Codes (N,) int32 of the packed rows. With `limits`, `out_N` int64 gets them instead, at
    `order_N`, and the second answer says where they may not be those of exact scores.
    """
    n, p = rows.values_NP.shape
    k = len(c.values_KP)
    block = column_block(k)
    jobs = 0 if c.tables_JCK is None else len(c.tables_JCK)
    device = c.values_KP.device
    left: Open | None = None
    if limits is None:
        out_N = torch.empty(n, dtype=torch.int32, device=device)
    else:
        left = Open(
            count_1=torch.zeros(1, dtype=torch.int32, device=device),
            place_N=torch.empty(n, dtype=torch.int32, device=device),
            floor_N=torch.empty(n, dtype=torch.float32, device=device),
        )
    assert out_N is not None
    with torch.cuda.device(device):
        _nearest_kernel[(len(run.start_T),)](
            TensorDescriptor.from_tensor(rows.values_NP, [BM, BK]),
            TensorDescriptor.from_tensor(c.values_KP, [block, BK]),
            c.bias_GK, c.tables_JCK, c.table_scale, rows.unit_N, c.unit, codes_JN,
            run.start_T, run.length_T, run.group_T, out_N, n, k,
            0 if c.tables_JCK is None else c.tables_JCK.stride(0),
            rows.norm_N, rows.error_N,
            limits and limits.norm_K, limits and limits.left_K, limits and limits.rough_3,
            order_N, out_N.stride(0),
            left and left.count_1, left and left.place_N, left and left.floor_N,
            P=p, J=jobs, BM=BM, BN=block, BK=BK, EXACT=limits is not None,
            ORDERED=order_N is not None, STAGES=3 if jobs else 4,
            num_warps=8 if block == 256 else 4, num_stages=1,
        )  # fmt: skip
    return out_N, left


@triton.jit
def _pack_kernel(
    x_ptr,
    order_ptr,
    centre_ptr,
    out_ptr,
    unit_ptr,
    norm_ptr,
    error_ptr,
    D: tl.constexpr,
    P: tl.constexpr,
    BD: tl.constexpr,
    ORDERED: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64)
    row = at
    if ORDERED:
        row = tl.load(order_ptr + at).to(tl.int64)
    dims = tl.arange(0, BD)
    inside = dims < D
    value = tl.load(x_ptr + row * D + dims, mask=inside, other=0.0)
    value -= tl.load(centre_ptr + dims, mask=inside, other=0.0)
    # The power of two that brings the largest value to [2^9, 2^10): products cannot overflow
    # float32, and values down to 2^-24 of the largest keep float16's 11 bits.
    exponent = (tl.max(tl.abs(value)).to(tl.int32, bitcast=True) >> 23) - 9
    exponent = tl.minimum(tl.maximum(exponent, 1), 250)
    unit = (exponent << 23).to(tl.float32, bitcast=True)
    value = value * ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    high = value.to(tl.float16)
    left = value - high.to(tl.float32)
    tl.store(out_ptr + at * P + dims, high, mask=dims < P)
    tl.store(unit_ptr + at, unit)
    tl.store(norm_ptr + at, tl.sqrt(tl.sum(value * value)) * unit)
    tl.store(error_ptr + at, tl.sqrt(tl.sum(left * left)) * unit)


def pack(x_ND: Tensor, centre_D: Tensor, order_N: Tensor | None) -> Packed:
    """Rows `order_N` of x - centre in float16, (n, P)."""
    d = x_ND.shape[1]
    p = triton.cdiv(d, BK) * BK
    n = len(x_ND) if order_N is None else len(order_N)
    device = x_ND.device
    out_NP = torch.empty(n, p, dtype=torch.float16, device=device)
    unit_N, norm_N, error_N = torch.empty(3, n, device=device).unbind(0)
    block = triton.next_power_of_2(p)
    with torch.cuda.device(device):
        _pack_kernel[(n,)](
            x_ND, order_N, centre_D, out_NP, unit_N, norm_N, error_N,
            D=d, P=p, BD=block, ORDERED=order_N is not None,
            num_warps=min(16, max(1, block // 256)),
        )  # fmt: skip
    return Packed(values_NP=out_NP, unit_N=unit_N, norm_N=norm_N, error_N=error_N)
