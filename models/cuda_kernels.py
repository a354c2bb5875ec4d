"""Triton kernels of the search: rows in float16, the nearest of K centroids, the choice in float64.

Imported only where rows lie on a CUDA device (Triton comes with PyTorch's CUDA builds); `models.
cuda_rows` prepares what they read. Products are float16 with float32 accumulation, each row scaled
by a power of two first: at bf16's speed they round to 11 bits instead of 8.

Shape suffixes: N rows, P dims padded to a multiple of BK, K codes padded to a multiple of BN,
T tiles of rows, G groups of tiles, J gathered tables, C their rows, A rows that choose.
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
    best_ptr,
    second_ptr,
    limit_ptr,
    found_ptr,
    n,
    k,
    table_size,
    P: tl.constexpr,
    J: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    CHUNK: tl.constexpr,
    SECOND: tl.constexpr,
    CLOSE: tl.constexpr,
    STAGES: tl.constexpr,
):
    tile = tl.program_id(0)
    row = tl.load(start_ptr + tile)
    length = tl.load(length_ptr + tile)
    group = tl.load(group_ptr + tile).to(tl.int64)
    rows = tl.arange(0, BM)
    best = tl.full([BM], -float("inf"), tl.float32)
    second = tl.full([BM], -float("inf"), tl.float32)
    arg = tl.zeros([BM], tl.int32)
    unit = tl.load(unit_ptr + row + rows, mask=rows < length, other=1.0)
    unit = unit * tl.load(centroid_unit_ptr)
    limit = tl.zeros([BM], tl.float32)
    if CLOSE > 0:
        limit = tl.load(limit_ptr + row + rows, mask=rows < length, other=float("inf"))
    for block in tl.range(0, k, BN, num_stages=1):
        cols = block + tl.arange(0, BN)
        score = tl.zeros([BM, BN], tl.float32)
        if J > 0:
            # Row r wants row code[r] of each table. The tensor cores do it: a 0/1 matrix times the
            # gathered rows, exact, for CHUNK / P of a product's price; gathering into the
            # accumulators' own layout took three times as long.
            for j in tl.static_range(J):
                for part in tl.static_range(BM // CHUNK):
                    pick = part * CHUNK + tl.arange(0, CHUNK)
                    code = tl.load(code_ptr + j * n + row + pick, mask=pick < length, other=0)
                    values = tl.load(
                        table_ptr + j * table_size + code[:, None].to(tl.int64) * k + cols[None, :]
                    )
                    one = tl.where(rows[:, None] == pick[None, :], 1.0, 0.0).to(tl.float16)
                    score = tl.dot(one, values, score)
            score = score * (tl.load(table_scale_ptr) / unit)[:, None]
        for d in tl.range(0, P, BK, num_stages=STAGES):
            score = tl.dot(x_desc.load([row, d]), c_desc.load([block, d]).T, score)
        score = score * unit[:, None] + tl.load(bias_ptr + group * k + cols)[None, :]
        if CLOSE > 0:
            # Few scores are close: each takes a place in its row's list by one atomic addition.
            near = score >= limit[:, None]
            slot = found_ptr + (row + rows)[:, None] * (CLOSE + 1) + tl.zeros_like(cols)[None, :]
            place = tl.atomic_add(slot, 1, mask=near, sem="relaxed")
            kept = near & (place < CLOSE)
            tl.store(slot + 1 + place, tl.zeros_like(place) + cols[None, :], mask=kept)
        top = tl.max(score, 1)
        at = tl.min(tl.where(score == top[:, None], cols[None, :], NO_INDEX), 1)
        if SECOND:
            rest = tl.where(cols[None, :] == at[:, None], -float("inf"), score)
            second = tl.maximum(tl.maximum(second, tl.max(rest, 1)), tl.minimum(best, top))
        arg = tl.where(top > best, at, arg)
        best = tl.maximum(top, best)
    mask = rows < length
    tl.store(out_ptr + row + rows, arg, mask=mask)
    if SECOND:
        tl.store(best_ptr + row + rows, best, mask=mask)
        tl.store(second_ptr + row + rows, second, mask=mask)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Rows or centroids in float16: `values_NP` times `unit_N` (powers of two) are the values."""

    values_NP: Tensor
    unit_N: Tensor
    norm_N: Tensor
    error_N: Tensor
    """Norm of each row, and of what float16 left out of it."""


