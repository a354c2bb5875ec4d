"""The loops of serving on the CPU: one user's attention over the listens, and the tower behind it,
for a tile of candidates at a time.

    h_ctj = p_tj + q_cj        PReLU(h) = a h + (1 - a) max(h, 0)
    max(p + q, 0) = max(p, -q) + q
    s_ct  = sum_j w_j PReLU(h_ctj) + bias
          = sum_j w_j a_j p_tj + sum_j w_j q_cj + sum_j w_j (1 - a_j) max(p_tj, -q_cj) + bias

so that an element costs a maximum and a multiply-add, without the sum p + q. The candidates of a
tile lie side by side in memory from the first sum to the logit: numba compiles the loops over them
to vector instructions, and nothing is summed across a vector's places. All that a tile needs stays
in the core's own cache, where products of whole matrices write and read back every step. Rows are
asked for ahead: they lie anywhere in tens of megabytes, and waiting for 500 of them, one by one,
took as long as the attention. numba keeps what it compiled beside this file or in the user's cache.
Functions that call each other are all in here: it would not see a change elsewhere.

Shape suffixes: C candidates, B those of a tile, Z attention units, T history positions, U = Z T, H
hidden width, O width of the tower's first layer, I inputs of a layer, R rows of sums, N columns of
a sum, X numbers, D layers of the tower.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

# Sums may be taken in any order, products fused; NaN and infinity keep their meaning.
VECTORISED = {"reassoc", "contract", "nsz", "arcp"}
TOGETHER = 8
"""Hidden units whose terms `_attention` writes out."""
BLOCK = 4
"""Inputs and outputs of a layer that `_add_layer` takes together: 16 products for 8 reads."""
LINE = 16
"""float32 of a cache line, and of the longest vector."""
TILE = 8 * LINE
"""Candidates at most: their scores and sums, half a megabyte, fit in the second-level cache."""
AHEAD = 4
"""Rows fetched ahead of the one that is copied."""


@numba.njit("i8(i8)", cache=True)
def tile_width(candidates: int) -> int:
    """Places of the tiles that so many candidates are split into evenly, whole cache lines."""
    tiles = -(-candidates // TILE)
    return -(-candidates // (tiles * LINE)) * LINE


def workspace_size(columns: int, units: int, numbers: int, widest: int) -> int:
    """float32 that `logits` needs. `columns`: N; `units`: U; `widest`: layer of the tower."""
    return LINE * (columns + 1) + TILE * (columns + units + numbers + 2 * widest)


@intrinsic
def _prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Asks for the cache line of array[index], to read it, and does not wait."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        of_bytes, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        address = builder.bitcast(builder.gep(data, [arguments[1]]), of_bytes)
        kind = ir.FunctionType(ir.VoidType(), [of_bytes, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [address, word(0), word(2), word(1)])  # read; likely soon; data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@numba.njit(
    "void(f4[:,::1], i8[::1], i8, i8, f4[:,::1], f4[:,::1])",
    fastmath=VECTORISED,
    nogil=True,
    cache=True,
)
def _gather(
    rows_RN: np.ndarray,
    rows_C: np.ndarray,
    first: int,
    of_queries: int,
    few_LN: np.ndarray,
    out_NB: np.ndarray,
) -> None:
    """out_NB[n, b] = rows_RN[rows_C[first + b], n], negated for n < of_queries.

    Places behind the last candidate repeat it. Through `few_LN`, LINE rows that are in the first
    cache: rows lie in as many pages, and a core knows the addresses of few.
    """
    columns, places = out_NB.shape
    last = len(rows_C) - 1
    for group in range(0, places, LINE):
        for b in range(LINE):
            ahead_N = rows_RN[rows_C[min(first + group + b + AHEAD, last)]]
            for n in range(0, columns, LINE):
                _prefetch(ahead_N, n)  # type: ignore[call-arg]  # numba's first is its own
            row_N = rows_RN[rows_C[min(first + group + b, last)]]
            for n in range(columns):
                few_LN[b, n] = row_N[n]
        for n in range(of_queries):
            for b in range(LINE):
                out_NB[n, group + b] = -few_LN[b, n]
        for n in range(of_queries, columns):
            for b in range(LINE):
                out_NB[n, group + b] = few_LN[b, n]


@numba.njit(
    "void(f4[:,:,::1], f4[:,::1], f4[:,::1], f4[:,::1], f4[:,::1], f4[::1], f4[:,::1])",
    fastmath=VECTORISED,
    nogil=True,
    cache=True,
)
def _attention(
    keys_ZTN: np.ndarray,
    negated_NB: np.ndarray,
    of_key_ZH: np.ndarray,
    of_query_ZH: np.ndarray,
    of_larger_ZH: np.ndarray,
    bias_Z: np.ndarray,
    scores_UB: np.ndarray,
) -> None:
    """Writes bias + sum_h of_key_h p_h + of_query_h q_h + of_larger_h max(p_h, -q_h).

    The keys p are the first H columns of `keys_ZTN`; `negated_NB` begins with -q, unit after unit.
    """
    units, positions, _ = keys_ZTN.shape
    places, width = scores_UB.shape[1], of_key_ZH.shape[1]
    for z in range(units):
        negated_HB = negated_NB[z * width : (z + 1) * width]
        scores_TB = scores_UB[z * positions : (z + 1) * positions]
        if positions == 0:
            return
        of_query_B = scores_TB[positions - 1]  # overwritten by its own scores at last
        of_query_B[:] = bias_Z[z]
        for h in range(width):
            weight = of_query_ZH[z, h]
            for b in range(places):
                of_query_B[b] -= weight * negated_HB[h, b]
        for t in range(positions):
            of_key = np.float32(0)
            for h in range(width):
                of_key += of_key_ZH[z, h] * keys_ZTN[z, t, h]
            for b in range(places):
                scores_TB[t, b] = of_key + of_query_B[b]
        whole = width - width % TOGETHER
        for h in range(0, whole, TOGETHER):
            q = negated_HB[h : h + TOGETHER]
            q0, q1, q2, q3, q4, q5, q6, q7 = q[0], q[1], q[2], q[3], q[4], q[5], q[6], q[7]
            w = of_larger_ZH[z, h : h + TOGETHER]
            w0, w1, w2, w3, w4, w5, w6, w7 = w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]
            for t in range(positions):
                p = keys_ZTN[z, t, h : h + TOGETHER]
                p0, p1, p2, p3, p4, p5, p6, p7 = p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]
                out_B = scores_TB[t]
                for b in range(places):
                    out_B[b] += (
                        w0 * max(p0, q0[b])
                        + w1 * max(p1, q1[b])
                        + w2 * max(p2, q2[b])
                        + w3 * max(p3, q3[b])
                        + w4 * max(p4, q4[b])
                        + w5 * max(p5, q5[b])
                        + w6 * max(p6, q6[b])
                        + w7 * max(p7, q7[b])
                    )
        for h in range(whole, width):
            for t in range(positions):
                for b in range(places):
                    larger = max(keys_ZTN[z, t, h], negated_HB[h, b])
                    scores_TB[t, b] += of_larger_ZH[z, h] * larger


@numba.njit(
    "void(f4[:,::1], i8, f4[:,::1], f4[:,::1])",
    fastmath=VECTORISED,
    nogil=True,
    cache=True,
)
def _add_layer(weight_IN: np.ndarray, first: int, in_IB: np.ndarray, out_OB: np.ndarray) -> None:
    """out_OB[o, b] += sum_i weight_IN[i, first + o] in_IB[i, b]."""
    (inputs, places), outputs = in_IB.shape, len(out_OB)
    whole = inputs - inputs % BLOCK
    blocks = outputs - outputs % BLOCK
    for o in range(0, blocks, BLOCK):
        y0, y1, y2, y3 = out_OB[o], out_OB[o + 1], out_OB[o + 2], out_OB[o + 3]
        n = first + o
        for i in range(0, whole, BLOCK):
            x0, x1, x2, x3 = in_IB[i], in_IB[i + 1], in_IB[i + 2], in_IB[i + 3]
            w = weight_IN[i : i + BLOCK, n : n + BLOCK]
            w00, w01, w02, w03 = w[0, 0], w[0, 1], w[0, 2], w[0, 3]
            w10, w11, w12, w13 = w[1, 0], w[1, 1], w[1, 2], w[1, 3]
            w20, w21, w22, w23 = w[2, 0], w[2, 1], w[2, 2], w[2, 3]
            w30, w31, w32, w33 = w[3, 0], w[3, 1], w[3, 2], w[3, 3]
            for b in range(places):
                a0, a1, a2, a3 = x0[b], x1[b], x2[b], x3[b]
                y0[b] += w00 * a0 + w10 * a1 + w20 * a2 + w30 * a3
                y1[b] += w01 * a0 + w11 * a1 + w21 * a2 + w31 * a3
                y2[b] += w02 * a0 + w12 * a1 + w22 * a2 + w32 * a3
                y3[b] += w03 * a0 + w13 * a1 + w23 * a2 + w33 * a3
        for i in range(whole, inputs):
            for place in range(o, o + BLOCK):
                for b in range(places):
                    out_OB[place, b] += weight_IN[i, first + place] * in_IB[i, b]
    for o in range(blocks, outputs):
        for i in range(inputs):
            for b in range(places):
                out_OB[o, b] += weight_IN[i, first + o] * in_IB[i, b]


@numba.njit(
    "void(f4[:,::1], i8[::1], f4[:,:,::1], f4[:,::1], f4[:,::1], f4[:,::1], f4[::1], f4[:,::1], "
    "f4[:,::1], i8[::1], f4[::1], f4[::1], f4[::1], f4[::1], f4[::1])",
    nogil=True,
    cache=True,
)
def logits(
    rows_RN: np.ndarray,
    rows_C: np.ndarray,
    keys_ZTN: np.ndarray,
    of_key_ZH: np.ndarray,
    of_query_ZH: np.ndarray,
    of_larger_ZH: np.ndarray,
    bias_Z: np.ndarray,
    weight_XO: np.ndarray,
    numbers_CX: np.ndarray,
    widths_D: np.ndarray,
    slopes: np.ndarray,
    weights: np.ndarray,
    biases: np.ndarray,
    work: np.ndarray,
    out_C: np.ndarray,
) -> None:
    """The logits of the candidates whose sums are the rows `rows_C` of `rows_RN`.

    A row holds a candidate's queries (Z H), then its part of the tower's first layer (O); a key's
    row the projected key (H), then what it adds to that layer (O). `widths_D` are the tower's
    layers, O first, 1 last; `slopes` of the PReLU behind each but the last, `weights` (inputs,
    outputs) and `biases` of each but the first, one behind the other. `work` begins at a cache
    line and is as long as `workspace_size` says.
    """
    candidates, (units, positions, _) = len(rows_C), keys_ZTN.shape
    hidden, columns, numbers = of_key_ZH.shape[1], rows_RN.shape[1], len(weight_XO)
    of_queries, inputs = units * hidden, units * positions
    keys_UN = keys_ZTN.reshape(inputs, keys_ZTN.shape[2])
    places = tile_width(candidates)
    few_LN = work[: LINE * columns].reshape(LINE, columns)
    tile = work[LINE * columns :]
    rows_NB = tile[: columns * places].reshape(columns, places)
    tile = tile[columns * places :]
    scores_UB = tile[: inputs * places].reshape(inputs, places)
    tile = tile[inputs * places :]
    numbers_XB = tile[: numbers * places].reshape(numbers, places)
    tile = tile[numbers * places :]
    half = len(tile) // 2 // LINE * LINE
    for first in range(0, candidates, places):
        _gather(rows_RN, rows_C, first, of_queries, few_LN, rows_NB)
        layer_OB = rows_NB[of_queries:]
        if positions:
            _attention(keys_ZTN, rows_NB, of_key_ZH, of_query_ZH, of_larger_ZH, bias_Z, scores_UB)
            _add_layer(keys_UN, hidden, scores_UB, layer_OB)
        for x in range(numbers):
            for b in range(places):
                numbers_XB[x, b] = numbers_CX[min(first + b, candidates - 1), x]
        if numbers:
            _add_layer(weight_XO, 0, numbers_XB, layer_OB)
        slope = weight = bias = 0
        for d in range(1, len(widths_D)):
            before, after = widths_D[d - 1], widths_D[d]
            for o in range(before):
                for b in range(places):
                    value = layer_OB[o, b]
                    layer_OB[o, b] = max(value, 0) + slopes[slope + o] * min(value, 0)
            start = (d % 2) * half
            next_OB = tile[start : start + after * places].reshape(after, places)
            for o in range(after):
                next_OB[o, :] = biases[bias + o]
            weight_IO = weights[weight : weight + before * after].reshape(before, after)
            _add_layer(weight_IO, 0, layer_OB, next_OB)
            slope, weight, bias = slope + before, weight + before * after, bias + after
            layer_OB = next_OB
        for b in range(min(places, candidates - first)):
            out_C[first + b] = layer_OB[0, b]
