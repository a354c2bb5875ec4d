"""A study that is killed, all of it, goes on with the same command: what was trained stays so."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import ray

from feature_repo.artifacts import MANIFEST, read_manifest
from ray_jobs.run_folder import FINISHED_FILE, PREFIX
from ray_jobs.study import study
from tests.ray_jobs.killed_study import options
from tests.ray_jobs.study_world import published_world

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("parallel", [1, 2])
def test_a_killed_study_trains_no_run_twice(tmp_path, ray_local, parallel):
    workspace = published_world(tmp_path)
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.ray_jobs.killed_study", str(workspace.root), str(parallel)],
        env=os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
    )
    while not all(ended_and_begun(workspace.models)):
        assert driver.poll() is None, "the study ended before it could be killed"
        threading.Event().wait(0.01)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    done, begun = ended_and_begun(workspace.models)
    answer = study(workspace, options(parallel))
    starts = {}
    for summary in answer["models"].values():
        for model_id in summary["model_ids"]:
            folder = workspace.models / model_id
            starts[model_id] = read_manifest(folder, kind="model", made_by="train").info["starts"]
    assert len(starts) == 4
    assert done < set(starts)
    assert all(len(starts[model_id]) == 1 for model_id in done)
    assert any(len(of_run) == 2 for of_run in starts.values())
    again = [start for model_id in begun for start in starts[model_id][1:]]  # others begin anew
    assert all((start["epoch"], start["batch"]) > (0, 0) for start in again)
    assert all(of_run[0]["epoch"] == of_run[0]["batch"] == 0 for of_run in starts.values())
    assert not list(workspace.models.glob(".*"))


def ended_and_begun(models: Path) -> tuple[set[str], set[str]]:
    """The runs that were trained to their end, and the others that have a checkpoint."""
    done = {path.parent.name for path in models.glob(f"{PREFIX}*/{FINISHED_FILE}")}
    saved = {
        path.parents[2].name for path in models.glob(f"{PREFIX}*/checkpoints/epoch-*/{MANIFEST}")
    }
    return {run.removeprefix(PREFIX) for run in done}, {
        run.removeprefix(PREFIX) for run in saved - done
    }
