"""A loop that Ray Train runs in this process: no Ray, nothing left behind, errors as they are."""

import os

import pytest
import ray
import torch

from ray_jobs.worker_fit import fit_on_workers
from ray_jobs.worker_group import WorkerGroup


def fit(loop, folder, settings=()):
    fit_on_workers(loop, dict(settings), runs=[], ray_folder=folder, workers=0, gpu=None)


def test_the_loop_is_the_only_worker(tmp_path):
    seen = []

    def loop(settings):
        group = WorkerGroup.of_this_worker(use_gpu=settings["use_gpu"])
        alone = (group.is_first, group.world_size, group.device.type)
        seen.append((os.getpid(), ray.is_initialized(), alone, settings["given"]))

    before = ray.is_initialized()  # by another test's session
    fit(loop, tmp_path, {"given": 3})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert seen == [(os.getpid(), before, (True, 1, device), 3)]
    assert list(tmp_path.iterdir()) == []


def test_its_seed_and_threads_end_with_it(tmp_path):
    def loop(settings):
        torch.manual_seed(5)
        torch.set_num_threads(3)

    threads, state = torch.get_num_threads(), torch.get_rng_state()
    fit(loop, tmp_path)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_its_error_is_the_callers(tmp_path):
    def loop(settings):
        raise FileNotFoundError("parts")

    with pytest.raises(FileNotFoundError, match="parts"):
        fit(loop, tmp_path)
