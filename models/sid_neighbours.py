"""How much of the vectors, and of who is listened to with whom, semantic IDs keep.

Paper section 4: reconstruction, distance preservation, neighbour recall, collaborative prefix
recall. All go through `book.decode`, so that they hold for any quantizer. What is sampled comes
with its sample size and a standard error.

Shape suffixes: N rows, M rows of one chunk, D dims, E = D + 1, L levels, P pairs, Q queries,
B searched rows, C segments of them, S rows of a segment or candidates of a running search,
G distinct IDs, T neighbours, U = T + 1 nearest ones.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.quantizers import Quantizer
from models.rows import CHUNK_ELEMENTS, chunks

Array = np.ndarray
QUERIES_AT_ONCE = 256
SEGMENT = 128
"""Points of which only the nearest is looked at first."""


def relative_mse(x_ND: Tensor, codes_NL: Tensor, book: Quantizer) -> list[float | None]:
    """sum ||x - x_hat||^2 / sum ||x - mean||^2 after each level; None for constant vectors."""
    sums = [x_ND[part].double().sum(0) for part in chunks(x_ND)]
    mean_D = (torch.stack(sums).sum(0) / len(x_ND)).float()
    variance, error_L = 0.0, [0.0] * book.levels
    for part in chunks(x_ND):
        variance += _energy(x_ND[part] - mean_D)
        for level in range(book.levels):
            error_L[level] += _energy(x_ND[part] - book.decode(codes_NL[part], level + 1))
    return [error / variance if variance > 0 else None for error in error_L]


def _energy(x_MD: Tensor) -> float:
    """sum ||x||^2: norms in float32, their squares in float64."""
    return float(torch.linalg.vector_norm(x_MD, dim=1).double().square().sum())


def kendall_tau_b(a_P: Array, b_P: Array) -> tuple[float | None, float | None]:
    """Kendall's tau-b of two paired samples, exactly, ties included, and its standard error.

    tau-b = S / sqrt(A B), where S, A and B are means over pairs (p, q) of sign(a_p - a_q)
    sign(b_p - b_q) and of either sign squared; O(P^2) time. The error is the delta method's: with
    s_p, a_p, b_p the same means over q alone, the spread over p of
    2 (s_p - S) / sqrt(A B) - tau (a_p - A) / A - tau (b_p - B) / B, over sqrt(P).
    Both None if one sample is constant.
    """
    p = len(a_P)
    score_P, untied_a_P, untied_b_P = np.zeros(p), np.zeros(p), np.zeros(p)
    for start in range(0, p, 256):
        part = slice(start, start + 256)
        sign_a = np.sign(a_P[part, None] - a_P[None, :])
        sign_b = np.sign(b_P[part, None] - b_P[None, :])
        score_P[part] = (sign_a * sign_b).sum(1)
        untied_a_P[part] = np.abs(sign_a).sum(1)
        untied_b_P[part] = np.abs(sign_b).sum(1)
    score, untied_a, untied_b = score_P.mean(), untied_a_P.mean(), untied_b_P.mean()
    if not untied_a or not untied_b:
        return None, None
    tau = score / math.sqrt(untied_a * untied_b)
    influence_P = 2 * (score_P - score) / math.sqrt(untied_a * untied_b)
    influence_P -= tau * ((untied_a_P - untied_a) / untied_a + (untied_b_P - untied_b) / untied_b)
    return float(tau), _standard_error(influence_P)


def distance_preservation(
    x_ND: Tensor, codes_NL: Tensor, book: Quantizer, pairs: int, generator: np.random.Generator
) -> dict[str, Any]:
    """Kendall's tau-b of the distances of sampled pairs of different rows, in X and in x_hat."""
    n = len(x_ND)
    if n < 2:
        return {"tau": None, "standard_error": None, "pairs": 0}
    first_P = generator.integers(0, n, pairs)
    second_P = (first_P + generator.integers(1, n, pairs)) % n
    distances = []
    for rows in (lambda i: x_ND[i], lambda i: book.decode(codes_NL[i])):
        apart_PD = rows(torch.from_numpy(first_P)) - rows(torch.from_numpy(second_P))
        distances.append(apart_PD.double().square().sum(1).numpy())
    tau, error = kendall_tau_b(*distances)
    return {"tau": tau, "standard_error": error, "pairs": pairs}


