"""The attention weights of `serving/score_kernel.py` on a CUDA device, as a Triton kernel.

    s_ct = bias + sum_h linear_h (p_t + q_c)_h + absolute_h |p_t + q_c|_h

torch's own operations would write and read the sums p + q: 50 MB for 1,000 candidates, 50 listens
and four units of width 64, and a third of a millisecond on an H100.

Shape suffixes: B candidates, Z attention units, T history positions, H hidden width, N columns.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

CANDIDATES = 8
"""Of one program: they share the keys in its registers."""
POSITIONS = 64
"""Of one program."""


@triton.jit
def _scores(
    keys,
    queries,
    linear,
    absolute,
    bias,
    mask,
    scores,
    units,
    positions,
    width,
    key_row,
    query_row,
    CANDIDATES: tl.constexpr,
    POSITIONS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    unit = tl.program_id(1)
    t_T = tl.program_id(2) * POSITIONS + tl.arange(0, POSITIONS)
    h_H = tl.arange(0, WIDTH)
    in_width = h_H < width
    in_time = t_T < positions
    key_T1 = (unit * positions + t_T)[:, None] * key_row
    inside = in_time[:, None] & in_width[None, :]
    key_TH = tl.load(keys + key_T1 + h_H[None, :], mask=inside, other=0.0)
    linear_H = tl.load(linear + unit * width + h_H, mask=in_width, other=0.0)
    absolute_H = tl.load(absolute + unit * width + h_H, mask=in_width, other=0.0)
    bias_1 = tl.load(bias + unit)
    mask_T = tl.load(mask + t_T, mask=in_time, other=0.0)
    for place in range(CANDIDATES):
        candidate = tl.program_id(0) * CANDIDATES + place
        at = queries + candidate * query_row + unit * width + h_H
        x_TH = key_TH + tl.load(at, mask=in_width, other=0.0)[None, :]
        s_T = tl.sum(linear_H[None, :] * x_TH + absolute_H[None, :] * tl.abs(x_TH), axis=1)
        out = scores + (candidate * units + unit) * positions + t_T
        tl.store(out, (s_T + bias_1) * mask_T, mask=in_time)


def attention_scores(
    keys_ZTN: Tensor,
    queries_BN: Tensor,
    linear_ZH: Tensor,
    absolute_ZH: Tensor,
    bias_Z: Tensor,
    mask_T: Tensor,
) -> Tensor:
    """(B, Z, T) float32; 0 where `mask_T` is. B is a multiple of CANDIDATES.

    Keys are the first H of the N columns of `keys_ZTN`; the queries of unit z are the columns z H
    to (z + 1) H of `queries_BN`. Both are contiguous.
    """
    units, width = linear_ZH.shape
    positions = len(mask_T)
    scores_BZT = torch.empty(len(queries_BN), units, positions, device=queries_BN.device)
    grid = (len(queries_BN) // CANDIDATES, units, triton.cdiv(positions, POSITIONS))
    _scores[grid](
        keys_ZTN,
        queries_BN,
        linear_ZH,
        absolute_ZH,
        bias_Z,
        mask_T,
        scores_BZT,
        units,
        positions,
        width,
        keys_ZTN.shape[-1],
        queries_BN.shape[-1],
        CANDIDATES=CANDIDATES,
        POSITIONS=POSITIONS,
        WIDTH=triton.next_power_of_2(width),
    )
    return scores_BZT
