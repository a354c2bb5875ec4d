"""One small workspace with several models for all tests that change releases."""

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
