"""amazon-beauty: order in, synthetic times out, and the same order back through Feast."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from feature_repo.errors import InputError
from models.next_items import NextItems
from ray_jobs.next_item_set import NextItemOptions, next_item_set, read_next_items
from ray_jobs.publish import publish
from ray_jobs.sequences import SequenceOptions, sequences
from tests.generations import write_generation


def write_source(folder, lines, vectors):
    (folder / "sequences.txt").write_text("\n".join(lines))
    np.save(folder / "sasrec_item_embeddings.npy", vectors)
    return folder


def test_order_becomes_days_before_one_moment(tmp_path, workspace, ingested, by_title):
    vectors = np.arange(8, dtype=np.float32).reshape(4, 2)
    result = ingested("amazon-beauty", write_source(tmp_path, ["7 3 1 2", "9 2 3"], vectors))
    assert (result["tracks"], result["events"], result["users"]) == (3, 5, 2)
    events = pq.read_table(workspace.events).sort_by("event_timestamp").to_pylist()
    found = {
        user: [
            (one["track_id"], str(one["event_timestamp"].date()))
            for one in events
            if one["user_id"] == user
        ]
        for user in (7, 9)
    }
    assert found == {
        7: [(3, "2014-06-29"), (1, "2014-06-30"), (2, "2014-07-01")],
        9: [(2, "2014-06-30"), (3, "2014-07-01")],
    }
    # Row n of the file is product n; the padding is no product.
    assert {title: row["collaborative_vector"] for title, row in by_title().items()} == {
        "product 1": [2, 3],
        "product 2": [4, 5],
        "product 3": [6, 7],
    }


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["7 3 1 4"], "names the items 1 to 4, sasrec_item_embeddings.npy has rows for 1 to 3"),
        (["7 0 1 2"], "names the items 0 to 2"),
        (["7 3 b"], "expected a text file with a line `user item item ...`"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, ingested, lines, said):
    folder = write_source(tmp_path, lines, np.zeros((4, 2), np.float32))
    with pytest.raises(InputError, match=said):
        ingested("amazon-beauty", folder)


@pytest.mark.slow
def test_the_real_sequences_come_back_through_feast(shared_data, workspace, ingested):
    path = shared_data("amazon-beauty-collab")
    result = ingested("amazon-beauty", path)
    assert (result["tracks"], result["events"], result["users"]) == (12_086, 198_215, 22_332)
    source = np.load(path / "sasrec_item_embeddings.npy")
    column = pq.read_table(workspace.tracks).sort_by("track_id")["collaborative_vector"]
    found = column.combine_chunks().flatten().to_numpy().reshape(-1, 64)
    np.testing.assert_array_equal(found, source[1:])

    write_generation(workspace, "gen-bbbbbbbbbbbb", 10)
    sequences(workspace, SequenceOptions(length=50))
    publish(workspace)
    made = next_item_set(workspace, NextItemOptions(length=50))
    data = read_next_items(workspace.training_sets / made.id)
    lines = [line.split() for line in (path / "sequences.txt").read_text().splitlines()]
    # What is longer than the view's lists keeps its newest items.
    expected = NextItems.from_sequences(
        [[int(item) for item in line[1:]][-51:] for line in lines],
        user_ids=[int(line[0]) for line in lines],
    )
    for name in ("track_ids_I", "rows_P", "lengths_U", "valid_U", "test_U", "user_ids_U"):
        np.testing.assert_array_equal(getattr(data, name), getattr(expected, name))
    assert made.info["repeated_test"] == made.info["repeated_valid"] == 0
