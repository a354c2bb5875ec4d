"""The items that users' vectors score highest, histories left out: candidates of many users.

    score_ui = <h_u, item_i>,   i over all items but those of u's history

Exact, in chunks of users, so that U x I scores are never held. Row 0 is padding and never found.
Which of equal scores come first is open.

Shapes: U users, C users of a chunk, I rows of items with the padding, D width, Q packed histories,
K found items.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SCORES_AT_ONCE = {"cpu": 1 << 22, "cuda": 1 << 28}
"""By device: 16 MB, a core's cache nearly; on CUDA 1 GiB, which few launches fill."""


class TopItems(NamedTuple):
    """Best first."""

    rows_UK: np.ndarray
    """int64; 0 where a user has fewer than K items left."""
    scores_UK: np.ndarray
    """float32; -inf there."""


def top_items(
    vectors_UD: Tensor,
    matrix_ID: Tensor,
    seen_Q: np.ndarray,
    seen_lengths_U: np.ndarray,
    count: int,
) -> TopItems:
    """At most `count` items a user; K is the smaller of `count` and the items there are.

    Both tensors on one device, of one float type; scores are compared in float32. `seen_Q`:
    histories' rows, user after user. ValueError for a count below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    device = vectors_UD.device
    users, items = len(vectors_UD), len(matrix_ID)
    found = min(count, items - 1)
    chunk = max(1, SCORES_AT_ONCE[device.type] // items)
    starts_U = np.concatenate([[0], np.cumsum(seen_lengths_U)])
    seen = torch.from_numpy(np.asarray(seen_Q, dtype=np.int64)).to(device)
    user = torch.from_numpy(np.repeat(np.arange(users), seen_lengths_U)).to(device)
    rows, scores = [], []
    for first in range(0, users, chunk):
        last = min(first + chunk, users)
        scores_CI = (vectors_UD[first:last] @ matrix_ID.T).float()
        own = slice(int(starts_U[first]), int(starts_U[last]))
        scores_CI[user[own] - first, seen[own]] = -torch.inf
        scores_CI[:, 0] = -torch.inf
        best = scores_CI.topk(found, dim=1)
        rows.append(best.indices.where(best.values > -torch.inf, 0))
        scores.append(best.values)
    if not rows:
        return TopItems(np.zeros((0, found), np.int64), np.zeros((0, found), np.float32))
    return TopItems(torch.cat(rows).cpu().numpy(), torch.cat(scores).cpu().numpy())
