"""Placement against a plain walk through all pairs by ascending distance."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import placement
from models.placement import place


def walk(distance_NK, first_N, room_S):
    """All pairs by (distance, row, slot): taken if the row has no slot and the slot has room."""
    n, k = distance_NK.shape
    pairs = sorted((distance_NK[i, j], i, first_N[i] + j) for i in range(n) for j in range(k))
    slots, room = [-1] * n, list(room_S)
    for _, row, slot in pairs:
        if slots[row] < 0 and room[slot] > 0:
            slots[row] = int(slot)
            room[slot] -= 1
    return slots


def placed(distance_NK, first_N, room_S):
    distance_NK = torch.as_tensor(distance_NK, dtype=torch.float32)
    return place(
        lambda index: distance_NK[index],
        torch.as_tensor(first_N),
        distance_NK.shape[1],
        torch.as_tensor(room_S),
    ).tolist()


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_equals_the_walk_through_all_pairs_ties_included(data):
    n, k, groups = (data.draw(st.integers(1, top)) for top in (12, 6, 3))
    distance = np.array(data.draw(st.lists(st.integers(0, 4), min_size=n * k, max_size=n * k)))
    first = np.array(data.draw(st.lists(st.integers(0, groups - 1), min_size=n, max_size=n))) * k
    room = data.draw(st.lists(st.integers(0, 3), min_size=groups * k, max_size=groups * k))
    distance = distance.reshape(n, k)
    assert placed(distance, first, room) == walk(distance, first, room)


@pytest.mark.parametrize("short_list", [1, 2, 16])
@pytest.mark.parametrize("room", [10, 13, 3])
def test_short_lists_and_chunks_change_nothing(short_list, room, monkeypatch):
    """room 10: every place is taken; room 3: most rows find none."""
    distance = torch.rand(300, 30, generator=torch.Generator().manual_seed(1))
    distance[:, :5] *= 0.2  # crowded
    expected = walk(distance.numpy(), [0] * 300, [room] * 30)
    monkeypatch.setattr(placement, "SHORT_LIST", short_list)
    monkeypatch.setattr(placement, "CHUNK_ELEMENTS", 64)
    assert placed(distance, [0] * 300, [room] * 30) == expected


def test_no_rows_and_no_room():
    assert placed(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), [1, 1, 1]) == []
    assert placed(torch.zeros(2, 2), [0, 2], [0, 0, 1, 0]) == [-1, 2]
