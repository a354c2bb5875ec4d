"""Rows placed in slots of limited room, nearest first.

The placement is that of going through all (row, slot) pairs by ascending distance and taking each
pair whose row has no slot yet and whose slot has room: no row and slot that are not together would
both be nearer to each other than to what they have. It does not depend on how the work is cut up.

It is found without the sorted list, by deferred acceptance (Gale and Shapley 1962): each row asks
the nearest slot that would have it; a slot keeps its nearest rows and turns the others away, which
ask their next one. What a slot asks for only rises, so a row that it turned away once never comes
back. Rows hold a short list of slots, renewed when all of them have turned the row away: memory is
a few numbers a row.

Shape suffixes: N rows, M some of them, K slots that one row can go to, S all slots, C short list.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SHORT_LIST = 16
CHUNK_ELEMENTS = 1 << 21
"""Distances held at once."""


@dataclass(kw_only=True)
class _Slots:
    """What each slot asks for: a row at (distance, index) below (`limit_S`, `last_S`)."""

    room_S: Tensor
    limit_S: Tensor
    last_S: Tensor

    def accept(self, distance_MK: Tensor, row_M: Tensor, slot_MK: Tensor) -> Tensor:
        limit_MK = self.limit_S[slot_MK]
        tie_MK = (distance_MK == limit_MK) & (row_M[:, None] < self.last_S[slot_MK])
        return (distance_MK < limit_MK) | tie_MK


def place(
    distances: Callable[[Tensor], Tensor], first_N: Tensor, width: int, room_S: Tensor
) -> Tensor:
    """Slot (N,) int64 of each row, -1 for a row that no slot has room for.

    Row n may go to the `width` slots from `first_N[n]` on; `room_S` says how many rows each slot
    takes. `distances(index_M)` gives the distances (M, width) of some rows to their slots, finite.
    A tie between rows goes to the lower row, one between slots to the lower slot (beyond the
    SHORT_LIST nearest: to either).
    """
    rows, device = len(first_N), first_N.device
    slots = _Slots(
        room_S=room_S,
        limit_S=torch.where(room_S > 0, math.inf, -math.inf).to(device),
        last_S=torch.full_like(room_S, -1),
    )
    slot_N = torch.full((rows,), -1, device=device)
    distance_N = torch.full((rows,), math.inf, device=device)
    c = min(SHORT_LIST, width)
    list_NC = torch.zeros(rows, c, dtype=torch.int64, device=device)
    distance_NC = torch.full((rows, c), math.inf, device=device)
    free_M = torch.arange(rows, device=device)
    while len(free_M):
        wanted_MC = slots.accept(distance_NC[free_M], free_M, list_NC[free_M])
        stale_M = free_M[~wanted_MC.any(1)]
        for index_M in stale_M.split(max(1, CHUNK_ELEMENTS // width)) if len(stale_M) else ():
            _renew(index_M, distances(index_M), first_N, slots, list_NC, distance_NC)
        wanted_MC = slots.accept(distance_NC[free_M], free_M, list_NC[free_M])
        any_M = wanted_MC.any(1)
        asking_M, best_M1 = free_M[any_M], wanted_MC[any_M].int().argmax(1, keepdim=True)
        slot_N[asking_M] = list_NC[asking_M].gather(1, best_M1)[:, 0]
        distance_N[asking_M] = distance_NC[asking_M].gather(1, best_M1)[:, 0]
        free_M = _turn_away(slot_N, distance_N, asking_M, slots)
    return slot_N


def _renew(
    index_M: Tensor,
    distance_MK: Tensor,
    first_N: Tensor,
    slots: _Slots,
    list_NC: Tensor,
    distance_NC: Tensor,
) -> None:
    """The short lists of some rows: the nearest slots that would have them, ascending."""
    k, c = distance_MK.shape[1], list_NC.shape[1]
    slot_MK = first_N[index_M, None] + torch.arange(k, device=first_N.device)
    accepted_MK = slots.accept(distance_MK, index_M, slot_MK)
    left_MK = torch.where(accepted_MK, distance_MK, math.inf)
    code_MC = left_MK.topk(c, largest=False).indices.sort(1).values
    distance_MC, order_MC = left_MK.gather(1, code_MC).sort(dim=1, stable=True)
    list_NC[index_M] = first_N[index_M, None] + code_MC.gather(1, order_MC)
    distance_NC[index_M] = distance_MC


def _turn_away(slot_N: Tensor, distance_N: Tensor, asking_M: Tensor, slots: _Slots) -> Tensor:
    """Keeps the nearest rows of each slot that was asked; returns those that must go on, or -1."""
    asked_S = torch.zeros(len(slots.room_S), dtype=torch.bool, device=slot_N.device)
    asked_S[slot_N[asking_M]] = True
    row_M = ((slot_N >= 0) & asked_S[slot_N]).nonzero()[:, 0]
    row_M = row_M[distance_N[row_M].sort(stable=True).indices]
    row_M = row_M[slot_N[row_M].sort(stable=True).indices]
    slot_M = slot_N[row_M]
    count_S = torch.bincount(slot_M, minlength=len(asked_S))
    rank_M = torch.arange(len(row_M), device=row_M.device) - (count_S.cumsum(0) - count_S)[slot_M]
    room_M = slots.room_S[slot_M]
    edge_M = rank_M == room_M - 1  # the last one that fits: the slot is full from here on
    slots.limit_S[slot_M[edge_M]] = distance_N[row_M[edge_M]]
    slots.last_S[slot_M[edge_M]] = row_M[edge_M]
    away_M = row_M[rank_M >= room_M]
    slot_N[away_M] = -1
    return away_M.sort().values
