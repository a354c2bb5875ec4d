"""Collisions: items that share a full ID, and two ways to tell them apart. Both are options.

`next_best`: of the rows with one full ID the nearest keeps it, and the others move to codes of the
last level that nobody has under the same earlier codes, nearest pairs of row and code first
(`models.placement`). A row for which no code is left stays as it is. The last code then says less
about its item: it is a near one, not the nearest.

`extra_level`: every ID gets one code more, the item's number among those with its ID: 0 for the
first. The number says nothing about the item, and books do not know it: `decode` leaves it out.
Numbers end at `codes` - 1, as a ranker's tables do; the items after that share the last one.

The rows of one call are told apart at once, ties to the earlier row; IDs that are published already
(`taken_PL`) stay with their items, and new rows go round them.

Shape suffixes: N rows, M some of them, P published IDs, L levels, K codes of the last level,
G groups of rows with equal earlier codes, S slots (a group's codes of the last level).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.placement import place

MODES = ("next_best", "extra_level")


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """The IDs (N, L), one level longer for `extra_level`, and counts of rows."""

    codes_NL: Tensor
    colliding: int
    """Rows that were not alone with their ID, published ones counted as others."""
    moved: int
    """Rows whose ID changed, or whose number is not 0."""
    unresolved: int
    """Rows that still are not the first with their ID."""


def resolve(
    codes_NL: Tensor,
    mode: str,
    *,
    codes: int,
    distances: Callable[[Tensor], Tensor],
    taken_PL: Tensor | None = None,
) -> Resolution:
    """Tells rows with equal IDs apart. `codes_NL` are a book's codes of rows in a fixed order.

    `codes`: K, those of the last level. `distances(index_M)`: squared distances (M, K) of some rows
    to all codes of the last level, `book.last_distances(x_ND[index_M], codes_NL[index_M])`; asked
    by `next_best` only. `taken_PL`: full IDs that other items have, of the mode's length.
    ValueError for another mode, `next_best` with one level, or taken IDs of another length.
    """
    if mode not in MODES:
        raise ValueError(f"collisions must be one of {MODES}, got {mode!r}")
    levels = codes_NL.shape[1]
    if mode == "next_best" and levels < 2:
        raise ValueError("collisions next_best needs at least 2 levels, got 1: use extra_level")
    length = levels + (mode == "extra_level")
    if taken_PL is None:
        taken_PL = codes_NL.new_empty(0, length)
    if taken_PL.shape[1:] != (length,):
        raise ValueError(f"taken IDs must have {length} codes, got {tuple(taken_PL.shape)}")
    group_N, group_P = _groups(codes_NL, taken_PL[:, :levels])
    size_G = torch.bincount(torch.cat([group_N, group_P]))
    colliding = int((size_G[group_N] > 1).sum())
    if mode == "extra_level":
        number_N = _numbers(group_N, group_P, taken_PL[:, -1])
        clipped_N = number_N.clamp_max(codes - 1)
        return Resolution(
            codes_NL=torch.cat([codes_NL, clipped_N[:, None]], 1),
            colliding=colliding,
            moved=int((number_N > 0).sum()),
            unresolved=int((number_N > clipped_N).sum()),
        )
    resolved_NL = _next_best(codes_NL, codes, distances, taken_PL, group_N, group_P)
    full_N, full_P = _groups(resolved_NL, taken_PL)
    return Resolution(
        codes_NL=resolved_NL,
        colliding=colliding,
        moved=int((resolved_NL != codes_NL).any(1).sum()),
        unresolved=int((_numbers(full_N, full_P, torch.zeros_like(full_P)) > 0).sum()),
    )


def _groups(codes_NL: Tensor, taken_PL: Tensor) -> tuple[Tensor, Tensor]:
    """Dense numbers, of rows and of published IDs, that are equal where all codes are."""
    both = torch.cat([codes_NL, taken_PL])
    group = torch.unique(both, dim=0, return_inverse=True)[1]
    return group[: len(codes_NL)], group[len(codes_NL) :]


def _size(group_N: Tensor, group_P: Tensor) -> int:
    return max((int(group.max()) + 1 for group in (group_N, group_P) if len(group)), default=0)


def _numbers(group_N: Tensor, group_P: Tensor, number_P: Tensor) -> Tensor:
    """A row's place among those of its group, after the largest published number there."""
    groups = _size(group_N, group_P)
    first_G = group_N.new_zeros(groups)
    first_G.scatter_reduce_(0, group_P, number_P + 1, "amax")
    order_N = group_N.sort(stable=True).indices
    count_G = torch.bincount(group_N, minlength=groups)
    rank_N = torch.arange(len(group_N)) - (count_G.cumsum(0) - count_G)[group_N[order_N]]
    number_N = torch.empty_like(group_N)
    number_N[order_N] = rank_N
    return number_N + first_G[group_N]


def _next_best(
    codes_NL: Tensor,
    codes: int,
    distances: Callable[[Tensor], Tensor],
    taken_PL: Tensor,
    group_N: Tensor,
    group_P: Tensor,
) -> Tensor:
    """IDs in which all rows but one of a group, or all of a published one, have moved on."""
    row_M = _after_the_nearest(codes_NL, distances, group_N, group_P)
    if not len(row_M):
        return codes_NL
    prefix_N, prefix_P = _groups(codes_NL[:, :-1], taken_PL[:, :-1])
    # Only the earlier codes of rows that move need slots.
    number_G = torch.full((_size(prefix_N, prefix_P),), -1)
    moving_G = prefix_N[row_M].unique()
    number_G[moving_G] = torch.arange(len(moving_G))
    room_S = torch.ones(len(moving_G) * codes, dtype=torch.int64)
    for prefix, last in ((prefix_N, codes_NL[:, -1]), (prefix_P, taken_PL[:, -1])):
        there = number_G[prefix] >= 0
        room_S[number_G[prefix[there]] * codes + last[there]] = 0
    first_M = number_G[prefix_N[row_M]] * codes
    slot_M = place(lambda index: distances(row_M[index]), first_M, codes, room_S)
    found_M = slot_M >= 0
    resolved_NL = codes_NL.clone()
    resolved_NL[row_M[found_M], -1] = slot_M[found_M] - first_M[found_M]
    return resolved_NL


def _after_the_nearest(
    codes_NL: Tensor, distances: Callable[[Tensor], Tensor], group_N: Tensor, group_P: Tensor
) -> Tensor:
    """The rows that share an ID, less the nearest of each group that is not published."""
    groups = _size(group_N, group_P)
    count_G = torch.bincount(group_N, minlength=groups)
    published_G = torch.bincount(group_P, minlength=groups) > 0
    row_M = ((count_G > 1) | published_G)[group_N].nonzero()[:, 0]
    if not len(row_M):
        return row_M
    own = [distances(index).gather(1, codes_NL[index, -1:])[:, 0] for index in row_M.split(8192)]
    row_M = row_M[torch.cat(own).sort(stable=True).indices]
    row_M = row_M[group_N[row_M].sort(stable=True).indices]
    group_M = group_N[row_M]
    first_M = torch.ones_like(group_M, dtype=torch.bool)
    first_M[1:] = group_M[1:] != group_M[:-1]
    return row_M[~(first_M & ~published_G[group_M])].sort().values
