"""The inner loops of the search on a CPU: limits of scores from bf16 products, and sums of rows.

A row's scores are read once, while the products' block is in cache; torch's own operations take
ten passes. numba compiles the loops to vector instructions at the first import, in seconds, and
keeps them beside this file or in the user's cache. Imported late, by the searches that need it.

Shape suffixes: N rows, M rows of one chunk, E rows that moved, D dims, K codes, J earlier levels,
T rows of all tables, X copies.
"""

import numba
import numpy as np

# Sums may be taken in any order, products fused; no NaN comes in, infinity keeps its meaning.
VECTORISED = {"nnan", "reassoc", "contract", "nsz", "arcp"}
SIGN, MAGNITUDE = np.int32(31), np.int32(2**31 - 1)


@numba.njit(
    "void(f4[:,::1], f4[::1], u2[:,::1], f4[::1], f4[::1])",
    fastmath=VECTORISED,
    nogil=True,
    cache=True,
)
def round_rows(
    x_MD: np.ndarray,
    centre_D: np.ndarray,
    low_MD: np.ndarray,
    norm_M: np.ndarray,
    error_M: np.ndarray,
) -> None:
    """Bits of x - centre in bf16 (nearest, ties to even), its norm and that of what is lost."""
    m, d = x_MD.shape
    value_D, low_D = np.empty(d, dtype=np.float32), np.empty(d, dtype=np.float32)
    bits_D, low_bits_D = value_D.view(np.int32), low_D.view(np.int32)
    for row in range(m):
        for i in range(d):
            value_D[i] = x_MD[row, i] - centre_D[i]
        for i in range(d):
            bits = bits_D[i]
            bits += np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))
            low_MD[row, i] = np.uint16(bits >> np.int32(16))
            low_bits_D[i] = bits & np.int32(-0x10000)
        square, error = np.float32(0), np.float32(0)
        for i in range(d):
            square += value_D[i] * value_D[i]
            left = value_D[i] - low_D[i]
            error += left * left
        norm_M[row], error_M[row] = np.sqrt(square), np.sqrt(error)


@numba.njit("i4(i4[::1])", nogil=True, cache=True)
def highest(bits_K: np.ndarray) -> np.int32:
    """Bits of the largest of some float32 values, given by their bits; no NaN among them.

    Numbers of one sign are ordered as their bits are. LLVM makes vectors of a maximum of integers
    (40 ns of 256), and of floats it does not (350 ns).
    """
    most = np.int32(-(2**31))
    for i in range(len(bits_K)):
        bits = bits_K[i]
        most = max(most, np.int32(bits ^ ((bits >> SIGN) & MAGNITUDE)))
    return np.int32(most ^ ((most >> SIGN) & MAGNITUDE))


@numba.njit("i8(i4[::1], i4)", nogil=True, cache=True)
def first_place(bits_K: np.ndarray, bits: np.int32) -> int:
    """The first place of some bits, which are there."""
    place = len(bits_K)
    for i in range(len(bits_K)):
        place = min(place, i if bits_K[i] == bits else len(bits_K))
    return place


