"""A copy that is followed has what another machine publishes."""

import time

import pytest

from feature_repo.errors import InputError
from feature_repo.working_copy import working_copy
from feature_repo.workspace import Workspace
from serving.releases import CURRENT, current_release_id
from serving.remote_watch import following

GIVE_UP_S = 60.0


def publish(object_store, cache, release_id: str) -> None:
    with working_copy(object_store.uri, cache=cache) as workspace:
        workspace.releases.mkdir(exist_ok=True)
        (workspace.releases / CURRENT).write_text(release_id)


def wait_for(workspace: Workspace, release_id: str) -> None:
    give_up = time.monotonic() + GIVE_UP_S
    while current_release_id(workspace) != release_id:
        assert time.monotonic() < give_up, f"{release_id} did not come"
        time.sleep(0.01)


def test_releases_and_rollbacks_of_another_machine_come(object_store, tmp_path):
    publish(object_store, tmp_path / "a", "one")
    with working_copy(object_store.uri, cache=tmp_path / "b", read_only=True) as workspace:
        with following(workspace, every_s=0.01):
            for release_id in ("two", "one"):
                publish(object_store, tmp_path / "a", release_id)
                wait_for(workspace, release_id)
        publish(object_store, tmp_path / "a", "three")
        assert current_release_id(workspace) == "one"  # nobody follows any more


def test_a_local_workspace_is_left_alone_and_no_pause_is_refused(tmp_path):
    with following(Workspace(tmp_path), every_s=5.0):
        assert not list(tmp_path.iterdir())
    for every_s in (0.0, float("nan")):
        with pytest.raises(InputError, match=r"every_s is .*; expected seconds above 0"):
            following(Workspace(tmp_path), every_s=every_s).__enter__()
