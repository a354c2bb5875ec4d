"""Retriever models that cannot be used: refused at load, and what served before serves on."""

import asyncio
import json
import shutil

import pytest

from feature_repo import schema
from feature_repo.artifacts import MANIFEST
from feature_repo.errors import ArtifactError
from serving.ranker import ReleaseRanker
from serving.releases import (
    Release,
    live_release,
    make_release,
)
from serving.schemas import RecommendRequest
from tests.serving.broken_releases import flip_byte, go_live
from tests.serving.release_world import copied_model, rewrite_manifest


def missing(workspace, retriever):
    shutil.rmtree(workspace.models / retriever)


def flipped(workspace, retriever):
    flip_byte(workspace.models / retriever / "mme_sid.safetensors")


def other_base(workspace, retriever):
    manifest = json.loads((workspace.models / retriever / MANIFEST).read_text())
    base = manifest["parents"]["base"] | {"sha256": "0" * 64}
    rewrite_manifest(workspace.models / retriever, parents={"base": base})


def lost_base(workspace, retriever):
    base = {"path": "/nonexistent", "sha256": "0" * 64}
    rewrite_manifest(workspace.models / retriever, parents={"base": base})


BREAKAGES = {
    missing: "no model model-broken",
    flipped: r"mme_sid\.safetensors was changed",
    other_base: "was trained on a base with sha256 0000",
    lost_base: "the base of model model-broken cannot be read",
}


@pytest.fixture
def broken(world, retrievers):
    """A copy of the live retriever, to be broken."""
    name = copied_model(world.workspace, retrievers[0], "model-broken")
    yield name
    shutil.rmtree(world.workspace.models / name, ignore_errors=True)


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_retriever_is_refused_and_the_old_release_serves_on(
    world, retrievers, broken, breakage, service_of
):
    workspace = world.workspace
    good = make_release(workspace, world.new, retriever_model_id=broken)
    first = make_release(workspace, world.new)
    service = service_of(workspace)
    breakage(workspace, broken)
    with pytest.raises(ArtifactError, match=BREAKAGES[breakage]):
        make_release(workspace, world.new, retriever_model_id=broken)
    assert live_release(workspace).release_id == first["release_id"]
    # Nor does a server take a release that was whole when it was made.
    go_live(world, good["release_id"])
    service.live.look()
    status = service.live.status()
    assert (status["live"], status["failed_loads"]) == (first["release_id"], 1)
    answer = asyncio.run(service.recommend(RecommendRequest(user_id=1)))
    assert answer.ranker.release.release_id == first["release_id"]


def test_a_retriever_that_does_not_fit_is_refused(world, retrievers):
    workspace, (_, batch, foreign) = world.workspace, retrievers
    first = make_release(workspace, world.new)
    reason = "of the 100 tracks .* holds 0%, wanted at least 50%"
    with pytest.raises(ArtifactError, match=reason):
        make_release(workspace, world.new, retriever_model_id=foreign)
    with pytest.raises(ArtifactError, match=r"is 'mcca', wanted 'mme_sid'"):
        make_release(workspace, world.new, retriever_model_id=world.old)
    view = schema.candidates_view_name(batch)
    path = workspace.feature_source(view) / MANIFEST
    original = path.read_text()
    manifest = json.loads(original)
    manifest["info"]["retriever_sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    try:
        with pytest.raises(ArtifactError, match=f"other weights.*score-users --model-id {batch}"):
            make_release(workspace, world.new, retriever_model_id=batch)
    finally:
        path.write_text(original)
    assert live_release(workspace).release_id == first["release_id"]


def test_a_service_without_the_candidates_is_refused(world, retrievers):
    workspace, (_, batch, _) = world.workspace, retrievers
    made = make_release(workspace, world.new, retriever_model_id=batch)
    plain = make_release(workspace, world.new)
    crossed = Release(**made | {"feature_service": plain["feature_service"]})
    with pytest.raises(ArtifactError, match=rf"its models want .*{made['candidates_view']}"):
        ReleaseRanker(workspace, crossed)
