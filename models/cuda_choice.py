"""Triton kernels that settle the rows float16 leaves open: their scores again, a choice in float64.

Imported only where rows lie on a CUDA device; `models.cuda_rows` calls it after `nearest` of
`models.cuda_kernels`, whose products these are: the tables are added in float32 here.

Shape suffixes: N rows, D dims, K codes padded as the products read them, O rows left open, J
earlier books or tables, C codes of an earlier book.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from models.cuda_kernels import BK, BM, NO_INDEX, Limits, Open, Packed, Scored, column_block

SCORES = 1 << 28
"""float32 scores of rows left open, held at once: 1 GB."""


@triton.jit
def _scores_kernel(
    x_ptr,
    c_desc,
    unit_ptr,
    centroid_unit_ptr,
    count_ptr,
    open_ptr,
    out_ptr,
    first,
    most,
    k,
    P: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
):
    count = tl.minimum(tl.load(count_ptr) - first, most)
    block = tl.program_id(1) * BN
    dims = tl.arange(0, BK)
    for start in tl.range(tl.program_id(0) * BM, count, tl.num_programs(0) * BM, num_stages=1):
        at = start + tl.arange(0, BM)
        inside = at < count
        row = tl.load(open_ptr + first + at, mask=inside, other=0).to(tl.int64)
        score = tl.zeros([BM, BN], tl.float32)
        for d in tl.range(0, P, BK, num_stages=STAGES):
            x = tl.load(x_ptr + row[:, None] * P + (d + dims)[None, :])
            score = tl.dot(x, c_desc.load([block, d]).T, score)
        unit = tl.load(unit_ptr + row) * tl.load(centroid_unit_ptr)
        out = out_ptr + at[:, None].to(tl.int64) * k + (block + tl.arange(0, BN))[None, :]
        tl.store(out, score * unit[:, None], mask=inside[:, None])


@triton.jit
def _choose_kernel(
    x_ptr,
    code_ptr,
    code_stride,
    subtract_ptr,
    book_ptr,
    book_size,
    c_ptr,
    q_ptr,
    weight_ptr,
    scores_ptr,
    bias_ptr,
    table_ptr,
    table_size,
    norm_ptr,
    error_ptr,
    c_norm_ptr,
    c_left_ptr,
    rough_ptr,
    order_ptr,
    count_ptr,
    open_ptr,
    floor_ptr,
    out_ptr,
    out_stride,
    first,
    most,
    k,
    D: tl.constexpr,
    BD: tl.constexpr,
    KB: tl.constexpr,
    J: tl.constexpr,
    TABLES: tl.constexpr,
    SUBTRACT: tl.constexpr,
    PREFIX: tl.constexpr,
    ORDERED: tl.constexpr,
):
    count = tl.minimum(tl.load(count_ptr) - first, most)
    for entry in tl.range(tl.program_id(0), count, tl.num_programs(0)):
        at = tl.load(open_ptr + first + entry).to(tl.int64)
        norm = tl.load(norm_ptr + at)
        error = tl.load(error_ptr + at) + norm * tl.load(rough_ptr)
        limit = tl.load(floor_ptr + first + entry) - tl.load(rough_ptr + 1)
        row = at
        if ORDERED:
            row = tl.load(order_ptr + at)
        weight = tl.load(weight_ptr)
        close = tl.full([], 0, tl.int32)
        lowest = tl.full([], NO_INDEX, tl.int32)
        winner = lowest
        least = tl.full([], float("inf"), tl.float64)
        # The first turn counts; the second, if there is a choice, takes distances.
        for turn in range(2):
            if (turn == 0) | (close > 1):
                for block in range(0, k, KB):
                    cols = block + tl.arange(0, KB)
                    real = cols < k
                    score = tl.load(bias_ptr + cols, mask=real, other=-float("inf"))
                    score += tl.load(scores_ptr + entry.to(tl.int64) * k + cols, mask=real, other=0)
                    score += error * tl.load(c_norm_ptr + cols, mask=real, other=0.0)
                    score += norm * tl.load(c_left_ptr + cols, mask=real, other=0.0)
                    for j in tl.static_range(TABLES):
                        line = tl.load(code_ptr + row * code_stride + j) * k + j * table_size
                        score += tl.load(table_ptr + line + cols, mask=real, other=0.0)
                    near = real & (score >= limit)
                    if turn == 0:
                        close += tl.sum(near.to(tl.int32), 0)
                        lowest = tl.minimum(lowest, tl.min(tl.where(near, cols, NO_INDEX), 0))
                    else:
                        code = tl.min(tl.where(near, cols, NO_INDEX), 0)
                        while code != NO_INDEX:
                            distance = tl.full([], 0.0, tl.float64)
                            for start in range(0, D, BD):
                                dims = start + tl.arange(0, BD)
                                inside = dims < D
                                x = tl.load(x_ptr + row * D + dims, mask=inside, other=0.0)
                                p = tl.zeros([BD], tl.float32)
                                for j in tl.static_range(J):
                                    book = tl.load(code_ptr + row * code_stride + j) * D + dims
                                    book += j * book_size
                                    if SUBTRACT:
                                        x -= tl.load(subtract_ptr + book, mask=inside, other=0.0)
                                    if PREFIX:
                                        p += tl.load(book_ptr + book, mask=inside, other=0.0)
                                here = code.to(tl.int64) * D + dims
                                c = tl.load(c_ptr + here, mask=inside, other=0.0)
                                apart = x.to(tl.float64) - c.to(tl.float64)
                                distance += tl.sum(apart * apart, 0)
                                if PREFIX:
                                    q = tl.load(q_ptr + here, mask=inside, other=0.0)
                                    apart = p.to(tl.float64) - q.to(tl.float64)
                                    distance += tl.sum(apart * apart, 0) * weight
                            # Codes come in rising order: ties go to the lowest.
                            winner = tl.where(distance < least, code, winner)
                            least = tl.minimum(distance, least)
                            code = tl.min(tl.where(near & (cols > code), cols, NO_INDEX), 0)
        winner = tl.where(close > 1, winner, lowest)
        if winner != NO_INDEX:
            tl.store(out_ptr + row * out_stride, winner.to(tl.int64))


@dataclass(frozen=True, kw_only=True)
class Exact:
    """What the float64 distances ||x - subtracted - c||^2 + weight^2 ||p - c_p||^2 read, with
    p = sum_j books[j][codes_j], and the float32 tables and bias of all scores."""

    c_KD: Tensor
    prefix_KD: Tensor | None
    subtract_JCD: Tensor | None
    books_JCD: Tensor | None
    weight: Tensor
    """float64: the square of alpha. (Triton would take a float as float32.)"""
    bias_K: Tensor
    tables_JCK: Tensor | None


def choose(
    out_N: Tensor,
    left: Open,
    rows: Packed,
    c: Scored,
    limits: Limits,
    exact: Exact,
    x_ND: Tensor,
    codes_NJ: Tensor | None,
    order_N: Tensor | None,
) -> None:
    """out[row] = the nearest, in float64, of the centroids that may be so, for rows left open.

    Ties to the lowest code. A product finds their scores again; the tables are added in float32.
    Nothing waits for the device: launches beyond the rows that are open end at once.
    """
    n, d = x_ND.shape
    p, k = rows.values_NP.shape[1], len(c.values_KP)
    device = x_ND.device
    block = column_block(k)
    most = min(n, max(BM, SCORES // k // BM * BM))
    scores_OK = torch.empty(most, k, dtype=torch.float32, device=device)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    books = exact.subtract_JCD if exact.subtract_JCD is not None else exact.books_JCD
    tables_JCK = exact.tables_JCK
    with torch.cuda.device(device):
        for first in range(0, n, most):
            _scores_kernel[(min(processors, triton.cdiv(most, BM)), k // block)](
                rows.values_NP, TensorDescriptor.from_tensor(c.values_KP, [block, BK]),
                rows.unit_N, c.unit, left.count_1, left.place_N, scores_OK, first, most, k,
                P=p, BM=BM, BN=block, BK=BK, STAGES=3, num_warps=8 if block == 256 else 4,
                num_stages=1,
            )  # fmt: skip
            _choose_kernel[(min(most, 32 * processors),)](
                x_ND, codes_NJ, 0 if codes_NJ is None else codes_NJ.stride(0),
                exact.subtract_JCD, exact.books_JCD, 0 if books is None else books.stride(0),
                exact.c_KD, exact.prefix_KD, exact.weight, scores_OK, exact.bias_K,
                tables_JCK, 0 if tables_JCK is None else tables_JCK.stride(0),
                rows.norm_N, rows.error_N, limits.norm_K, limits.left_K, limits.rough_3,
                order_N, left.count_1, left.place_N, left.floor_N, out_N, out_N.stride(0),
                first, most, k,
                D=d, BD=min(256, triton.next_power_of_2(d)),
                KB=min(1024, triton.next_power_of_2(k)),
                J=0 if books is None else len(books),
                TABLES=0 if tables_JCK is None else len(tables_JCK),
                SUBTRACT=exact.subtract_JCD is not None, PREFIX=exact.books_JCD is not None,
                ORDERED=order_N is not None, num_warps=1,
            )  # fmt: skip
