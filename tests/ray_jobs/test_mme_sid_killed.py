"""A driver that is killed in the middle is followed by one that ends as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import load_file

from feature_repo.artifacts import MANIFEST, read_manifest
from ray_jobs.mme_sid import train_mme_sid
from ray_jobs.run_folder import PREFIX
from tests.ray_jobs.mme_sid_driver import options
from tests.ray_jobs.mme_sid_world import published_world

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def start(workspace, base):
    arguments = [str(workspace.root), str(base)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.ray_jobs.mme_sid_driver", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def answer(driver):
    """The last line of what the driver printed, and the lines before it."""
    printed, _ = driver.communicate()
    assert driver.returncode == 0
    *logged, last = printed.splitlines()
    return json.loads(last), logged


def weights(workspace, model_id):
    folder = workspace.models / model_id
    return load_file(folder / "adapter.safetensors") | load_file(folder / "mme_sid.safetensors")


def test_a_killed_driver_changes_no_bit(tmp_path):
    workspace, base = published_world(tmp_path)
    driver = start(workspace, base)
    pattern = f"{PREFIX}*/checkpoints/epoch-*/{MANIFEST}"
    while not list(workspace.models.glob(pattern)):
        assert driver.poll() is None
        threading.Event().wait(0.02)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert len(list(workspace.models.glob(f"{PREFIX}*"))) == 1
    resumed, logged = answer(start(workspace, base))
    assert any("resuming an unfinished run" in line for line in logged)
    manifest = read_manifest(
        workspace.models / resumed["model_id"], kind="model", made_by="train-mme-sid"
    )
    first, second = manifest.info["starts"]
    assert (first["epoch"], first["batch"]) == (0, 0)
    assert (second["epoch"], second["batch"]) > (0, 0)
    found = weights(workspace, resumed["model_id"])
    (workspace.models / resumed["model_id"]).rename(tmp_path / "resumed")
    whole = train_mme_sid(workspace, options(base))
    assert whole["model_id"] == resumed["model_id"]
    expected = weights(workspace, whole["model_id"])
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert not list(workspace.models.glob(".*"))
