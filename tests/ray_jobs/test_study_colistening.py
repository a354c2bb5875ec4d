"""Co-listening vectors: counts and PPMI against plain loops, and nothing from after the cut."""

from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.sparse import csr_matrix

from feature_repo import schema
from feature_repo.artifacts import newest, read_manifest
from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from ray_jobs.colistening import (
    WINDOW,
    ColisteningOptions,
    colistening,
    listens_before,
    pair_counts,
    ppmi,
    svd_vectors,
)
from ray_jobs.embed import read_embeddings
from ray_jobs.impressions import ImpressionOptions, impressions
from tests.event_logs import START, event, write_events
from tests.ray_jobs.study_world import TRACK_COUNT, listening, write_tracks

OPTIONS = ColisteningOptions(dims=8)


@pytest.fixture
def workspace(tmp_path):
    workspace = Workspace(tmp_path / "workspace")
    write_tracks(workspace)
    write_events(workspace, listening())
    return workspace


def test_pairs_are_those_of_a_plain_loop():
    random = np.random.default_rng(0)
    units = np.sort(random.integers(0, 4, 90))
    tracks = random.integers(0, 7, 90)
    expected = np.zeros((7, 7))
    for one in range(90):
        for other in range(90):
            near = one != other and abs(one - other) <= WINDOW
            if near and units[one] == units[other] and tracks[one] != tracks[other]:
                expected[tracks[one], tracks[other]] += 1
    np.testing.assert_array_equal(pair_counts(units, tracks, 7).toarray(), expected)


def test_ppmi_is_the_formula():
    counts = np.array([[0.0, 6, 1], [6, 0, 0], [1, 0, 0]])
    expected = np.zeros((3, 3))
    for i, j in zip(*np.nonzero(counts), strict=True):
        chance = counts[i].sum() * counts[j].sum() / counts.sum()
        expected[i, j] = max(0.0, np.log(counts[i, j] / chance))
    found = ppmi(csr_matrix(counts)).toarray()
    np.testing.assert_allclose(found, expected)
    assert found[0, 2] > 0


def test_vectors_are_numpys_svd_up_to_signs():
    random = np.random.default_rng(2)
    matrix = random.random((30, 30))
    matrix = matrix + matrix.T
    found = svd_vectors(csr_matrix(matrix), 5)
    u, s, _ = np.linalg.svd(matrix)
    expected = u[:, :5] * np.sqrt(s[:5])
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-5)
    assert (found[np.abs(found).argmax(0), np.arange(5)] > 0).all()
    np.testing.assert_array_equal(found, svd_vectors(csr_matrix(matrix), 5))


def test_a_session_ends_a_unit_where_every_listen_names_one(tmp_path):
    workspace = Workspace(tmp_path)
    log = [event(n, 1 + n // 4, 10 + n, float(n)) for n in range(8)]
    cut = START + timedelta(days=1)
    write_events(workspace, log)
    assert len(np.unique(listens_before(workspace, cut)[0])) == 2  # two users
    for row in log:
        row["session_id"] = row["event_id"] // 2
    write_events(workspace, log)
    units, tracks = listens_before(workspace, cut)
    assert len(np.unique(units)) == 4
    for (one, _), (other, _) in pairwise(zip(units, tracks, strict=True)):
        assert one <= other


def test_only_listens_that_had_arrived_before_the_cut_are_seen(tmp_path):
    workspace = Workspace(tmp_path)
    write_events(
        workspace,
        [
            event(1, 1, 11, 0.0),
            event(2, 1, 12, 5.0, late_minutes=100.0),  # arrives after the cut
            event(3, 1, 13, 6.0, action="skip"),
            event(4, 1, 14, 7.0, action="favourite"),
            event(5, 1, 15, 10.0),  # at the cut
        ],
    )
    _, tracks = listens_before(workspace, START + timedelta(minutes=10))
    assert tracks.tolist() == [11, 14]


def test_what_comes_after_the_training_part_changes_no_vector(workspace):
    made = colistening(workspace, OPTIONS)
    track_ids, vectors, encoder_id = read_embeddings(workspace, "colisten")
    assert encoder_id == made["encoder_id"]
    assert made["ok"] == len(track_ids) == TRACK_COUNT
    rows = impressions(workspace.events, ImpressionOptions())
    cut = rows.loc[rows["part"] == "validation", schema.EVENT_TIMESTAMP].min()
    log = listening()
    later = [row for row in log if row["event_timestamp"] >= cut]
    assert len(later) > 100
    for row in later:  # other tracks, at the same moments
        row["track_id"] = row["track_id"] % TRACK_COUNT + 1
    write_events(workspace, log)
    assert colistening(workspace, OPTIONS)["encoder_id"] != encoder_id  # it is another log
    np.testing.assert_array_equal(read_embeddings(workspace, "colisten")[1], vectors)
    for row in log:
        if row["event_timestamp"] < cut:
            row["track_id"] = row["track_id"] % TRACK_COUNT + 1
    write_events(workspace, log)
    colistening(workspace, OPTIONS)
    assert not np.array_equal(read_embeddings(workspace, "colisten")[1], vectors)


def test_tracks_that_are_liked_together_lie_together(workspace):
    colistening(workspace, OPTIONS)
    track_ids, vectors, _ = read_embeddings(workspace, "colisten")
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T
    same = (track_ids[:, None] - track_ids[None, :]) % 5 == 0
    off = ~np.eye(len(track_ids), dtype=bool)
    assert cosine[same & off].mean() > cosine[~same].mean() + 0.1


def test_it_is_made_once_and_is_the_newest_when_asked_for(workspace):
    first = colistening(workspace, OPTIONS)
    folder = workspace.embeddings("colisten", first["encoder_id"])
    written = (folder / "part-00001.parquet").stat().st_mtime_ns
    second = colistening(workspace, replace(OPTIONS, dims=6))
    assert second["encoder_id"] != first["encoder_id"]
    assert colistening(workspace, OPTIONS) == first
    assert (folder / "part-00001.parquet").stat().st_mtime_ns == written
    assert newest(folder.parent, kind="embedding", made_by="study").id == first["encoder_id"]
    options = read_manifest(folder, kind="embedding", made_by="study").options
    assert options["window"] == WINDOW
    assert options["before"].startswith("2026-01-1")


def test_a_track_that_nobody_heard_has_a_row_that_says_so(workspace):
    log = [row for row in listening() if row["track_id"] != 7]
    write_events(workspace, log)
    made = colistening(workspace, OPTIONS)
    assert (made["ok"], made["errors"]) == (TRACK_COUNT - 1, 1)
    folder = workspace.embeddings("colisten", made["encoder_id"])
    rows = {
        row["track_id"]: row for row in pq.read_table(folder / "part-00001.parquet").to_pylist()
    }
    assert rows[7]["vector"] is None
    assert rows[7]["error"] == "not listened to beside another track"
    assert 7 not in read_embeddings(workspace, "colisten")[0]


def test_more_dims_than_tracks_are_refused(workspace):
    with pytest.raises(InputError, match=r"dims must be fewer than the 90 tracks .* got 90"):
        colistening(workspace, ColisteningOptions(dims=90))
    with pytest.raises(InputError, match="dims must be at least 1, got 0"):
        ColisteningOptions(dims=0)
