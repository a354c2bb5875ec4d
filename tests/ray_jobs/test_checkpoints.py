"""Checkpoints: whole or passed over, the last two and the best kept. Folders of unfinished runs."""

import os

import pytest
import torch

from feature_repo.errors import InputError
from models.ranker_optimizer import RankerOptimizer
from ray_jobs.checkpoints import (
    COST,
    Checkpoints,
    Progress,
    best_file,
    checkpoint_path,
    load_state,
    newest_checkpoint,
    read_progress,
    save_state,
    write_weights,
)
from ray_jobs.run_folder import FINISHED_FILE, KEEP_DAYS, PREFIX, run_folder


def model_and_optimizer(seed=0):
    torch.manual_seed(seed)
    model = torch.nn.Linear(5, 1)
    return model, RankerOptimizer(model, 0.1)


def step(model, optimizer):
    torch.manual_seed(7)
    loss = torch.nn.functional.mse_loss(model(torch.randn(32, 5)), torch.rand(32, 1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_restored_state_takes_the_same_next_step(tmp_path):
    model, optimizer = model_and_optimizer(1)
    for _ in range(3):
        step(model, optimizer)
    save_state(tmp_path, model, optimizer)
    restored = model_and_optimizer(2)
    load_state(tmp_path, *restored)
    step(model, optimizer)
    step(*restored)
    torch.testing.assert_close(restored[0].state_dict(), model.state_dict(), rtol=0, atol=0)


def test_the_last_two_are_kept_with_the_best_that_they_need(tmp_path):
    model, optimizer = model_and_optimizer()
    checkpoints = Checkpoints(tmp_path, every_s=0)
    progress = Progress()
    for auc in (0.6, 0.7, 0.65, 0.8):
        progress.batch += 64
        checkpoints.write(progress, model, optimizer)
        if progress.end_epoch(auc):
            write_weights(model, best_file(tmp_path, progress.best_epoch))
    assert names(tmp_path / "checkpoints") == [
        "epoch-0002-batch-00000064",
        "epoch-0003-batch-00000064",
    ]
    # Both were written when epoch 1 was the best; epoch 3 is the best now.
    assert names(tmp_path) == ["best-0001.safetensors", "best-0003.safetensors", "checkpoints"]
    assert (progress.epoch, progress.epochs_since_best, progress.batch) == (4, 0, 0)
    newest = newest_checkpoint(tmp_path)
    assert read_progress(newest) == Progress(epoch=3, batch=64, best=0.7, best_epoch=1)
    checkpoints.write(progress, model, optimizer)
    checkpoints.write(Progress(epoch=4, batch=64, best=0.8, best_epoch=3), model, optimizer)
    assert names(tmp_path) == ["best-0003.safetensors", "checkpoints"]


def test_a_damaged_checkpoint_is_passed_over_and_then_dropped(tmp_path):
    model, optimizer = model_and_optimizer()
    checkpoints = Checkpoints(tmp_path, every_s=0)
    first, second = Progress(batch=64), Progress(batch=128)
    for progress in (first, second):
        checkpoints.write(progress, model, optimizer)
    (tmp_path / "checkpoints" / ".epoch-0000-batch-00000192.cut-off").mkdir()
    weights = checkpoint_path(tmp_path, second) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    found = newest_checkpoint(tmp_path)
    assert found == checkpoint_path(tmp_path, first)
    checkpoints.rewind(found)
    assert names(tmp_path / "checkpoints") == [first.name]
    assert newest_checkpoint(tmp_path / "elsewhere") is None


def test_writing_stays_a_small_share_of_the_time(tmp_path):
    model, optimizer = model_and_optimizer()
    checkpoints = Checkpoints(tmp_path, every_s=0)
    assert checkpoints.due()
    checkpoints.write(Progress(), model, optimizer)
    # A write takes at least some 100 us of syncs; the next is not due before 1 / COST of that.
    assert COST <= 0.01
    assert not checkpoints.due()
    assert not Checkpoints(tmp_path, every_s=3600).due()


def test_a_run_folder_goes_unless_there_is_something_to_go_on_with(tmp_path):
    with run_folder(tmp_path, "a"):
        pass
    with pytest.raises(ZeroDivisionError), run_folder(tmp_path, "b"):
        raise ZeroDivisionError
    assert names(tmp_path) == []
    (tmp_path / f"{PREFIX}c").mkdir()
    (tmp_path / f"{PREFIX}c" / FINISHED_FILE).touch()
    with pytest.raises(ZeroDivisionError), run_folder(tmp_path, "c"):
        raise ZeroDivisionError
    assert names(tmp_path) == [f"{PREFIX}c"]
    with run_folder(tmp_path, "c") as folder:
        assert (folder / FINISHED_FILE).exists()


def test_two_commands_cannot_train_one_model_at_once(tmp_path):
    with (
        run_folder(tmp_path, "a"),
        pytest.raises(InputError, match="another run is writing"),
        run_folder(tmp_path, "a"),
    ):
        pass


def test_runs_that_nobody_goes_on_with_are_removed(tmp_path):
    old, recent, finished = (tmp_path / f"{PREFIX}{name}" for name in ("old", "new", "mine"))
    for folder in (old, recent, finished):
        (folder / "checkpoints").mkdir(parents=True)
        (folder / FINISHED_FILE).touch()
    long_ago = os.stat(old).st_mtime - (KEEP_DAYS * 86_400 + 60)
    for path in (*old.iterdir(), old, *finished.iterdir(), finished, recent):
        os.utime(path, (long_ago, long_ago))
    with run_folder(tmp_path, "mine"):
        assert names(tmp_path) == [f"{PREFIX}mine", f"{PREFIX}new"]
