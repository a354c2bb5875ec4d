"""The inner loops of serving: attention weights of every candidate over one user's history, and
sums of rows of the code tables.

    h_ctj = p_tj + q_cj        PReLU(h) = (1 + a) / 2 h + (1 - a) / 2 |h|
    s_ct  = sum_j w_j PReLU(h_ctj) + bias
          = u_t + u_c + sum_j v_j |p_tj + q_cj|,    v_j = w_j (1 - a_j) / 2

so that an element costs an addition and a multiply-add; numba compiles the loop to vector
instructions, and keeps what it compiled beside this file or in the user's cache. For 500
candidates, 50 listens and hidden width 64 it takes a quarter of the time of torch.cdist(p=1), the
best of torch's own operations, and two thirds of torch.compile's, whose first call takes minutes.

Shape suffixes: C candidates, Z attention units, T history positions, H hidden width, I tracks, L
levels, R rows of a table, M its columns, N columns of a sum.
"""

import numba
import numpy as np

# Sums may be taken in any order, products fused; NaN and infinity keep their meaning.
VECTORISED = {"reassoc", "contract", "nsz", "arcp"}


@numba.njit(
    "void(f4[:,:,::1], f4[:,::1], f4[:,::1], f4[:,::1], f4[::1], f4[:,:,::1])",
    fastmath=VECTORISED,
    nogil=True,
    cache=True,
)
def attention_scores(
    keys_ZTH: np.ndarray,
    queries_CN: np.ndarray,
    linear_ZH: np.ndarray,
    absolute_ZH: np.ndarray,
    bias_Z: np.ndarray,
    scores_CZT: np.ndarray,
) -> None:
    """Writes bias + sum_h linear_h (p + q)_h + absolute_h |p + q|_h into `scores_CZT`. All float32.

    The queries of unit z are the columns z H to (z + 1) H of `queries_CN`.
    """
    units, positions, width = keys_ZTH.shape
    of_keys_ZT = np.zeros((units, positions), dtype=np.float32)
    for z in range(units):
        for t in range(positions):
            total = bias_Z[z]
            for h in range(width):
                total += linear_ZH[z, h] * keys_ZTH[z, t, h]
            of_keys_ZT[z, t] = total
    for c in range(queries_CN.shape[0]):
        for z in range(units):
            query_H = queries_CN[c, z * width : (z + 1) * width]
            of_query = np.float32(0)
            for h in range(width):
                of_query += linear_ZH[z, h] * query_H[h]
            for t in range(positions):
                total = np.float32(0)
                for h in range(width):
                    total += absolute_ZH[z, h] * abs(keys_ZTH[z, t, h] + query_H[h])
                scores_CZT[c, z, t] = of_keys_ZT[z, t] + of_query + total


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
