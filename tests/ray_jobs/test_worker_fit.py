"""A loop that Ray Train runs in this process: no Ray, nothing left behind, errors as they are."""

import os

import pytest
import ray
import torch

from feature_repo.errors import InputError
from ray_jobs import worker_fit
from ray_jobs.worker_fit import fit_on_workers
from ray_jobs.worker_group import WorkerGroup, take_threads


def fit(loop, folder, settings=()):
    fit_on_workers(loop, dict(settings), runs=[], ray_folder=folder, workers=0, gpu=None)


def test_the_loop_is_the_only_worker_and_starts_no_ray(tmp_path, monkeypatch):
    seen = []

    def refuse(**_):
        raise AssertionError("Ray is not to be started")

    def loop(settings):
        group = WorkerGroup.of_this_worker(use_gpu=settings["use_gpu"])
        alone = (group.is_first, group.world_size, group.device.type)
        seen.append((os.getpid(), alone, settings["given"]))

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(worker_fit, "ray_session", refuse)
    fit(loop, tmp_path, {"given": 3})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert seen == [(os.getpid(), (True, 1, device), 3)]
    assert list(tmp_path.iterdir()) == []


def test_its_seed_ends_with_it_and_threads_stay(tmp_path):
    def loop(settings):
        torch.manual_seed(5)
        take_threads()

    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(threads + 1)
    try:
        fit(loop, tmp_path)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)


def test_on_the_cpu_no_cuda_device_is_taken(tmp_path, monkeypatch):
    def loop(settings):
        assert WorkerGroup.of_this_worker(use_gpu=settings["use_gpu"]).device.type == "cpu"

    def refuse(*_):
        raise AssertionError("CUDA is not to be touched")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", refuse)
    fit_on_workers(loop, {}, runs=[], ray_folder=tmp_path, workers=0, gpu=False)
    with pytest.raises(AssertionError, match="CUDA is not to be touched"):
        fit_on_workers(loop, {}, runs=[], ray_folder=tmp_path, workers=0, gpu=True)


def test_under_torchrun_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="WORLD_SIZE is set, as by torchrun"):
        fit(None, tmp_path)


def test_its_error_is_the_callers(tmp_path):
    def loop(settings):
        raise FileNotFoundError("parts")

    with pytest.raises(FileNotFoundError, match="parts"):
        fit(loop, tmp_path)
