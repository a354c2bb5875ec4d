"""Study worlds against their sources, read another way."""

import collections
import csv
import gzip

import numpy as np
import pytest

from feature_repo.errors import InputError
from ray_jobs.mme_worlds import CORE, beauty, core_of, hetrec_spotify


def test_beauty_is_the_sequences_of_its_file(shared_data):
    folder = shared_data("amazon-beauty-collab")
    world = beauty(folder)
    data = world.next_items
    assert (data.items, len(data.user_ids_U)) == (12_086, 22_332)
    first = [int(word) for word in (folder / "sequences.txt").read_text().split("\n", 1)[0].split()]
    user, *items = first
    assert data.user_ids_U[0] == user
    assert data.rows_P[: data.lengths_U[0]].tolist() == items[:-2]  # rows are the item numbers
    assert (data.valid_U[0], data.test_U[0]) == tuple(items[-2:])
    given = np.load(folder / "sasrec_item_embeddings.npy")
    np.testing.assert_array_equal(world.raw["collaborative_given"][1:], given[1:])
    assert not world.raw["collaborative_given"][0].any()


def test_an_item_without_an_embedding_is_refused(tmp_path):
    (tmp_path / "sequences.txt").write_text("1 2 3 4\n2 9 1 2\n")
    np.save(tmp_path / "sasrec_item_embeddings.npy", np.ones((5, 2), np.float32))
    with pytest.raises(InputError, match="item 9 has no row"):
        beauty(tmp_path)


def test_core_drops_users_and_tracks_until_all_have_enough():
    random = np.random.default_rng(0)
    user_E = random.integers(0, 30, 300)
    track_E = (30 * random.random(300) ** 2).astype(int)
    kept_E = core_of(user_E, track_E, np.ones(300, dtype=bool))
    for column in (user_E, track_E):
        assert min(collections.Counter(column[kept_E]).values()) >= CORE
    # One by one: drop any event of a user or track with too few, until there is none.
    left = set(range(300))
    while True:
        users = collections.Counter(user_E[event] for event in left)
        tracks = collections.Counter(track_E[event] for event in left)
        few = {e for e in left if users[user_E[e]] < CORE or tracks[track_E[e]] < CORE}
        if not few:
            break
        left -= few
    assert left == set(np.flatnonzero(kept_E).tolist())


@pytest.mark.slow
def test_hetrec_is_the_core_of_artists_with_text_and_audio(shared_data):
    folder = shared_data("hetrec-spotify")
    world = hetrec_spotify(folder)
    data = world.next_items
    with gzip.open(folder / "items.csv.gz", "rt") as stream:
        items = {int(row["item_id"]): row for row in csv.DictReader(stream)}
    kept = data.track_ids_I[1:].tolist()
    assert all(items[item]["has_audio"] == "1" and items[item]["tags"] for item in kept)
    with gzip.open(folder / "interactions.csv.gz", "rt") as stream:
        moments = {
            (int(row["user_id"]), int(row["item_id"])): float(row["first_tag_ts_ms"])
            for row in csv.DictReader(stream)
            if row["first_tag_ts_ms"]
        }
    for place in range(0, len(data.user_ids_U), 50):
        user = int(data.user_ids_U[place])
        start = int(data.lengths_U[:place].sum())
        rows = data.rows_P[start : start + data.lengths_U[place]].tolist()
        rows += [data.valid_U[place], data.test_U[place]]
        assert len(rows) >= CORE
        times = [moments[user, int(data.track_ids_I[row])] for row in rows]
        # Months: within one the order is the file's.
        assert min(np.diff(times)) > -32 * 86_400_000
    assert {family: table.shape for family, table in world.raw.items()} == {
        "text": (data.items + 1, 384),
        "audio": (data.items + 1, 12),
    }
    assert world.raw["text"][1:].any(1).all()
