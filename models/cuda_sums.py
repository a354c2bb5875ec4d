"""A Triton kernel that adds moved rows to the float64 sums and counts of their clusters.

Imported only where rows lie on a CUDA device; `models.means` calls it.

Shape suffixes: N rows, D dims, K codes, E entries, J earlier levels, C codes of an earlier level.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

SUM_ENTRIES = 64


@triton.jit
def _move_kernel(
    x_ptr,
    key_ptr,
    row_ptr,
    code_ptr,
    sums_ptr,
    counts_ptr,
    pairs_ptr,
    entries,
    k,
    pair_size,
    J: tl.constexpr,
    SIGN: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * ENTRIES
    current = tl.load(key_ptr + first).to(tl.int64)
    if current < k:
        dims = tl.program_id(1) * BD + tl.arange(0, BD)
        inside = dims < D
        total = tl.zeros([BD], tl.float64)
        one = tl.full([], SIGN, tl.int64)
        for step in range(ENTRIES):
            entry = first + step
            key = tl.load(key_ptr + entry, mask=entry < entries, other=k).to(tl.int64)
            if key != current:
                if current < k:
                    tl.atomic_add(
                        sums_ptr + current * D + dims, total * SIGN, mask=inside, sem="relaxed"
                    )
                total = tl.zeros([BD], tl.float64)
                current = key
            if key < k:
                row = tl.load(row_ptr + entry).to(tl.int64)
                total += tl.load(x_ptr + row * D + dims, mask=inside, other=0.0).to(tl.float64)
                if tl.program_id(1) == 0:
                    tl.atomic_add(counts_ptr + key, one, sem="relaxed")
                    for j in tl.static_range(J):
                        code = tl.load(code_ptr + row * J + j).to(tl.int64)
                        tl.atomic_add(
                            pairs_ptr + j * pair_size + code * k + key,
                            one,
                            sem="relaxed",
                        )
        if current < k:
            tl.atomic_add(sums_ptr + current * D + dims, total * SIGN, mask=inside, sem="relaxed")


def move_rows(
    sums_KD: Tensor,
    counts_K: Tensor,
    pairs_JCK: Tensor | None,
    x_ND: Tensor,
    codes_NJ: Tensor | None,
    key_E: Tensor,
    row_E: Tensor,
    *,
    sign: int,
) -> None:
    """Adds (or takes out, by `sign`) rows `row_E` of clusters `key_E`, which are sorted.

    Keys of K and more are skipped. A run of equal keys costs one atomic float64 addition a
    SUM_ENTRIES entries: reading the rows is what takes the time. Nothing waits for the device.
    """
    d = x_ND.shape[1]
    with torch.cuda.device(x_ND.device):
        _move_kernel[(triton.cdiv(len(key_E), SUM_ENTRIES), triton.cdiv(d, 256))](
            x_ND, key_E, row_E, codes_NJ, sums_KD, counts_K, pairs_JCK,
            len(key_E), len(sums_KD), 0 if pairs_JCK is None else pairs_JCK.stride(0),
            J=0 if pairs_JCK is None else len(pairs_JCK), SIGN=sign,
            D=d, BD=256, ENTRIES=SUM_ENTRIES, num_warps=2,
        )  # fmt: skip
