"""The inner loops of serving: attention weights of every candidate over one user's history, and
sums of rows of the code tables.

    h_ctj = p_tj + q_cj        PReLU(h) = a h + (1 - a) max(h, 0)
    max(p + q, 0) = max(p, -q) + q
    s_ct  = sum_j w_j PReLU(h_ctj) + bias
          = sum_j w_j a_j p_tj + sum_j w_j q_cj + sum_j w_j (1 - a_j) max(p_tj, -q_cj) + bias

so that an element costs a maximum and a multiply-add, without the sum p + q. Candidates lie side
by side in memory: numba compiles the loop over them to vector instructions, and nothing is summed
across a vector's places. Eight hidden units at a time, or reading and writing the sums would cost
as much as making them. numba keeps what it compiled beside this file or in the user's cache.

Shape suffixes: C candidates, Z attention units, T history positions, H hidden width, I tracks, L
levels, R rows of a table, M its columns, N columns of a sum, Q = Z H.
"""

import numba
import numpy as np

# Sums may be taken in any order, products fused; NaN and infinity keep their meaning.
VECTORISED = {"reassoc", "contract", "nsz", "arcp"}
TOGETHER = 8
"""Hidden units whose terms `attention_scores` writes out."""
LINE = 16
"""float32 of a cache line."""


@numba.njit(
    "void(f4[:,:,::1], f4[:,::1], f4[:,::1], f4[:,::1], f4[:,::1], f4[::1], f4[:,:,::1])",
    fastmath=VECTORISED,
    nogil=True,
    cache=True,
)
def attention_scores(
    keys_ZTN: np.ndarray,
    negated_QC: np.ndarray,
    of_key_ZH: np.ndarray,
    of_query_ZH: np.ndarray,
    of_larger_ZH: np.ndarray,
    bias_Z: np.ndarray,
    scores_ZTC: np.ndarray,
) -> None:
    """Writes bias + sum_h of_key_h p_h + of_query_h q_h + of_larger_h max(p_h, -q_h). All float32.

    The keys p are the first H columns of `keys_ZTN`; `negated_QC` holds -q, unit after unit.
    """
    units, positions, candidates = scores_ZTC.shape
    width = of_key_ZH.shape[1]
    for z in range(units):
        negated_HC = negated_QC[z * width : (z + 1) * width]
        of_query_C = np.full(candidates, bias_Z[z], dtype=np.float32)
        for h in range(width):
            for c in range(candidates):
                of_query_C[c] -= of_query_ZH[z, h] * negated_HC[h, c]
        for t in range(positions):
            of_key = np.float32(0)
            for h in range(width):
                of_key += of_key_ZH[z, h] * keys_ZTN[z, t, h]
            for c in range(candidates):
                scores_ZTC[z, t, c] = of_key + of_query_C[c]
        whole = width - width % TOGETHER
        for h in range(0, whole, TOGETHER):
            q = negated_HC[h : h + TOGETHER]
            q0, q1, q2, q3, q4, q5, q6, q7 = q[0], q[1], q[2], q[3], q[4], q[5], q[6], q[7]
            w = of_larger_ZH[z, h : h + TOGETHER]
            w0, w1, w2, w3, w4, w5, w6, w7 = w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]
            for t in range(positions):
                p = keys_ZTN[z, t, h : h + TOGETHER]
                p0, p1, p2, p3, p4, p5, p6, p7 = p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]
                out_C = scores_ZTC[z, t]
                for c in range(candidates):
                    out_C[c] += (
                        w0 * max(p0, q0[c])
                        + w1 * max(p1, q1[c])
                        + w2 * max(p2, q2[c])
                        + w3 * max(p3, q3[c])
                        + w4 * max(p4, q4[c])
                        + w5 * max(p5, q5[c])
                        + w6 * max(p6, q6[c])
                        + w7 * max(p7, q7[c])
                    )
        for h in range(whole, width):
            for t in range(positions):
                for c in range(candidates):
                    larger = max(keys_ZTN[z, t, h], negated_HC[h, c])
                    scores_ZTC[z, t, c] += of_larger_ZH[z, h] * larger


@numba.njit("void(f4[:,::1], i8[::1], f4[:,::1])", nogil=True, cache=True)
def negated_columns(rows_RN: np.ndarray, rows_C: np.ndarray, out_QC: np.ndarray) -> None:
    """out_QC[q, c] = -rows_RN[rows_C[c], q], in squares whose edges fill a cache line."""
    columns, candidates = out_QC.shape
    for first_c in range(0, candidates, LINE):
        for first_q in range(0, columns, LINE):
            for c in range(first_c, min(first_c + LINE, candidates)):
                row_N = rows_RN[rows_C[c]]
                for q in range(first_q, min(first_q + LINE, columns)):
                    out_QC[q, c] = -row_N[q]


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
