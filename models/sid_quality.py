"""How good are semantic IDs, answered without training a ranker (paper section 4).

Entropies are in nats. A measure that its data leave undefined (one row, constant vectors, a
reference that was not given) is None, so that every result is plain JSON.

Shape suffixes: N rows, M rows of one chunk, D dims, K codes, L levels, P pairs, Q queries,
B rows of the searched sample, G distinct full codes, T neighbours.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.nearest import check_rows, chunks, mean_and_scatter
from models.psrq import Codebook, decode

Array = np.ndarray


def quality(
    x_ND: Tensor,
    codes_NL: Tensor,
    codebook: Codebook,
    *,
    reference_N: Array | None = None,
    co_listened_P2: Array | None = None,
    pairs: int = 2_000,
    neighbours: int = 10,
    queries: int = 1_000,
    searched: int = 20_000,
    seed: int = 0,
) -> dict[str, Any]:
    """All measures of one family's IDs, as plain numbers and lists.

    `x_ND` are the vectors that were quantized. `reference_N` int labels, for instance of genres,
    negative = unknown. `co_listened_P2` row numbers (item, one of its top co-listened items).
    Distance preservation is measured on `pairs` sampled pairs, neighbour recall for `queries` of
    `searched` sampled rows. ValueError where the shapes do not fit each other.
    """
    x_ND = check_rows(x_ND)
    if codes_NL.shape != (len(x_ND), codebook.levels):
        raise ValueError(
            f"codes must be {(len(x_ND), codebook.levels)}, got {tuple(codes_NL.shape)}"
        )
    codes = codes_NL.numpy()
    prefix_ids_LN = prefix_ids(codes)
    relative_mse_L = relative_mse(x_ND, codes_NL, codebook)
    levels = []
    for level in range(codebook.levels):
        counts_K = np.bincount(codes[:, level], minlength=len(codebook.residuals[level]))
        before = entropy(np.bincount(prefix_ids_LN[level - 1])) if level else 0.0
        levels.append(
            {
                "level": level + 1,
                **usage(counts_K),
                # H(id_l | id_<l) = H(id_1..l) - H(id_1..l-1)
                "conditional_entropy": max(
                    0.0, entropy(np.bincount(prefix_ids_LN[level])) - before
                ),
                "nmi_level_1": nmi(codes[:, 0], codes[:, level]),
                "nmi_reference": _nmi_known(reference_N, codes[:, level]),
                "relative_mse": relative_mse_L[level],
            }
        )
    generator = np.random.default_rng(seed)
    return {
        "rows": len(x_ND),
        "levels": levels,
        "full": collisions(prefix_ids_LN[-1]),
        "hourglass": hourglass(levels),
        "distance_preservation": _distance_preservation(x_ND, codes_NL, codebook, pairs, generator),
        "neighbour_recall": _neighbour_recall(
            x_ND, codes_NL, codebook, neighbours, queries, searched, generator
        ),
        "co_listened_prefix_recall": None
        if co_listened_P2 is None
        else co_listened_prefix_recall(prefix_ids_LN, co_listened_P2),
    }


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


def collisions(full_N: Array) -> dict[str, float | int]:
    """Both collision rates in use, of dense full-code numbers (N,)."""
    counts_G, n = np.bincount(full_N), len(full_N)
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


def nmi(a_N: Array, b_N: Array) -> float:
    """Normalised mutual information 2 I(a, b) / (H(a) + H(b)) of two labellings, 0 to 1.

    1 when both are constant. Many small clusters raise it by chance: compare at equal K.
    """
    a_N, b_N = np.unique(a_N, return_inverse=True)[1], np.unique(b_N, return_inverse=True)[1]
    both_N = np.unique(a_N * (b_N.max() + 1) + b_N, return_inverse=True)[1]
    h_a, h_b = entropy(np.bincount(a_N)), entropy(np.bincount(b_N))
    if h_a + h_b == 0:
        return 1.0
    information = h_a + h_b - entropy(np.bincount(both_N))
    return float(np.clip(2 * information / (h_a + h_b), 0.0, 1.0))


def _nmi_known(reference_N: Array | None, code_N: Array) -> float | None:
    if reference_N is None:
        return None
    if reference_N.shape != code_N.shape:
        raise ValueError(f"reference must be {code_N.shape}, got {reference_N.shape}")
    known_N = reference_N >= 0
    return nmi(reference_N[known_N], code_N[known_N]) if known_N.any() else None


def relative_mse(x_ND: Tensor, codes_NL: Tensor, codebook: Codebook) -> list[float | None]:
    """sum ||x - x_hat||^2 / sum ||x - mean||^2 after each level; None for constant vectors."""
    variance = mean_and_scatter(x_ND)[1]
    error_L = [0.0] * codebook.levels
    for part in chunks(x_ND):
        left_MD = x_ND[part]
        for level, book_KD in enumerate(codebook.residuals):
            left_MD = left_MD - book_KD[codes_NL[part, level]]
            error_L[level] += float(left_MD.double().square().sum())
    return [error / variance if variance > 0 else None for error in error_L]


def kendall_tau_b(a_P: Array, b_P: Array) -> float | None:
    """Kendall's tau-b of two paired samples, exactly, ties included; None if one is constant.

    (concordant - discordant) / sqrt((pairs - ties in a) (pairs - ties in b)), in O(P^2) time.
    """
    score = untied_a = untied_b = 0
    for start in range(0, len(a_P), 256):
        part = slice(start, start + 256)
        sign_a = np.sign(a_P[part, None] - a_P[None, :])
        sign_b = np.sign(b_P[part, None] - b_P[None, :])
        score += int((sign_a * sign_b).sum())
        untied_a += int(np.abs(sign_a).sum())
        untied_b += int(np.abs(sign_b).sum())
    # Every pair was counted twice, in numerator and denominator alike.
    return score / math.sqrt(untied_a * untied_b) if untied_a and untied_b else None


def _distance_preservation(
    x_ND: Tensor, codes_NL: Tensor, codebook: Codebook, pairs: int, generator: np.random.Generator
) -> dict[str, Any]:
    """Kendall's tau-b of the distances of sampled pairs of different rows, in X and in x_hat."""
    n = len(x_ND)
    if n < 2:
        return {"tau": None, "pairs": 0}
    first_P = generator.integers(0, n, pairs)
    second_P = (first_P + generator.integers(1, n, pairs)) % n
    distances = []
    for rows in (lambda i: x_ND[i], lambda i: decode(codebook, codes_NL[i])):
        apart_PD = rows(torch.from_numpy(first_P)) - rows(torch.from_numpy(second_P))
        distances.append(apart_PD.double().square().sum(1).numpy())
    return {"tau": kendall_tau_b(*distances), "pairs": pairs}