@numba.njit(
    "void(u2[:,::1], f4[:,::1], i8[:,:], i8[::1], i8[::1], f4[::1], f4[::1], f4[::1], f4[::1], "
    "f4[::1], f4, f4[:,::1], i8[::1], f4[::1], f4[:,::1], i8, i8[::1], f4[::1], f4[::1])",
    fastmath=VECTORISED,
    nogil=True,
    cache=True,
)
def settle(
    products_MK: np.ndarray,
    tables_TK: np.ndarray,
    codes_MJ: np.ndarray,
    first_J: np.ndarray,
    copies_X: np.ndarray,
    norm_M: np.ndarray,
    error_M: np.ndarray,
    rounding_M: np.ndarray,
    norm_K: np.ndarray,
    error_K: np.ndarray,
    unit: np.float32,
    x_ND: np.ndarray,
    rows_M: np.ndarray,
    centre_D: np.ndarray,
    c_KD: np.ndarray,
    most: int,
    code_M: np.ndarray,
    best_M: np.ndarray,
    second_M: np.ndarray,
) -> None:
    """The best centroid of every row, a lower limit of its score, an upper limit of all others'.

    A score is the bf16 product of row and centroid (`products_MK`, its bits) plus one row of
    `tables_TK` for each of `codes_MJ` (`first_J`: where a level's table begins; no level: row 0).
    Its limits are

        p + t -+ (error_M norm_K + norm_M error_K + unit |p| + rounding_M).

    Of rows that those leave open, the centroids above the best lower limit are scored again in
    float32, from `x_ND[rows_M]` and `c_KD`. Rows that this leaves open too, and those with more
    than `most` such centroids, get the code -1. `copies_X` are never chosen.
    """
    k, d = c_KD.shape
    product_K, table_K = np.empty(k, dtype=np.float32), np.empty(k, dtype=np.float32)
    lower_K, upper_K = np.empty(k, dtype=np.float32), np.empty(k, dtype=np.float32)
    product_bits_K = product_K.view(np.int32)
    lower_bits_K, upper_bits_K = lower_K.view(np.int32), upper_K.view(np.int32)
    value = np.empty(1, dtype=np.float32)
    bits = value.view(np.int32)
    x_D = np.empty(d, dtype=np.float32)
    for m in range(len(products_MK)):
        for i in range(k):
            product_bits_K[i] = np.int32(products_MK[m, i]) << 16
        row_K = tables_TK[0]
        for j in range(len(first_J)):
            next_K = tables_TK[first_J[j] + codes_MJ[m, j]]
            if j == 0:
                row_K = next_K
                continue
            for i in range(k):
                table_K[i] = row_K[i] + next_K[i]
            row_K = table_K
        error, norm, rounding = error_M[m], norm_M[m], rounding_M[m]
        for i in range(k):
            off = error * norm_K[i] + norm * error_K[i] + unit * abs(product_K[i])
            score = product_K[i] + row_K[i]
            lower_K[i], upper_K[i] = score - off, score + off
        for i in copies_X:
            lower_K[i] = upper_K[i] = -np.inf
        bits[0] = highest(lower_bits_K)
        lowest = value[0] - rounding
        top = highest(upper_bits_K)
        best = first_place(upper_bits_K, top)
        upper_K[best] = -np.inf
        bits[0] = highest(upper_bits_K)
        if value[0] + rounding < lowest:
            code_M[m], best_M[m], second_M[m] = best, lowest, value[0] + rounding
            continue
        upper_bits_K[best] = top
        limit = lowest - rounding
        count = 0
        for i in range(k):
            count += upper_K[i] >= limit
        if count > most:
            code_M[m] = -1
            continue
        for i in range(d):
            x_D[i] = x_ND[rows_M[m], i] - centre_D[i]
        best, most_score, second = -1, np.float32(-np.inf), np.float32(-np.inf)
        for i in range(k):
            upper = upper_K[i]
            if upper < limit:
                second = max(second, upper)
                continue
            score = row_K[i]
            for j in range(d):
                score += x_D[j] * c_KD[i, j]
            if score > most_score:
                best, most_score, score = i, score, most_score
            second = max(second, score)
        code_M[m] = best if second + rounding < most_score - rounding else -1
        best_M[m], second_M[m] = most_score - rounding, second + rounding


@numba.njit("void(f8[:,::1], f4[:,::1], i8[::1], i8[::1], i8[::1], i8, i8)", nogil=True, cache=True)
def move_rows(
    sums_KD: np.ndarray,
    x_ND: np.ndarray,
    rows_E: np.ndarray,
    was_E: np.ndarray,
    now_E: np.ndarray,
    first: int,
    last: int,
) -> None:
    """Takes rows out of the sums of clusters `was_E` (-1: none) and adds them to those of `now_E`.

    In dims `first` to `last`: threads that each take some dims never write to one place.
    """
    for e in range(len(rows_E)):
        x_D = x_ND[rows_E[e], first:last]
        sum_D = sums_KD[now_E[e], first:last]
        for i in range(len(x_D)):
            sum_D[i] += x_D[i]
        if was_E[e] >= 0:
            sum_D = sums_KD[was_E[e], first:last]
            for i in range(len(x_D)):
                sum_D[i] -= x_D[i]
