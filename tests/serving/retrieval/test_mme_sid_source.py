"""The retriever model in a replica: the tracks of brute force, its budget, what is refused."""

import numpy as np
import pytest
import torch

from feature_repo.errors import ArtifactError
from feature_repo.mme_sid_reader import read_mme_sid
from feature_repo.workspace import Workspace
from serving.releases import Release
from serving.retrieval import mme_sid_source
from serving.retrieval.mme_sid_source import MmeSidSource
from tests.retrievers import LENGTH, brute_force, write_retriever

TRACKS = [3, 5, 9, *range(100, 400, 3)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("source") / "workspace")
    return workspace, write_retriever(workspace, TRACKS)


def release_of(workspace, model_id, **changes) -> Release:
    fields = {
        "release_id": "release-aaaaaaaaaaaa",
        "model_id": "model-aaaaaaaaaaaa",
        "model_sha256": "",
        "generation_id": "gen-aaaaaaaaaaaa",
        "feature_service": "none",
        "created_at": "",
        "replaces": None,
        "retriever_model_id": model_id,
        "retriever_sha256": read_mme_sid(workspace, model_id).sha256,
    }
    return Release(**fields | changes)


def test_finds_the_tracks_that_brute_force_finds(model):
    workspace, model_id = model
    source = MmeSidSource.load(workspace, release_of(workspace, model_id))
    expected = brute_force(workspace, model_id)
    random = np.random.default_rng(0)
    for length in (1, 2, LENGTH, 3 * LENGTH):
        history = random.choice([*TRACKS, 10**6], length)
        history[0] = 3
        found = source.nearest(history, len(TRACKS))
        unheard = [track for track in found.tolist() if track not in history]
        tracks, scores = expected(history.tolist())
        score_of = dict(zip(tracks, scores, strict=True))
        assert sorted(unheard) == sorted(tracks)
        np.testing.assert_allclose([score_of[track] for track in unheard], scores, atol=1e-5)
        first = source.nearest(history, 7)
        np.testing.assert_array_equal(first, found[:7])


def test_nobody_and_strangers_are_told_nothing(model):
    workspace, model_id = model
    source = MmeSidSource.load(workspace, release_of(workspace, model_id))
    assert len(source.nearest(np.empty(0, dtype=np.int64), 5)) == 0
    assert len(source.nearest(np.array([-1, 10**12]), 5)) == 0


def test_a_budget_that_its_passes_exceed_is_not_enough(model):
    workspace, model_id = model
    source = MmeSidSource.load(workspace, release_of(workspace, model_id))
    assert 0 < source.cost_s < mme_sid_source.LIVE_BUDGET_S
    assert source.fits(source.cost_s)
    assert not source.fits(source.cost_s / 2)
    # A busy spell: the estimate is above the budget, and comes back while nothing is asked.
    source._expected_s, budget_s = 100 * source._fastest_s, 2 * source._fastest_s
    tries = 1
    while not source.fits(budget_s):
        tries += 1
    assert 50 < tries < 1000
    before = source.cost_s
    source._expected_s = 0.0
    source.nearest(np.array([3]), 1)
    assert 0 < source.cost_s < before


def test_a_model_that_is_too_slow_or_too_large_here_is_refused(model, monkeypatch):
    workspace, model_id = model
    release = release_of(workspace, model_id)
    fix = f"crescendo score-users --model-id {model_id}"
    with monkeypatch.context() as patch:
        patch.setattr(mme_sid_source, "LIVE_BUDGET_S", 0.0)
        with pytest.raises(ArtifactError, match=rf"takes \d+ ms for a user here.*{fix}"):
            MmeSidSource.load(workspace, release)
    if not torch.cuda.is_available():
        monkeypatch.setattr(mme_sid_source, "LIVE_CPU_BYTES", 100)
        with pytest.raises(ArtifactError, match=rf"bytes of weights and no GPU.*{fix}"):
            MmeSidSource.load(workspace, release)


def test_other_weights_than_the_released_ones_are_refused(model):
    workspace, model_id = model
    with pytest.raises(ArtifactError, match="was trained again since release release-aaaa"):
        MmeSidSource.load(workspace, release_of(workspace, model_id, retriever_sha256="0" * 64))
