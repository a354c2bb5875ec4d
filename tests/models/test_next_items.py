"""Leave-last-out data against plain Python over lists."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.next_items import NextItems, last_rows

sequences = st.lists(st.lists(st.integers(1, 9), max_size=9), min_size=1, max_size=8)


def unpacked(rows_P, lengths_S):
    ends = np.cumsum(lengths_S)
    return [rows_P[end - n : end].tolist() for end, n in zip(ends, lengths_S, strict=True)]


def in_tracks(data, rows):
    return [data.track_ids_I[list(row)].tolist() for row in rows]


@settings(max_examples=150, deadline=None)
@given(sequences)
def test_split_is_leave_last_out(lists):
    data = NextItems.from_sequences(lists, user_ids=range(100, 100 + len(lists)))
    split = [len(items) >= 3 for items in lists]
    expected = [items[:-2] if two else items for items, two in zip(lists, split, strict=True)]
    assert in_tracks(data, unpacked(data.rows_P, data.lengths_U)) == expected
    assert data.track_ids_I[data.test_U].tolist() == [
        items[-1] if two else 0 for items, two in zip(lists, split, strict=True)
    ]
    assert data.track_ids_I[data.valid_U].tolist() == [
        items[-2] if two else 0 for items, two in zip(lists, split, strict=True)
    ]
    listened = [track for items in expected for track in items]
    assert data.counts_I.tolist() == [0, *map(listened.count, data.track_ids_I[1:])]
    assert data.user_ids_U.tolist() == list(range(100, 100 + len(lists)))
    assert data.items == len({track for items in lists for track in items})


@settings(max_examples=150, deadline=None)
@given(sequences, st.sampled_from(["valid", "test"]), st.integers(1, 5), st.integers(1, 4))
def test_held_out_histories_and_targets(lists, part, length, batch_size):
    data = NextItems.from_sequences(lists)
    cut = 2 if part == "valid" else 1
    expected, repeated = [], 0
    for user, items in enumerate(lists):
        if len(items) >= 3:
            history, target = items[:-cut], items[-cut]
            if target in history:
                repeated += 1
            else:
                expected.append((user, history, target))
    held = data.held_out(part)
    assert held.repeated == repeated
    found = []
    for batch in held.batches(length=length, batch_size=batch_size):
        assert len(batch.users_S) <= batch_size
        whole = in_tracks(data, unpacked(batch.seen_Q, batch.seen_lengths_S))
        read = in_tracks(data, unpacked(batch.rows_P, batch.lengths_S))
        assert read == [history[-length:] for history in whole]
        targets = data.track_ids_I[batch.targets_S].tolist()
        found += list(zip(batch.users_S.tolist(), whole, targets, strict=True))
    assert found == expected


@settings(max_examples=150, deadline=None)
@given(sequences, st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_train_batches_are_next_items_at_every_position(lists, length, batch_size, workers):
    data = NextItems.from_sequences(lists)
    train = [items[:-2] if len(items) >= 3 else items for items in lists]
    expected = [items[-length - 1 :] for items in train if len(items) >= 2]
    found = []
    for rank in range(workers):
        for batch in data.train_batches(
            length=length, batch_size=batch_size, seed=3, share=(rank, workers)
        ):
            inputs = in_tracks(data, unpacked(batch.rows_P, batch.lengths_S))
            targets = in_tracks(data, unpacked(batch.targets_P, batch.lengths_S))
            for given_items, next_items in zip(inputs, targets, strict=True):
                assert given_items[1:] == next_items[:-1]
                found.append([*given_items, next_items[-1]])
    assert sorted(found) == sorted(expected)


def test_epochs_are_shuffled_by_their_seed():
    data = NextItems.from_sequences([[user, 90, 91, 92] for user in range(1, 60)])

    def order(seed):
        return [b.rows_P.tolist() for b in data.train_batches(length=5, batch_size=7, seed=seed)]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_a_catalogue_is_ranked_whole_and_a_foreign_track_is_refused():
    data = NextItems.from_sequences([[5, 3, 9]], track_ids=[9, 1, 3, 5])
    assert data.track_ids_I.tolist() == [0, 1, 3, 5, 9]
    assert (data.test_U.tolist(), data.valid_U.tolist()) == ([4], [2])
    with pytest.raises(ValueError, match="track 9 is not one of track_ids"):
        NextItems.from_sequences([[5, 3, 9]], track_ids=[3, 5])


def test_save_and_load(tmp_path):
    data = NextItems.from_sequences([[5, 3, 9, 5], [3, 3]])
    data.save(tmp_path / "set.npz")
    again = NextItems.load(tmp_path / "set.npz")
    for name in ("track_ids_I", "counts_I", "rows_P", "lengths_U", "valid_U", "test_U"):
        found, expected = getattr(again, name), getattr(data, name)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    np.savez(tmp_path / "other.npz", rows_P=data.rows_P)
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("other.npz", "text.npz"):
        with pytest.raises(ValueError, match="is not next-item data"):
            NextItems.load(tmp_path / name)


def test_bad_input_is_named():
    data = NextItems.from_sequences([[5, 3, 9, 5]])
    with pytest.raises(ValueError, match="part must be one of"):
        data.held_out("train")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        next(data.train_batches(length=5, batch_size=0, seed=0))
    fields = {name: getattr(data, name) for name in data.__dataclass_fields__}
    with pytest.raises(ValueError, match="test_U must hold 0 to 3, got 4 to 4"):
        NextItems(**fields | {"test_U": np.array([4], dtype=np.int32)})
    with pytest.raises(ValueError, match="lengths_U must sum to 2"):
        NextItems(**fields | {"lengths_U": np.array([3])})
    with pytest.raises(ValueError, match="a target for the same users"):
        NextItems(**fields | {"valid_U": np.array([0], dtype=np.int32)})


def test_last_rows_of_chosen_users():
    rows, lengths = np.arange(10), np.array([4, 0, 3, 3])
    cut, kept = last_rows(rows, lengths, np.array([3, 0, 1]), 2)
    assert (cut.tolist(), kept.tolist()) == ([8, 9, 2, 3], [2, 2, 0])
