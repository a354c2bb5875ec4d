"""Forgetting: does a new space still order a listener's items as the original space did?

    tau = forgetting(original_ID, new_IZ, rows_P, lengths_U, targets_U, by="distance")
    tau.mean, tau.spread

For each user the items of the history are ordered by how near they are to the target item, once
among the original embeddings and once in the new space; Kendall's tau-b compares the two orders
(MME-SID, paper section 3). 1: nothing was forgotten; 0: nothing was kept. Over the pairs i < j of
history places, with d the nearness to the target in either space:

    tau_b = sum_ij sgn(d_i - d_j) sgn(d'_i - d'_j) / sqrt(n n'),   n = pairs not tied in d

Pairs tied in one space (equal codes, an item that was played twice) count in neither sum of that
space. A user with fewer than two items, or with all tied in one space, has no tau and is counted as
left out. Every place of a history counts, so a repeated item counts as often as it was played.

Shape suffixes: I items (row 0 is padding), D and Z dims of the two spaces, U users, C users of a
chunk, T places of the longest history in a chunk, P places of all histories after each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

By = Literal["distance", "cosine"]
CHUNK_VALUES = 1 << 24
"""Values of gathered embeddings, or of pairs of places, held at once: 128 MB in float64."""


@dataclass(frozen=True, kw_only=True)
class Taus:
    """Kendall's tau-b of every user; NaN where it is not defined."""

    tau_U: np.ndarray

    @property
    def defined_U(self) -> np.ndarray:
        return self.tau_U[~np.isnan(self.tau_U)]

    @property
    def mean(self) -> float:
        """Over users that have one; NaN without any."""
        return float(self.defined_U.mean()) if len(self.defined_U) else float("nan")

    @property
    def spread(self) -> float:
        """Standard deviation over users; NaN without any."""
        return float(self.defined_U.std()) if len(self.defined_U) else float("nan")

    @property
    def left_out(self) -> int:
        return len(self.tau_U) - len(self.defined_U)

    def plain(self) -> dict[str, float | int]:
        """For JSON."""
        return {
            "tau": self.mean,
            "spread": self.spread,
            "users": len(self.defined_U),
            "left_out": self.left_out,
        }


@torch.no_grad()
def forgetting(
    original_ID: Tensor,
    new_IZ: Tensor,
    rows_P: np.ndarray,
    lengths_U: np.ndarray,
    targets_U: np.ndarray,
    *,
    by: By = "distance",
) -> Taus:
    """Tau-b per user between the orders in two tables of the same items, where the tables are.

    `rows_P`: rows of both tables, each user's history after the other's; `lengths_U` its lengths;
    `targets_U` one row each. Nearness is Euclidean distance or cosine in both spaces; a row without
    an embedding must be left out by the caller. ValueError for tables of other items, lengths that
    do not add up, or rows outside the tables.
    """
    if len(original_ID) != len(new_IZ):
        raise ValueError(
            f"both spaces must hold the same items, got {len(original_ID)} and {len(new_IZ)} rows"
        )
    if len(rows_P) != lengths_U.sum() or len(lengths_U) != len(targets_U):
        raise ValueError(
            f"{len(lengths_U)} lengths of together {int(lengths_U.sum())} do not fit "
            f"{len(rows_P)} places and {len(targets_U)} targets"
        )
    for name, rows in (("history", rows_P), ("target", targets_U)):
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(new_IZ)):
            raise ValueError(
                f"{name} rows must be 0 to {len(new_IZ) - 1}, got {rows.min()} to {rows.max()}"
            )
    tau_U = np.full(len(lengths_U), np.nan)
    dims = max(original_ID.shape[1], new_IZ.shape[1])
    for users_C, rows_CT, there_CT in _chunks(rows_P, lengths_U, dims):
        rows_CT = rows_CT.to(new_IZ.device)
        there_CT = there_CT.to(new_IZ.device)
        target_C = torch.from_numpy(targets_U[users_C].astype(np.int64)).to(new_IZ.device)
        before_CT = _nearness(original_ID, rows_CT, target_C, by)
        after_CT = _nearness(new_IZ, rows_CT, target_C, by)
        tau_U[users_C] = tau_b(before_CT, after_CT, there_CT).cpu().numpy()
    return Taus(tau_U=tau_U)


def among(
    known_I: np.ndarray, rows_P: np.ndarray, lengths_U: np.ndarray, targets_U: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same histories without the items that have no embedding, as `forgetting` takes them.

    `known_I`: which rows have one. A user whose target has none keeps no history, hence no tau.
    """
    user_P = np.repeat(np.arange(len(lengths_U)), lengths_U)
    kept_P = known_I[rows_P] & known_I[targets_U][user_P]
    return rows_P[kept_P], np.bincount(user_P[kept_P], minlength=len(lengths_U)), targets_U


def _chunks(
    rows_P: np.ndarray, lengths_U: np.ndarray, dims: int
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """Users of two items or more, those of like lengths together: little of a chunk is padding."""
    starts_U = np.cumsum(lengths_U) - lengths_U
    order = np.argsort(lengths_U, kind="stable")
    order = order[lengths_U[order] >= 2]
    while len(order):
        longest = int(lengths_U[order[-1]])
        users = max(1, CHUNK_VALUES // (longest * max(dims, longest)))
        users_C, order = order[-users:], order[:-users]
        place_T = np.arange(longest)
        there_CT = place_T < lengths_U[users_C, None]
        at_CT = np.where(there_CT, starts_U[users_C, None] + place_T, 0)
        yield (
            users_C,
            torch.from_numpy(rows_P[at_CT].astype(np.int64)),
            torch.from_numpy(there_CT),
        )


def _nearness(table_ID: Tensor, rows_CT: Tensor, target_C: Tensor, by: By) -> Tensor:
    """Distance or cosine of each place to its user's target, (C, T).

    Row by row and not as a product of matrices, so that equal rows tie exactly. Distances are
    summed in float64: two that are apart by rounding alone would count as an order.
    """
    rows, wanted_CT = torch.unique(torch.cat([rows_CT.flatten(), target_C]), return_inverse=True)
    small_ID = table_ID[rows].double()
    if by == "cosine":
        small_ID = torch.nn.functional.normalize(small_ID, dim=1)
    item_CTD = small_ID[wanted_CT[: rows_CT.numel()]].view(*rows_CT.shape, -1)
    target_CD = small_ID[wanted_CT[rows_CT.numel() :]]
    # |a - b|^2, and for unit vectors 2 - 2 cos(a, b): the same order as the distance and the cosine
    return (item_CTD - target_CD[:, None]).square().sum(2)


def tau_b(first_CT: Tensor, second_CT: Tensor, there_CT: Tensor) -> Tensor:
    """Kendall's tau-b of each row's two orders over the places that are there, (C,) float64.

    NaN where an order has no two places that differ.
    """
    # Each pair is met twice, (i, j) and (j, i), in all three sums alike.
    pair_CTT = there_CT[:, :, None] & there_CT[:, None, :]
    signs = [
        torch.where(pair_CTT, (near[:, :, None] - near[:, None, :]).sign(), 0).float()
        for near in (first_CT, second_CT)
    ]
    concordance_C = (signs[0] * signs[1]).sum((1, 2), dtype=torch.float64)
    untied = [sign.abs().sum((1, 2), dtype=torch.float64) for sign in signs]
    return concordance_C / (untied[0] * untied[1]).sqrt()
