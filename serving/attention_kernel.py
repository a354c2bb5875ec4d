"""The inner loop of serving: attention weights of every candidate over one user's history.

    h_ctj = p_tj + q_cj        PReLU(h) = (1 + a) / 2 h + (1 - a) / 2 |h|
    s_ct  = sum_j w_j PReLU(h_ctj) + bias
          = u_t + u_c + sum_j v_j |p_tj + q_cj|,    v_j = w_j (1 - a_j) / 2

so that an element costs an addition and a multiply-add; numba compiles the loop to vector
instructions, and keeps what it compiled beside this file or in the user's cache. For 500
candidates, 50 listens and hidden width 64 it takes a quarter of the time of torch.cdist(p=1), the
best of torch's own operations, and two thirds of torch.compile's, whose first call takes minutes.

Shape suffixes: C candidates, Z attention units, T history positions, H hidden width.
"""

import numba
import numpy as np

# Sums may be taken in any order, products fused; NaN and infinity keep their meaning.
VECTORISED = {"reassoc", "contract", "nsz", "arcp"}


@numba.njit(
    "void(f4[:,:,::1], f4[:,:,::1], f4[:,::1], f4[:,::1], f4[:,:,::1])",
    fastmath=VECTORISED,
    nogil=True,
    cache=True,
)
def attention_scores(
    keys_ZTH: np.ndarray,
    queries_CZH: np.ndarray,
    linear_ZH: np.ndarray,
    absolute_ZH: np.ndarray,
    scores_CZT: np.ndarray,
) -> None:
    """Writes sum_h linear_h (p + q)_h + absolute_h |p + q|_h into `scores_CZT`. All float32."""
    units, positions, width = keys_ZTH.shape
    of_keys_ZT = np.zeros((units, positions), dtype=np.float32)
    for z in range(units):
        for t in range(positions):
            total = np.float32(0)
            for h in range(width):
                total += linear_ZH[z, h] * keys_ZTH[z, t, h]
            of_keys_ZT[z, t] = total
    for c in range(queries_CZH.shape[0]):
        for z in range(units):
            of_query = np.float32(0)
            for h in range(width):
                of_query += linear_ZH[z, h] * queries_CZH[c, z, h]
            for t in range(positions):
                total = np.float32(0)
                for h in range(width):
                    total += absolute_ZH[z, h] * abs(keys_ZTH[z, t, h] + queries_CZH[c, z, h])
                scores_CZT[c, z, t] = of_keys_ZT[z, t] + of_query + total
