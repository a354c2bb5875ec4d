"""Sums of table rows for tracks: what a release has tabulated for each code becomes the row of a
candidate, or the rows of one user's listens, which `serving/score_kernel.py` then reads.

A file of its own because numba keeps what it compiled by the file that a function lies in: the
two call nothing of each other, and each compiles its constants in.

Shape suffixes: C candidates, T history positions, Z attention units, I tracks, L levels, R rows of
a table, M its columns, N columns of a sum, D width of an embedding, S sources of codes.
"""

import numba
import numpy as np

# Sums may be taken in any order, products fused; NaN and infinity keep their meaning.
VECTORISED = {"reassoc", "contract", "nsz", "arcp"}
BLOCK = 4
"""Rows of the weight that `key_rows` takes together: 4 products for a read and a write."""


@numba.njit(
    "void(i8[::1], i4[:,::1], f4[:,::1], i8, f4[:,::1])",
    fastmath=VECTORISED,
    nogil=True,
    cache=True,
)
def add_code_rows(
    entries_C: np.ndarray,
    rows_IL: np.ndarray,
    table_RM: np.ndarray,
    first: int,
    out_CN: np.ndarray,
) -> None:
    """out_CN[c, first:first + M] += sum_l table_RM[rows_IL[entries_C[c], l]]."""
    columns = table_RM.shape[1]
    for c in range(len(entries_C)):
        out_M = out_CN[c, first : first + columns]
        rows_L = rows_IL[entries_C[c]]
        for level in range(len(rows_L)):
            row_M = table_RM[rows_L[level]]
            for m in range(columns):
                out_M[m] += row_M[m]


@numba.njit(
    "void(i8[::1], f4[:,::1], i4[:,:,::1], f4[:,:,::1], i8[::1], i8[::1], f4[:,::1], f4[:,::1], "
    "i8, f4[:,:,::1])",
    fastmath=VECTORISED,
    nogil=True,
    cache=True,
)
def key_rows(
    entries_T: np.ndarray,
    bias_ZN: np.ndarray,
    rows_SIL: np.ndarray,
    tables_SRN: np.ndarray,
    units_S: np.ndarray,
    id_rows_I: np.ndarray,
    table_RD: np.ndarray,
    weight_DN: np.ndarray,
    unit_of_tracks: int,
    out_ZTN: np.ndarray,
) -> None:
    """The keys' rows of one user's listens: a source of codes adds its table's rows to its unit,
    the ID embeddings theirs times `weight_DN` to the unit of tracks."""
    positions, (width, columns) = len(entries_T), weight_DN.shape
    for z in range(len(bias_ZN)):
        for t in range(positions):
            for n in range(columns):
                out_ZTN[z, t, n] = bias_ZN[z, n]
    for s in range(len(units_S)):
        add_code_rows(entries_T, rows_SIL[s], tables_SRN[s], 0, out_ZTN[units_S[s]])
    whole = width - width % BLOCK
    for t in range(positions):
        out_N, id_D = out_ZTN[unit_of_tracks, t], table_RD[id_rows_I[entries_T[t]]]
        for d in range(0, whole, BLOCK):
            x0, x1, x2, x3 = id_D[d], id_D[d + 1], id_D[d + 2], id_D[d + 3]
            w0, w1 = weight_DN[d], weight_DN[d + 1]
            w2, w3 = weight_DN[d + 2], weight_DN[d + 3]
            for n in range(columns):
                out_N[n] += x0 * w0[n] + x1 * w1[n] + x2 * w2[n] + x3 * w3[n]
        for d in range(whole, width):
            for n in range(columns):
                out_N[n] += id_D[d] * weight_DN[d, n]
