"""From feature columns to a batch, against a row-by-row reading of the same columns."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.batch import (
    FIRST_TRACK_ROW,
    MISSING_CODE,
    ZERO_ROW,
    ItemLookup,
    ItemTable,
    Vocabulary,
    make_batch,
    track_rows,
)

TRACKS = np.array([3, 5, 8, 13], dtype=np.int64)
CODES_IFL = np.arange(4 * 2 * 3).reshape(4, 2, 3)
ITEMS = ItemTable(track_ids_I=TRACKS, codes_IFL=CODES_IFL)
VOCABULARY = Vocabulary(
    track_ids_I=np.array([5, 13], dtype=np.int64), train_counts_I=np.array([40, 2])
)
ANY_TRACK = st.sampled_from([*TRACKS.tolist(), -7, 99, 2**62])


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(ANY_TRACK, st.lists(ANY_TRACK, max_size=6)), min_size=1, max_size=5),
    length=st.integers(1, 4),
)
def test_batch_equals_reading_row_by_row(rows, length):
    histories = [history for _, history in rows]
    listens = track_rows(
        torch.tensor([target for target, _ in rows]),
        torch.tensor([track for history in histories for track in history], dtype=torch.int64),
        torch.tensor([0, *(len(history) for history in histories)]).cumsum(0),
        history_length=length,
    )
    batch = make_batch(listens, ItemLookup.of(ITEMS, VOCABULARY, torch.device("cpu")))
    known = dict(zip(TRACKS.tolist(), CODES_IFL, strict=True))
    missing = np.full((2, 3), MISSING_CODE)
    id_rows = {5: FIRST_TRACK_ROW, 13: FIRST_TRACK_ROW + 1}
    for row, (target, history) in enumerate(rows):
        assert batch.target_ids_B[row] == id_rows.get(target, ZERO_ROW)
        np.testing.assert_array_equal(batch.target_codes_BFL[row], known.get(target, missing))
        kept = history[-length:]
        for position in range(length):
            if position < len(kept):
                track = kept[position]
                assert batch.history_mask_BT[row, position] == 1
                assert batch.history_ids_BT[row, position] == id_rows.get(track, ZERO_ROW)
                expected = known.get(track, missing)
            else:
                assert batch.history_mask_BT[row, position] == 0
                assert batch.history_ids_BT[row, position] == ZERO_ROW
                expected = missing
            np.testing.assert_array_equal(batch.history_codes_BTFL[row, position], expected)


def test_train_counts_are_zero_outside_the_vocabulary():
    np.testing.assert_array_equal(VOCABULARY.train_counts(np.array([5, 3, 13])), [40, 0, 2])


def test_unsorted_item_table_is_refused():
    with pytest.raises(ValueError, match="sorted"):
        ItemTable(track_ids_I=TRACKS[::-1], codes_IFL=CODES_IFL)
    with pytest.raises(ValueError, match="4 track ids but 3 rows"):
        ItemTable(track_ids_I=TRACKS, codes_IFL=CODES_IFL[:3])
