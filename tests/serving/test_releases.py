"""Releases: the check of a triple, going live, going back."""

import json
from dataclasses import replace

import pytest

from feature_repo.artifacts import MANIFEST, write_json
from feature_repo.errors import ArtifactError, InputError
from feature_repo.store import open_store
from serving.ranker import ReleaseRanker
from serving.releases import CURRENT, live_release, make_release, rollback


@pytest.fixture
def workspace(trained):
    workspace, _ = trained
    yield workspace
    for path in workspace.releases.glob("*"):
        path.unlink()


def test_release_goes_live_with_its_feature_service(workspace, trained):
    made = make_release(workspace)
    live = live_release(workspace)
    assert live.release_id == made["release_id"]
    assert live.model_id == trained[1]["model_id"]
    service = open_store(workspace).get_feature_service(live.feature_service)
    assert {projection.name for projection in service.feature_view_projections} == {
        "user_sequence",
        "track_semantic_ids_gen_cccccccccccc",
    }


def test_making_it_twice_changes_nothing(workspace):
    first = make_release(workspace)
    again = make_release(workspace)
    assert (again["release_id"], again["replaces"]) == (first["release_id"], None)


def test_rollback_needs_a_release_before(workspace):
    with pytest.raises(ArtifactError, match="crescendo release"):
        rollback(workspace)
    make_release(workspace)
    with pytest.raises(InputError, match="nothing to go back to"):
        rollback(workspace)


def test_rollback_makes_the_earlier_release_live(workspace):
    first = make_release(workspace)
    second = {**first, "release_id": "release-second", "replaces": first["release_id"]}
    write_json(workspace.releases / "release-second.json", second)
    (workspace.releases / CURRENT).write_text("release-second\n")
    assert rollback(workspace)["release_id"] == first["release_id"]
    assert live_release(workspace).release_id == first["release_id"]


def test_a_model_trained_again_is_not_the_released_one(workspace):
    make_release(workspace)
    live = replace(live_release(workspace), model_sha256="0" * 64)
    with pytest.raises(ArtifactError, match="was trained again since release"):
        ReleaseRanker(workspace, live)


def test_a_feature_service_of_other_features_is_refused(workspace):
    make_release(workspace)
    live = live_release(workspace)
    with pytest.raises(ArtifactError, match=r"'track_semantic_ids_gen_cccccccccccc:audio_sid'"):
        ReleaseRanker(workspace, replace(live, feature_service="user_taste"))
    with pytest.raises(ArtifactError, match="ranker_gone is not in the feature store"):
        ReleaseRanker(workspace, replace(live, feature_service="ranker_gone"))


def test_a_model_of_other_ids_is_refused(workspace, trained):
    path = workspace.models / trained[1]["model_id"] / MANIFEST
    original = path.read_text()
    manifest = json.loads(original)
    manifest["options"]["ranker"]["levels"] = 4
    path.write_text(json.dumps(manifest))
    try:
        with pytest.raises(ArtifactError, match=r"levels=4.*has 2.*crescendo train"):
            make_release(workspace)
    finally:
        path.write_text(original)
    assert not (workspace.releases / CURRENT).exists()
