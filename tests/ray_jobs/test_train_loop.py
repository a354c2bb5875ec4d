"""The training loop of one worker, without Ray: it goes on exactly, and stops at a loss of NaN."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from feature_repo.errors import InputError
from ray_jobs import checkpoints, train_loop
from ray_jobs.not_finite import raise_if_not_finite
from ray_jobs.run_folder import (
    CURVE_FILE,
    FINISHED_FILE,
    LAST_FILE,
    OWNER_FILE,
    STARTS_FILE,
    json_lines,
)
from ray_jobs.train_loop import WINDOW, train_one
from ray_jobs.training_stream import train_batches
from ray_jobs.worker_group import WorkerGroup
from tests.small_training_set import worker_settings, write_training_set

ALONE = WorkerGroup(rank=0, world_size=1, device=torch.device("cpu"), node="here")
BATCHES = 169
"""Of an epoch: 2,700 rows by 16. Checkpoints can be at 64 and 128."""


@pytest.fixture(scope="module")
def training_set(tmp_path_factory):
    return write_training_set(tmp_path_factory.mktemp("set") / "ts-1")


@pytest.fixture(scope="module")
def uninterrupted(training_set, tmp_path_factory):
    """The folder of a run from start to end, and the rows that it saw."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        seen = watch(patch)
        assert train_one(worker_settings(training_set, folder), ALONE)
    return folder, seen


class Killed(BaseException):
    """Nothing in the code catches it: the files stay as a kill leaves them."""


def watch(patch, die_after=None):
    """Notes the target rows of each batch; ends the run after so many batches."""
    seen = []

    def watched(folder, side, place):
        for number, one in enumerate(train_batches(folder, side, place), start=place.first_batch):
            if die_after is not None and len(seen) == die_after:
                raise Killed
            seen.append((place.epoch, number, one[0].target_track_ids_B.tolist()))
            yield one

    patch.setattr(train_loop, "train_batches", watched)
    return seen


def without_seconds(curve):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in curve]


@pytest.mark.parametrize(
    ("deaths", "starts"),
    [
        ([WINDOW - 1], [(0, 0), (0, 0)]),
        ([WINDOW], [(0, 0), (0, 64)]),
        ([150, 60], [(0, 0), (0, 128), (1, 0)]),
        ([BATCHES + 130], [(0, 0), (1, 128)]),
        ([BATCHES, 2, 200, 90], [(0, 0), (1, 0), (1, 0), (2, 0), (2, 64)]),
    ],
)
def test_a_killed_run_goes_on_to_the_bit(
    training_set, uninterrupted, tmp_path, monkeypatch, deaths, starts
):
    monkeypatch.setattr(checkpoints, "COST", float("inf"))  # a checkpoint at every window
    whole, expected = uninterrupted
    settings = worker_settings(training_set, tmp_path / "run")
    by_place = {}
    for death in (*deaths, None):
        with monkeypatch.context() as patch:
            seen = watch(patch, death)
            if death is None:
                assert train_one(settings, ALONE)
            else:
                with pytest.raises(Killed):
                    train_one(settings, ALONE)
        for epoch, number, rows in seen:
            assert by_place.setdefault((epoch, number), rows) == rows
    assert by_place == {(epoch, number): rows for epoch, number, rows in expected}
    run = tmp_path / "run"
    found = json_lines(run / STARTS_FILE)
    assert [(start["epoch"], start["batch"]) for start in found] == starts
    curve, expected_curve = json_lines(run / CURVE_FILE), json_lines(whole / CURVE_FILE)
    assert without_seconds(curve) == without_seconds(expected_curve)
    best = json.loads((run / FINISHED_FILE).read_text())["best_epoch"]
    for name in (LAST_FILE, f"best-{best:04d}.safetensors"):
        ours, theirs = load_file(run / name), load_file(whole / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_what_has_ended_is_not_trained_again(training_set, uninterrupted, monkeypatch):
    folder, _ = uninterrupted
    before = (folder / LAST_FILE).stat().st_mtime_ns
    seen = watch(monkeypatch)
    settings = {"folder": str(folder), "training_set": str(training_set), "owner": "me"}
    assert train_one(settings, ALONE)
    assert seen == []
    assert (folder / LAST_FILE).stat().st_mtime_ns == before
    assert list((folder / "checkpoints").iterdir()) == []


def test_it_learns(uninterrupted):
    curve = json_lines(uninterrupted[0] / CURVE_FILE)
    assert curve[-1]["validation_auc"] > 0.7
    assert curve[-1]["train_loss"] < curve[0]["train_loss"] < 0.72


@pytest.mark.parametrize("bad_batch", [0, 40, 63, 64, 100, 168])
def test_a_loss_that_is_not_finite_is_found_to_the_batch(
    training_set, tmp_path, monkeypatch, bad_batch
):
    settings = worker_settings(training_set, tmp_path / "run")
    seen = []

    def poisoned(folder, side, place):
        for inputs, labels_B, rows in train_batches(folder, side, place):
            at = (place.epoch, len(seen))
            seen.append(inputs.target_track_ids_B.tolist())
            bad = at == (0, bad_batch)
            yield inputs, labels_B * float("nan") if bad else labels_B, rows

    monkeypatch.setattr(train_loop, "train_batches", poisoned)
    assert not train_one(settings, ALONE)
    assert len(seen) <= (bad_batch // WINDOW + 1) * WINDOW  # the rest of its window at most
    said = rf"became nan in epoch 0, step {bad_batch}; its \d+ rows, from train-.*of ts-1.*lower"
    with pytest.raises(InputError, match=said):
        raise_if_not_finite(
            tmp_path / "run", training_set, seed=1, batch_size=16, learning_rate=5e-3
        )
    saved = pq.read_table(tmp_path / "run" / "not_finite.parquet")
    assert saved["track_id"].to_pylist() == seen[bad_batch]
    raise_if_not_finite(tmp_path / "run", training_set, seed=1, batch_size=16, learning_rate=1.0)


def test_workers_of_a_driver_that_was_replaced_write_nothing_more(
    training_set, tmp_path, monkeypatch
):
    settings = worker_settings(training_set, tmp_path / "run")
    run, said = tmp_path / "run", r"driver somebody else has taken .* over from me"

    def handed_over(folder, side, place):
        yield from train_batches(folder, side, place)
        (run / OWNER_FILE).write_text("somebody else")

    monkeypatch.setattr(train_loop, "train_batches", handed_over)
    with pytest.raises(RuntimeError, match=said):
        train_one(settings, ALONE)
    assert json_lines(run / CURVE_FILE) == []
    before = sorted(run.rglob("*"))
    with pytest.raises(RuntimeError, match=said):
        train_one(settings, ALONE)
    assert sorted(run.rglob("*")) == before
    assert len(json_lines(run / STARTS_FILE)) == 1


def test_a_folder_that_a_node_does_not_see_is_named(training_set, tmp_path):
    settings = worker_settings(training_set, tmp_path / "run")
    settings["training_set"] = "/nowhere/ts-1"
    with pytest.raises(FileNotFoundError, match=r"does not see /nowhere/ts-1: .*every node mounts"):
        train_one(settings, ALONE)
