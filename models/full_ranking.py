"""Full ranking of held-out items: the target's rank among all items, HR@k and nDCG@k.

    rank = 1 + |{i not in the history, i != target : score_i >= score_target}|
    HR@k = [rank <= k],   nDCG@k = [rank <= k] / log2(rank + 1)

One relevant item a user, so the ideal DCG is 1 (Kang and McAuley 2018, section IV-C, but against
all items instead of 100 drawn ones). Items that tie with the target count against the model: one
that gives all items the same score has a last place, not a first one. Row 0 is padding and never
ranked.

Scores of a chunk of users at a time: U x I of them are never held.

Shapes: U users, I rows of items with the padding, D width, Q packed histories, C users of a chunk.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

KS = (5, 10, 20)
SCORES_AT_ONCE = 2**24
"""64 MB of float32."""


def ranks_of_vectors(
    vectors_UD: Tensor,
    items_ID: Tensor,
    targets_U: np.ndarray,
    seen_Q: np.ndarray,
    seen_lengths_U: np.ndarray,
) -> np.ndarray:
    """Ranks (U,) int64 by score = <user vector, item vector>, in chunks of users.

    Products are taken in the tensors' own type on their own device. `seen_Q` are the histories'
    rows after each other. ValueError as `ranks_of_scores`.
    """
    users_a_chunk = max(1, SCORES_AT_ONCE // len(items_ID))
    starts_U = np.concatenate([[0], np.cumsum(seen_lengths_U)])
    ranks = [np.zeros(0, dtype=np.int64)]
    for first in range(0, len(vectors_UD), users_a_chunk):
        end = min(first + users_a_chunk, len(vectors_UD))
        ranks.append(
            ranks_of_scores(
                vectors_UD[first:end] @ items_ID.T,
                targets_U[first:end],
                seen_Q[starts_U[first] : starts_U[end]],
                seen_lengths_U[first:end],
            )
        )
    return np.concatenate(ranks)


def ranks_of_scores(
    scores_CI: Tensor, targets_C: np.ndarray, seen_Q: np.ndarray, seen_lengths_C: np.ndarray
) -> np.ndarray:
    """Ranks (C,) int64. `scores_CI` is used up: it is masked in place.

    ValueError for scores that are not finite, targets that are no items, and a target that is in
    its own history.
    """
    device = scores_CI.device
    users, items = scores_CI.shape
    targets_C = np.asarray(targets_C, dtype=np.int64)
    if len(targets_C) and not 1 <= targets_C.min() <= targets_C.max() < items:
        raise ValueError(
            f"targets must be 1 to {items - 1}, got {targets_C.min()} to {targets_C.max()}"
        )
    if not torch.isfinite(scores_CI).all():
        user = int((~torch.isfinite(scores_CI)).any(1).nonzero()[0])
        raise ValueError(f"scores must be finite; those of user {user} are not")
    user_Q = np.repeat(np.arange(users), seen_lengths_C)
    repeated_Q = np.asarray(seen_Q) == targets_C[user_Q]
    if repeated_Q.any():
        raise ValueError(f"the target of user {user_Q[repeated_Q][0]} is in its own history")
    target_C = torch.from_numpy(targets_C).to(device)
    scored_C1 = scores_CI.gather(1, target_C.unsqueeze(1))
    seen = torch.from_numpy(np.asarray(seen_Q, dtype=np.int64)).to(device)
    scores_CI[torch.from_numpy(user_Q).to(device), seen] = -torch.inf
    scores_CI[:, 0] = -torch.inf
    # The target itself is the 1 of the formula.
    return (scores_CI >= scored_C1).sum(1).cpu().numpy()


def hits_and_gains(ranks_U: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """HR@k and nDCG@k of each user, (U,) float64 each. ValueError for k or ranks below 1."""
    ranks_U = np.asarray(ranks_U)
    if k < 1 or (len(ranks_U) and ranks_U.min() < 1):
        raise ValueError(f"k and ranks must be at least 1, got k={k}, ranks from {ranks_U.min()}")
    hit_U = ranks_U <= k
    return hit_U.astype(np.float64), np.where(hit_U, 1 / np.log2(ranks_U + 1), 0.0)


def ranking_metrics(ranks_U: np.ndarray, ks: Iterable[int] = KS) -> dict[str, float]:
    """Means over the users: `hr@5`, `ndcg@5`, ...; NaN without users."""
    metrics = {}
    for k in ks:
        for name, values_U in zip(("hr", "ndcg"), hits_and_gains(ranks_U, k), strict=True):
            metrics[f"{name}@{k}"] = float(values_U.mean()) if len(values_U) else float("nan")
    return metrics
