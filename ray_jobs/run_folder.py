"""Folders of runs that have not ended: what a killed `train` leaves and the next one finds.

`models/.fit-<model_id>/` lies beside the models, so on shared storage where the workspace does:

    checkpoints/          the last two (`checkpoints.py`)
    best-EEEE.safetensors weights after the best epochs that a checkpoint may need
    metrics.jsonl         a line an epoch
    starts.jsonl          a line each time that workers began or went on
    workers/RANK.json     which process on which node that rank is
    owner                 which driver's workers may write here: see `check_owner`
    last.safetensors, finished.json     when the training has ended
    not_finite.parquet    the rows of a batch whose loss was NaN or infinite

The driver holds a lock on it. It goes when its model is written, and when a run fails before there
is anything to go on with. Rule for those that nobody goes on with: the next `train` of anything
removes what has not been written to for `KEEP_DAYS`, and `forget` removes all of them.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from feature_repo.scratch import locked, only_writer
from ray_jobs.progress import log

PREFIX = ".fit-"
KEEP_DAYS = 7
STARTS_FILE = "starts.jsonl"
CURVE_FILE = "metrics.jsonl"
FINISHED_FILE = "finished.json"
NOT_FINITE_FILE = "not_finite.json"
START_FILE = "start.json"
START_WEIGHTS_FILE = "start.safetensors"
LAST_FILE = "last.safetensors"
OWNER_FILE = "owner"
NOT_FINITE_ROWS_FILE = "not_finite.parquet"
WORTH_KEEPING = ("checkpoints/epoch-*", FINISHED_FILE, NOT_FINITE_ROWS_FILE)


@contextmanager
def run_folder(models: Path, model_id: str) -> Iterator[Path]:
    """The run's folder, new or as it was left, locked against other drivers of this machine.

    Removed at the end of the block; after an error only if it holds nothing worth keeping.
    InputError if another process trains the same model.
    """
    models.mkdir(parents=True, exist_ok=True)
    folder = (models / f"{PREFIX}{model_id}").absolute()
    with locked(models):
        folder.mkdir(exist_ok=True)
        os.utime(folder)
        _remove_stale(models)
    with only_writer(folder):
        try:
            yield folder
        except BaseException:
            if not any(path for name in WORTH_KEEPING for path in folder.glob(name)):
                shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)


def check_owner(folder: Path, owner: str) -> None:
    """RuntimeError if another driver has taken the run over.

    Of a driver that was killed, workers on a cluster may live on for a while.
    """
    found = (folder / OWNER_FILE).read_text()
    if found != owner:
        raise RuntimeError(f"the driver {found} has taken {folder} over from {owner}")


def say_where_it_goes_on(folder: Path, run_id: str) -> None:
    """Logs what a run that was cut off has done already, if there is anything."""
    from ray_jobs.checkpoints import newest_checkpoint, read_progress

    if (folder / FINISHED_FILE).exists():
        log.info("the training had ended; what is left is the model's folder", id=run_id)
        return
    checkpoint = newest_checkpoint(folder, verify=False)
    if checkpoint is not None:
        at = read_progress(checkpoint)
        log.info(
            "resuming an unfinished run",
            id=run_id,
            epoch=at.epoch + 1,
            batches_done=at.batch,
            to_start_over=f"rm -r {folder}",
        )


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that a worker may be writing; none where it is not there yet."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _remove_stale(models: Path) -> None:
    for path in models.glob(f"{PREFIX}*"):
        age_s = time.time() - max(one.stat().st_mtime for one in (path, *path.iterdir()))
        if age_s < KEEP_DAYS * 86_400:
            continue
        lock = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path)
            log.info("removed an unfinished run", folder=str(path), idle_days=KEEP_DAYS)
        except BlockingIOError:
            pass  # a live run's
        finally:
            os.close(lock)
