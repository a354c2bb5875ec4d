"""One small workspace with several models for all tests that change releases."""

import shutil

import pytest

from tests.serving.release_world import release_world


@pytest.fixture(scope="session")
def shared_release_world(tmp_path_factory):
    return release_world(tmp_path_factory.mktemp("releases") / "workspace")


@pytest.fixture
def world(shared_release_world):
    """The workspace without any release."""
    shared_release_world.reset()
    return shared_release_world


@pytest.fixture(scope="module")
def retrievers(shared_release_world):
    """Ids of retriever models in that workspace: live, batch, foreign (`retriever_world`)."""
    from tests.serving.retriever_world import write_retrievers

    workspace = shared_release_world.workspace
    model_ids = write_retrievers(workspace)
    yield model_ids
    for model_id in model_ids:
        shutil.rmtree(workspace.models / model_id)