def nearest(
    rows: Packed,
    c_KP: Tensor,
    c_unit: Tensor,
    bias_GK: Tensor,
    run: Tiles,
    *,
    tables_JCK: Tensor | None = None,
    table_scale: Tensor | None = None,
    codes_JN: Tensor | None = None,
    second: bool = False,
    limit_N: Tensor | None = None,
    close: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """argmax_k x.c_k + bias[group, k] + scale sum_j tables[j, codes[j], k]; ties to the lowest k.

    `c_KP` float16 times `c_unit` are the centroids, `bias_GK` float32 (-inf: never), `tables_JCK`
    float16. Returns codes (N,) int32 and, with `second`, the best and the second best score (N,).
    With `limit_N`, the last is instead (N, 1 + close) int32: how many scores reach a row's limit,
    and the first `close` of their codes, in no order.
    """
    n, p = rows.values_NP.shape
    k = len(c_KP)
    block = column_block(k)
    jobs = 0 if tables_JCK is None else len(tables_JCK)
    device = c_KP.device
    out_N = torch.empty(n, dtype=torch.int32, device=device)
    best_N = torch.empty(n if second else 0, dtype=torch.float32, device=device)
    second_N = torch.empty_like(best_N)
    found_NC = torch.zeros(n if close else 0, 1 + close, dtype=torch.int32, device=device)
    with torch.cuda.device(device):
        _nearest_kernel[(len(run.start_T),)](
            TensorDescriptor.from_tensor(rows.values_NP, [BM, BK]),
            TensorDescriptor.from_tensor(c_KP, [block, BK]),
            bias_GK,
            tables_JCK,
            table_scale,
            rows.unit_N,
            c_unit,
            codes_JN,
            run.start_T,
            run.length_T,
            run.group_T,
            out_N,
            best_N,
            second_N,
            limit_N,
            found_NC,
            n,
            k,
            0 if tables_JCK is None else tables_JCK.stride(0),
            P=p,
            J=jobs,
            BM=BM,
            BN=block,
            BK=BK,
            CHUNK=64,
            SECOND=second,
            CLOSE=close,
            STAGES=3 if jobs or close else 4,
            num_warps=8 if block == 256 else 4,
            num_stages=1,
        )
    return out_N, best_N, found_NC if close else second_N


@triton.jit
def _choose_kernel(
    x_ptr,
    code_ptr,
    subtract_ptr,
    book_ptr,
    c_ptr,
    q_ptr,
    found_ptr,
    row_ptr,
    out_ptr,
    book_size,
    weight,
    D: tl.constexpr,
    BD: tl.constexpr,
    J: tl.constexpr,
    SUBTRACT: tl.constexpr,
    PREFIX: tl.constexpr,
    CLOSE: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64)
    row = tl.load(row_ptr + at).to(tl.int64)
    count = tl.minimum(tl.load(found_ptr + at * (CLOSE + 1)), CLOSE)
    least = tl.full([], float("inf"), tl.float64)
    winner = tl.full([], 2**31 - 1, tl.int32)
    for place in range(count):
        code = tl.load(found_ptr + at * (CLOSE + 1) + 1 + place)
        distance = tl.full([], 0.0, tl.float64)
        for start in range(0, D, BD):
            dims = start + tl.arange(0, BD)
            inside = dims < D
            x = tl.load(x_ptr + row * D + dims, mask=inside, other=0.0)
            p = tl.zeros([BD], tl.float32)
            for j in tl.static_range(J):
                earlier = tl.load(code_ptr + row * J + j).to(tl.int64) * D + dims
                if SUBTRACT:
                    x -= tl.load(subtract_ptr + j * book_size + earlier, mask=inside, other=0.0)
                if PREFIX:
                    p += tl.load(book_ptr + j * book_size + earlier, mask=inside, other=0.0)
            c = tl.load(c_ptr + code * D + dims, mask=inside, other=0.0)
            apart = x.to(tl.float64) - c.to(tl.float64)
            distance += tl.sum(apart * apart)
            if PREFIX:
                q = tl.load(q_ptr + code * D + dims, mask=inside, other=0.0)
                apart = p.to(tl.float64) - q.to(tl.float64)
                distance += weight * tl.sum(apart * apart)
        nearer = (distance < least) | ((distance == least) & (code < winner))
        winner = tl.where(nearer, code, winner)
        least = tl.minimum(distance, least)
    tl.store(out_ptr + row, winner.to(tl.int64))


def choose(
    out_N: Tensor,
    x_ND: Tensor,
    codes_NJ: Tensor | None,
    row_A: Tensor,
    found_AC: Tensor,
    *,
    c_KD: Tensor,
    subtract_JCD: Tensor | None = None,
    books_JCD: Tensor | None = None,
    prefix_KD: Tensor | None = None,
    weight: float = 0.0,
) -> None:
    """out[row] = the nearest, in float64, of the codes that `nearest` found close to each row.

    Distances are ||x - subtracted - c||^2 + weight^2 ||p - c_p||^2 with p = sum_j
    books[j][codes_j]; ties to the lowest code.
    """
    d = x_ND.shape[1]
    stacked = subtract_JCD if subtract_JCD is not None else books_JCD
    with torch.cuda.device(x_ND.device):
        _choose_kernel[(len(row_A),)](
            x_ND, codes_NJ, subtract_JCD, books_JCD, c_KD, prefix_KD, found_AC, row_A, out_N,
            0 if stacked is None else stacked.stride(0), float(weight**2),
            D=d, BD=min(1024, triton.next_power_of_2(d)),
            J=0 if stacked is None else len(stacked), SUBTRACT=subtract_JCD is not None,
            PREFIX=books_JCD is not None, CLOSE=found_AC.shape[1] - 1, num_warps=4,
        )  # fmt: skip


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
