"""Fixtures of the tests of forgetting: one world a session, and copies of it."""

import shutil

import pytest


@pytest.fixture(scope="session")
def forget_pristine(tmp_path_factory):
    """A workspace in which four users have left rows everywhere. Not to be changed."""
    from tests.ray_jobs.forget_world import build

    return build(tmp_path_factory.mktemp("forget") / "workspace")


@pytest.fixture
def world(forget_pristine, tmp_path):
    """A copy of the world, to be changed. Its views name the original's sources."""
    from feature_repo.workspace import Workspace

    shutil.copytree(forget_pristine.root, tmp_path / "workspace")
    return Workspace(tmp_path / "workspace")


@pytest.fixture(scope="session")
def ada_forgotten(forget_pristine, tmp_path_factory):
    """The world before and after `forget --user ada`. Not to be changed."""
    from feature_repo.workspace import Workspace
    from ray_jobs.forget import ForgetOptions, forget
    from tests.ray_jobs.forget_checks import Forgotten

    after = Workspace(tmp_path_factory.mktemp("forgotten") / "workspace")
    shutil.copytree(forget_pristine.root, after.root)
    return Forgotten(forget_pristine, after, forget(after, ForgetOptions(user="ada")))
