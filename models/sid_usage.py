"""What can be said of semantic IDs from their codes alone: usage, collisions, shared information.

Paper section 4. Entropies are in nats.

Shape suffixes: N rows, K codes, L levels, G distinct IDs, A and B distinct labels of two
labellings, S sizes of clusters, W possible overlaps of two clusters.
"""

import math
from typing import Any

import numpy as np
import torch

Array = np.ndarray
OVERLAPS = 1 << 20
"""Values held at once while the information expected by chance is summed."""


def prefix_ids(codes_NL: Array) -> list[Array]:
    """For each depth l, dense integers (N,) that are equal where id_1..id_l are."""
    ids, found_N = [], np.zeros(len(codes_NL), np.int64)
    for level in range(codes_NL.shape[1]):
        code_N = codes_NL[:, level].astype(np.int64)
        found_N = np.unique(found_N * (code_N.max() + 1) + code_N, return_inverse=True)[1]
        ids.append(found_N)
    return ids


def entropy(counts: Array) -> float:
    """H = -sum p log p, in nats."""
    share = counts[counts > 0] / counts.sum()
    return float(max(0.0, -(share * np.log(share)).sum()))


def usage(counts_K: Array) -> dict[str, float | int]:
    """How evenly one level uses its K codes, dead codes included."""
    k, h = len(counts_K), entropy(counts_K)
    rank_K = np.arange(1, k + 1)
    # Gini = sum_i (2 i - k - 1) n_(i) / (k sum n), n ascending: 0 even, 1 - 1/k all in one code
    gini = float(((2 * rank_K - k - 1) * np.sort(counts_K)).sum() / (k * counts_K.sum()))
    return {
        "codes": k,
        "used": int((counts_K > 0).sum()),
        "utilisation": float((counts_K > 0).mean()),
        "entropy": h,
        "perplexity": math.exp(h),
        "gini": gini,
        "spread": float(counts_K.std() / counts_K.mean()),
    }


def collisions(id_N: Array) -> dict[str, float | int]:
    """Both collision rates in use, of dense ID numbers (N,) as `prefix_ids` gives them."""
    counts_G, n = np.bincount(id_N), len(id_N)
    return {
        "distinct": len(counts_G),
        "collision_rate": 1 - len(counts_G) / n,
        "items_sharing": float(counts_G[counts_G > 1].sum() / n),
        "largest_group": int(counts_G.max()),
    }


def hourglass(levels: list[dict[str, Any]]) -> dict[str, float] | None:
    """Middle levels minus the outer two: entropy as a share of log K, Gini, spread of counts.

    Entropy below 0, Gini and spread above 0 are an hourglass; None for fewer than three levels.
    """
    if len(levels) < 3:
        return None

    def gap(values_L: list[float]) -> float:
        return float(np.mean(values_L[1:-1]) - (values_L[0] + values_L[-1]) / 2)

    return {
        "entropy": gap([row["entropy"] / math.log(max(2, row["codes"])) for row in levels]),
        "gini": gap([row["gini"] for row in levels]),
        "spread": gap([row["spread"] for row in levels]),
    }


def shared_information(a_N: Array, b_N: Array) -> dict[str, float]:
    """`nmi` and `ami` of two labellings of the same rows.

    NMI = 2 I(a, b) / (H(a) + H(b)), 0 to 1. Many small clusters raise it by chance; AMI takes off
    what labellings with the same cluster sizes share on average, E:
    AMI = (I - E) / ((H(a) + H(b)) / 2 - E), 0 for unrelated labellings, a little below by luck.
    Both are 1 when both labellings are constant.
    """
    a_N, b_N = np.unique(a_N, return_inverse=True)[1], np.unique(b_N, return_inverse=True)[1]
    both_N = np.unique(a_N * (b_N.max() + 1) + b_N, return_inverse=True)[1]
    count_A, count_B = np.bincount(a_N), np.bincount(b_N)
    h_a, h_b = entropy(count_A), entropy(count_B)
    if h_a + h_b == 0:
        return {"nmi": 1.0, "ami": 1.0}
    information = max(0.0, h_a + h_b - entropy(np.bincount(both_N)))
    mean = (h_a + h_b) / 2
    chance = expected_information(count_A, count_B)
    # All rows alone in both: chance alone explains all, and the labellings are the same one.
    room = mean - chance
    ami = 1.0 if room <= 1e-12 * mean else (information - chance) / room
    return {"nmi": min(1.0, information / mean), "ami": min(1.0, ami)}


def expected_information(count_A: Array, count_B: Array) -> float:
    """E[I(a, b)] over all pairings of rows, given the cluster sizes; in nats.

    The overlap n of clusters of a and b rows out of N is hypergeometric:
    E = sum_ab sum_n P(n) n/N log(N n / (a b)). Pairs of clusters with equal sizes are summed once,
    and overlaps n beyond the mean +- (12 standard deviations + 24), of chance below 1e-15, not.
    """
    n = int(count_A.sum())
    size_a, times_a = np.unique(count_A, return_counts=True)
    size_b, times_b = np.unique(count_B, return_counts=True)
    a_S = np.repeat(size_a, len(size_b)).astype(np.float64)
    b_S = np.tile(size_b, len(size_a)).astype(np.float64)
    times_S = np.repeat(times_a, len(size_b)) * np.tile(times_b, len(size_a)).astype(np.float64)
    mean_S = a_S * b_S / n
    reach_S = 12 * np.sqrt(mean_S) + 24
    low_S = np.maximum(np.maximum(1, a_S + b_S - n), np.floor(mean_S - reach_S))
    high_S = np.minimum(np.minimum(a_S, b_S), np.ceil(mean_S + reach_S))
    width = int((high_S - low_S).max()) + 1
    total = 0.0
    for start in range(0, len(a_S), max(1, OVERLAPS // width)):
        part = slice(start, start + max(1, OVERLAPS // width))
        a, b = a_S[part, None], b_S[part, None]
        overlap_SW = low_S[part, None] + np.arange(width)
        inside_SW = overlap_SW <= high_S[part, None]
        overlap_SW = np.where(inside_SW, overlap_SW, low_S[part, None])
        # P(n) = a! b! (N-a)! (N-b)! / (N! n! (a-n)! (b-n)! (N-a-b+n)!)
        log_p_SW = _log_factorial(a) + _log_factorial(b)
        log_p_SW = log_p_SW + _log_factorial(n - a) + _log_factorial(n - b)
        log_p_SW = log_p_SW - _log_factorial(np.array(float(n))) - _log_factorial(overlap_SW)
        log_p_SW -= _log_factorial(a - overlap_SW) + _log_factorial(b - overlap_SW)
        log_p_SW -= _log_factorial(n - a - b + overlap_SW)
        term_SW = np.exp(log_p_SW) * overlap_SW / n * np.log(n * overlap_SW / (a * b))
        total += float((times_S[part] * np.where(inside_SW, term_SW, 0.0).sum(1)).sum())
    return total


def _log_factorial(values: Array) -> Array:
    return torch.lgamma(torch.as_tensor(values, dtype=torch.float64) + 1).numpy()
