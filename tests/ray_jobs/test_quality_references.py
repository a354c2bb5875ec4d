"""What semantic IDs are held against: tags, clusters, what is listened to together."""

from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from feature_repo.workspace import Workspace
from ray_jobs.quality_references import co_listened, reference, tag_labels
from tests.event_logs import event, write_events
from tests.models.blobs import blobs
from tests.ray_jobs.measured import COUNT, genre_labels, some_listens, stored, write_tracks

pytest_plugins = ["tests.ray_jobs.measured"]


def test_a_tracks_label_is_its_most_common_telling_tag(made):
    workspace, *_ = made
    order = np.random.default_rng(0).permutation(np.arange(1, COUNT + 1))
    found = tag_labels(workspace, order)
    expected = genre_labels()[order - 1]
    assert normalized_mutual_info_score(found.label_N, expected) == pytest.approx(1)
    np.testing.assert_array_equal(found.label_N < 0, expected < 0)


@pytest.mark.parametrize("tags", [[None] * COUNT, [["all"]] * COUNT, [["a"]] * 150 + [None] * 250])
def test_without_telling_tags_the_reference_is_clusters_of_the_vectors(tmp_path, tags):
    workspace = Workspace(tmp_path)
    write_tracks(workspace, tags)
    x = blobs(COUNT, 4, 16) * torch.tensor([1.0, 1.0, 1.0, 0.1])
    found = reference(workspace, np.arange(1, COUNT + 1), x, seed=3)
    assert found.kind == "clusters"
    assert (found.labels, found.labelled) == (16, COUNT)
    again = reference(workspace, np.arange(1, COUNT + 1), x, seed=3)
    np.testing.assert_array_equal(found.label_N, again.label_N)


@pytest.mark.parametrize("sessions", [False, True])
def test_co_listened_pairs_by_a_loop(tmp_path, sessions):
    """Against counting in plain Python; ties in the count may go either way."""
    workspace = Workspace(tmp_path)
    events = some_listens(48)
    for row in events:
        row["session_id"] = row["event_id"] // 200 if sessions else None
    write_events(workspace, events)
    known = np.arange(40, 1, -1)
    found = co_listened(workspace, known)
    assert found.within == ("session" if sessions else "user")
    held: dict = {}
    for row in events:
        if row["action"] != "skip" and row["track_id"] in known:
            held.setdefault((row["user_id"], row["session_id"]), set()).add(row["track_id"])
    times = Counter((a, b) for tracks in held.values() for a in tracks for b in tracks if a != b)
    items = known[found.pair_P2[:, 0]]
    assert set(items) == {a for (a, b), n in times.items() if n >= 2}
    for item in np.unique(items):
        chosen = known[found.pair_P2[found.pair_P2[:, 0] == list(known).index(item), 1]]
        counts = sorted((n for (a, b), n in times.items() if a == item and n >= 2), reverse=True)
        assert sorted((times[item, b] for b in chosen), reverse=True) == counts[:10]


def test_nobody_listens_to_anything_together(tmp_path):
    workspace = Workspace(tmp_path)
    assert co_listened(workspace, np.arange(3)) is None
    write_events(workspace, [event(n, n, n, n) for n in range(20)])
    assert co_listened(workspace, np.arange(20)) is None


def test_co_listening_is_measured_beside_chance(made):
    """Users keep to a cluster, and codes to clusters: partners share prefixes beyond chance."""
    _, _, answer, families = made
    found = stored(answer)["text"]["measures"]["co_listened_prefix_recall"]
    assert found["recall"][0] - 3 * found["standard_error"][0] > found["chance"][0]
    assert families[0].within == "user"
