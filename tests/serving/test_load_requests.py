"""Whom and what a load test asks about: a workspace's ids, a range or a file."""

from dataclasses import asdict

import numpy as np
import pytest

from feature_repo.artifacts import write_json
from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from serving.load_requests import rank_bodies, read_ids, workspace_tracks, workspace_users
from serving.releases import CURRENT, Release
from tests.event_logs import event, write_events
from tests.generations import write_generation


def test_ids_come_from_a_workspace(tmp_path):
    workspace = Workspace(tmp_path)
    write_generation(workspace, "gen-cccccccccccc", tracks=5)
    release = Release(
        release_id="release-a",
        model_id="model-a",
        model_sha256="",
        generation_id="gen-cccccccccccc",
        feature_service="ranker",
        created_at="",
        replaces=None,
    )
    write_json(workspace.releases / "release-a.json", asdict(release))
    (workspace.releases / CURRENT).write_text("release-a\n")
    write_events(workspace, [event(n, user, 1, n) for n, user in enumerate((4, 9, 4))])
    with pytest.raises(InputError, match="run `crescendo sequences`"):
        workspace_users(workspace)
    from ray_jobs.sequences import SequenceOptions, sequences

    sequences(workspace, SequenceOptions(length=3))
    assert workspace_users(workspace).tolist() == [4, 9]
    assert workspace_tracks(workspace).tolist() == [1, 2, 3, 4, 5]
    with pytest.raises(InputError, match="between 1 and the 5 tracks there are, got 6"):
        rank_bodies(np.array([1]), np.arange(5), 6, 1, np.random.default_rng(0))


def test_ids_come_from_a_range_or_a_file(tmp_path):
    path = tmp_path / "ids"
    path.write_text("3\n-5\n")
    assert read_ids("users", "3-5").tolist() == [3, 4, 5]
    assert read_ids("users", str(path)).tolist() == [3, -5]
    for text in ("5-3", "x", "", str(tmp_path)):
        with pytest.raises(InputError, match="users must be FIRST-LAST or a file"):
            read_ids("users", text)
    for content in ("x", str(2**63), ""):
        path.write_text(content)
        with pytest.raises(InputError, match="id on each line"):
            read_ids("users", str(path))
