"""What Ray Data prints beside a job: nothing that its user has to wonder about."""

import os
import subprocess
import sys

import pytest

from feature_repo.workspace import Workspace
from tests.ray_jobs.embedding import rows_on_disk, write_tracks

pytest_plugins = ["tests.ray_jobs.embedding"]


@pytest.mark.slow
def test_an_embed_run_prints_no_error_of_rays(workspace: Workspace, ray_local: None) -> None:
    import ray

    write_tracks(workspace, list(range(10)))
    ended = subprocess.run(
        [sys.executable, "-m", "ray_jobs.cli", "--workspace", str(workspace.root), "embed",
         "--modality", "image", "--encoder", "vectors", "--batch-size", "2"],
        env=os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert len(rows_on_disk(workspace, "image")) == 10
    complaints = [line for line in ended.stderr.splitlines() if " E " in line or "ERROR" in line]
    assert complaints == []