def _neighbour_recall(
    x_ND: Tensor,
    codes_NL: Tensor,
    codebook: Codebook,
    neighbours: int,
    queries: int,
    searched: int,
    generator: np.random.Generator,
) -> dict[str, Any]:
    """Share of a row's T nearest rows in X that are among its T nearest in x_hat.

    Rows with one code tie in x_hat: a tie at the edge counts by the share of it that fits, the
    expectation under a random order.
    """
    rows_B = torch.from_numpy(generator.permutation(len(x_ND))[:searched])
    t = min(neighbours, len(rows_B) - 1)
    if t < 1:
        return {
            "recall": None,
            "standard_error": None,
            "neighbours": t,
            "queries": 0,
            "searched": 0,
        }
    x_BD = x_ND[rows_B] - x_ND[rows_B].double().mean(0).float()
    code_GL, group_B = torch.unique(codes_NL[rows_B], dim=0, return_inverse=True)
    x_hat_GD = decode(codebook, code_GL)
    x_hat_GD = x_hat_GD - x_hat_GD.double().mean(0).float()
    shares = []
    for query_M in torch.arange(min(queries, len(rows_B))).split(256):
        self_M1 = query_M[:, None]
        exact_MB = _squared_distances(x_BD[query_M], x_BD).scatter_(1, self_M1, math.inf)
        true_MT = exact_MB.topk(t, largest=False).indices
        coded_MG = _squared_distances(x_hat_GD[group_B[query_M]], x_hat_GD)
        coded_MB = coded_MG[:, group_B].scatter_(1, self_M1, math.inf)
        edge_M1 = coded_MB.kthvalue(t, dim=1, keepdim=True).values
        true_distance_MT = coded_MB.gather(1, true_MT)
        inside_M = (coded_MB < edge_M1).sum(1)
        tie_share_M = (t - inside_M) / (coded_MB == edge_M1).sum(1)
        hits_M = (true_distance_MT < edge_M1).sum(1)
        hits_M = hits_M + (true_distance_MT == edge_M1).sum(1) * tie_share_M
        shares.append(hits_M / t)
    share_Q = torch.cat(shares).double().numpy()
    return {
        "recall": float(share_Q.mean()),
        "standard_error": float(share_Q.std() / math.sqrt(len(share_Q))),
        "neighbours": t,
        "queries": len(share_Q),
        "searched": len(rows_B),
    }


def _squared_distances(a_MD: Tensor, b_BD: Tensor) -> Tensor:
    """||b||^2 - 2 a.b, (M, B): squared distances less a constant of each row of a."""
    return torch.addmm(b_BD.square().sum(1), a_MD, b_BD.T, alpha=-2)


def co_listened_prefix_recall(prefix_ids_LN: list[Array], pairs_P2: Array) -> dict[str, Any]:
    """Share of an item's top co-listened items that have its prefix, by depth, mean over items.

    `chance` is the share of all pairs of different items that have equal prefixes.
    """
    n = len(prefix_ids_LN[0])
    if pairs_P2.ndim != 2 or pairs_P2.shape[1] != 2 or len(pairs_P2) == 0:
        raise ValueError(f"co-listened pairs must be (pairs, 2), got {pairs_P2.shape}")
    if not 0 <= pairs_P2.min() <= pairs_P2.max() < n:
        raise ValueError(f"co-listened pairs must be row numbers 0 to {n - 1}")
    item_P, other_P = pairs_P2[:, 0], pairs_P2[:, 1]
    count_N = np.bincount(item_P, minlength=n)
    recall, chance = [], []
    for id_N in prefix_ids_LN:
        same_N = np.bincount(item_P, weights=id_N[item_P] == id_N[other_P], minlength=n)
        recall.append(float((same_N[count_N > 0] / count_N[count_N > 0]).mean()))
        group_G = np.bincount(id_N).astype(np.float64)
        chance.append(float((group_G * (group_G - 1)).sum() / max(1, n * (n - 1))))
    return {"recall": recall, "chance": chance, "items": int((count_N > 0).sum())}