def neighbour_recall(
    x_ND: Tensor,
    codes_NL: Tensor,
    id_N: Array,
    book: Quantizer,
    *,
    neighbours: int,
    queries: int,
    searched: int,
    generator: np.random.Generator,
) -> dict[str, Any]:
    """Share of a row's T nearest rows in X that are among its T nearest in x_hat.

    For sampled query rows, among `searched` rows (all, if there are no more). `id_N` numbers the
    full IDs densely. Rows with one ID lie at one place in x_hat: of those at the edge, the share
    that fits counts, which is the expectation under a random order.
    """
    rows_B = generator.permutation(len(x_ND))[:searched]
    query_Q, t = rows_B[:queries].copy(), min(neighbours, len(rows_B) - 1)
    found = {"neighbours": t, "queries": len(query_Q) if t else 0, "searched": len(rows_B)}
    if t < 1:
        return {"recall": None, "standard_error": None, **found}
    rows_B.sort()
    query_Q.sort()
    own_Q = np.searchsorted(rows_B, query_Q)
    first_G, group_B, size_G = np.unique(
        id_N[rows_B], return_index=True, return_inverse=True, return_counts=True
    )[1:]
    query_QD = x_ND[torch.from_numpy(query_Q)]
    # Distances do not change when all is shifted: only their rounding does.
    centre_D = query_QD.mean(0)

    def rows(part: slice) -> Tensor:
        return x_ND[torch.from_numpy(rows_B[part])] - centre_D

    def ids(part: slice) -> Tensor:
        return book.decode(codes_NL[torch.from_numpy(rows_B[first_G[part]])]) - centre_D

    query_QD = query_QD - centre_D
    near_QU = _nearest(query_QD, rows, len(rows_B), t + 1)
    # The row itself goes; where its copies left no place for it, the last one goes.
    drop_QU = near_QU == own_Q[:, None]
    drop_QU[~drop_QU.any(1), -1] = True
    true_QT = group_B[near_QU[~drop_QU].reshape(len(query_Q), t)]

    query_QD = book.decode(codes_NL[torch.from_numpy(query_Q)]) - centre_D
    near_QU = _nearest(query_QD, ids, len(first_G), t + 1)
    room_QU = size_G[near_QU] - (near_QU == group_B[own_Q][:, None])
    before_QU = room_QU.cumsum(1) - room_QU
    fits_QU = ((t - before_QU) / np.maximum(room_QU, 1)).clip(0, 1) * (room_QU > 0)
    share_Q = ((true_QT[:, :, None] == near_QU[:, None]) * fits_QU[:, None]).sum((1, 2)) / t
    return {"recall": float(share_Q.mean()), "standard_error": _standard_error(share_Q), **found}


def _nearest(query_QD: Tensor, points: Callable[[slice], Tensor], count: int, u: int) -> Array:
    """Numbers (Q, U) of the nearest of `count` points, nearest first; at most u."""
    best_QU = torch.empty(len(query_QD), 0)
    index_QU = torch.empty(len(query_QD), 0, dtype=torch.int64)
    # ||b||^2 - 2 a.b, squared distances less a constant of the query, as one product.
    query_QE = torch.cat([-2 * query_QD, torch.ones(len(query_QD), 1)], 1)
    for start in range(0, count, CHUNK_ELEMENTS // QUERIES_AT_ONCE):
        part = slice(start, min(start + CHUNK_ELEMENTS // QUERIES_AT_ONCE, count))
        point_BD = points(part)
        point_BE = torch.cat([point_BD, point_BD.square().sum(1, keepdim=True)], 1)
        found = [_least(query_ME @ point_BE.T, u) for query_ME in query_QE.split(QUERIES_AT_ONCE)]
        best_QS = torch.cat([best_QU, torch.cat([least for least, _ in found])], 1)
        index_QS = torch.cat([index_QU, torch.cat([place for _, place in found]) + start], 1)
        best_QU, place_QU = best_QS.topk(min(u, best_QS.shape[1]), largest=False)
        index_QU = index_QS.gather(1, place_QU)
    return index_QU.numpy()


def _least(value_MB: Tensor, u: int) -> tuple[Tensor, Tensor]:
    """The u smallest values (M, U) of each row, and where they stand.

    They lie in the u segments with the smallest minima: the others need no sorting.
    """
    m, b = value_MB.shape
    if b % SEGMENT or b <= u * SEGMENT:
        return value_MB.topk(min(u, b), largest=False)
    value_MCS = value_MB.view(m, -1, SEGMENT)
    segment_MU = value_MCS.amin(2).topk(u, largest=False).indices
    open_MUS = value_MCS.gather(1, segment_MU[:, :, None].expand(-1, -1, SEGMENT))
    least_MU, place_MU = open_MUS.flatten(1).topk(u, largest=False)
    return least_MU, segment_MU.gather(1, place_MU // SEGMENT) * SEGMENT + place_MU % SEGMENT


def co_listened_prefix_recall(prefix_ids_LN: list[Array], pairs_P2: Array) -> dict[str, Any]:
    """Share of an item's top co-listened items that have its prefix, by depth, mean over items.

    `pairs_P2` are row numbers (item, one of its top co-listened items). `chance` is the share of
    all pairs of different items that have equal prefixes.
    """
    n = len(prefix_ids_LN[0])
    if pairs_P2.ndim != 2 or pairs_P2.shape[1] != 2 or len(pairs_P2) == 0:
        raise ValueError(f"co-listened pairs must be (pairs, 2), got {pairs_P2.shape}")
    if not 0 <= pairs_P2.min() <= pairs_P2.max() < n:
        raise ValueError(f"co-listened pairs must be row numbers 0 to {n - 1}")
    item_P, other_P = pairs_P2[:, 0], pairs_P2[:, 1]
    count_N = np.bincount(item_P, minlength=n)
    known_N = count_N > 0
    recall, error, chance = [], [], []
    for id_N in prefix_ids_LN:
        same_N = np.bincount(item_P, weights=id_N[item_P] == id_N[other_P], minlength=n)
        share_N = same_N[known_N] / count_N[known_N]
        recall.append(float(share_N.mean()))
        error.append(_standard_error(share_N))
        group_G = np.bincount(id_N).astype(np.float64)
        chance.append(float((group_G * (group_G - 1)).sum() / max(1, n * (n - 1))))
    return {
        "recall": recall,
        "standard_error": error,
        "chance": chance,
        "items": int(known_N.sum()),
        "pairs": len(pairs_P2),
    }


def _standard_error(sample: Array) -> float | None:
    """Of the mean of a sample; None for a sample of one."""
    return float(sample.std(ddof=1) / math.sqrt(len(sample))) if len(sample) > 1 else None
