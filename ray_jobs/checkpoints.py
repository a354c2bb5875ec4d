"""Checkpoints of a training run: enough to go on as if nothing had happened.

`<run folder>/checkpoints/epoch-EEEE-batch-BBBBBBBB/` holds `model.safetensors`,
`optimizer.safetensors` (the moments) and a manifest with the `Progress`. Each is an artifact:
whole or absent, its files checked before they are read. The last two are kept; should the newer
one be damaged, the older one is taken and said. Random numbers need no state: the loop seeds torch
anew at the batches where checkpoints can be.
"""

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from feature_repo.artifacts import Manifest, read_manifest, write_artifact
from feature_repo.durable_files import sync
from feature_repo.errors import ArtifactError
from ray_jobs.progress import log

KIND = "checkpoint"
KEPT = 2
COST = 0.01
"""Share of the time that writing checkpoints may take."""


class Moments(Protocol):
    """An optimizer, as its state is kept."""

    def state_tensors(self) -> dict[str, Tensor]: ...

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None: ...


@dataclass(kw_only=True)
class Progress:
    """How far a run has come."""

    epoch: int = 0
    """The epoch under way, from 0."""
    batch: int = 0
    """Global batches of it that are done."""
    loss_sum: float = 0.0
    """Over their rows, on all workers."""
    rows: int = 0
    seconds: float = 0.0
    """What they took."""
    best: float = -1.0
    """Largest validation AUC, of next-item models nDCG@10, of the epochs that are done."""
    best_epoch: int = -1

    @property
    def epochs_since_best(self) -> int:
        return self.epoch - 1 - self.best_epoch

    @property
    def name(self) -> str:
        """Sorts as the run goes."""
        return f"epoch-{self.epoch:04d}-batch-{self.batch:08d}"

    def end_epoch(self, validation: float) -> bool:
        """Moves on to the next epoch. Whether the one that ended is the best so far."""
        is_best = validation > self.best
        if is_best:
            self.best, self.best_epoch = validation, self.epoch
        self.epoch, self.batch, self.loss_sum, self.rows, self.seconds = self.epoch + 1, 0, 0, 0, 0
        return is_best


class Checkpoints:
    """Writes checkpoints of one run, so often that their cost stays below `COST`."""

    def __init__(self, run_folder: Path, *, every_s: float) -> None:
        self.run_folder = run_folder
        self.every_s = every_s
        self._due = time.monotonic() + every_s

    def rewind(self, start: Path | None) -> None:
        """Drops what a killed run left behind the checkpoint from which this one goes on."""
        for path in checkpoints_folder(self.run_folder).glob("*"):
            if start is None or path.name.startswith(".") or path.name > start.name:
                shutil.rmtree(path)

    def due(self) -> bool:
        return time.monotonic() >= self._due

    def write(self, progress: Progress, model: torch.nn.Module, optimizer: Moments) -> None:
        """Writes one and drops what neither the kept ones nor `progress` need any more."""
        started = time.monotonic()
        manifest = Manifest(kind=KIND, id=progress.name, info=asdict(progress))
        with write_artifact(checkpoint_path(self.run_folder, progress), manifest) as partial:
            save_state(partial, model, optimizer)
        whole = sorted(checkpoints_folder(self.run_folder).glob("epoch-*"))
        for path in whole[:-KEPT]:
            shutil.rmtree(path)
        self._drop_bests(progress, whole[-KEPT:])
        ended = time.monotonic()
        self._due = ended + max(self.every_s, (ended - started) / COST)

    def _drop_bests(self, progress: Progress, kept: list[Path]) -> None:
        """A run that goes on from a checkpoint needs the best epoch of that moment."""
        needed = {best_file(self.run_folder, progress.best_epoch)}
        needed |= {best_file(self.run_folder, read_progress(path).best_epoch) for path in kept}
        for path in self.run_folder.glob("best-*.safetensors"):
            if path not in needed:
                path.unlink()


def write_weights(model: torch.nn.Module, path: Path) -> None:
    """Writes them under a temporary name, syncs them and renames them to `path`."""
    partial = path.with_name(f".{path.name}")
    save_file(model.state_dict(), partial)
    sync(partial)
    os.replace(partial, path)


def checkpoints_folder(run_folder: Path) -> Path:
    return run_folder / "checkpoints"


def checkpoint_path(run_folder: Path, progress: Progress) -> Path:
    return checkpoints_folder(run_folder) / progress.name


def best_file(run_folder: Path, epoch: int) -> Path:
    """Weights after the epoch with the best validation AUC."""
    return run_folder / f"best-{epoch:04d}.safetensors"


def newest_checkpoint(run_folder: Path, *, verify: bool = True) -> Path | None:
    """The newest checkpoint from which the run can go on; a damaged one is passed over, and said.

    Without `verify`, files are not read through: for a look from the outside.
    """
    for path in sorted(checkpoints_folder(run_folder).glob("epoch-*"), reverse=True):
        try:
            read_progress(path, verify=verify)
            return path
        except ArtifactError as error:
            log.warning("damaged checkpoint passed over", path=str(path), error=str(error))
    return None


def read_progress(checkpoint: Path, *, verify: bool = False) -> Progress:
    """What a checkpoint's manifest says; ArtifactError if it is none or, asked to look, damaged."""
    manifest = read_manifest(checkpoint, kind=KIND, made_by="train", verify=verify)
    return Progress(**manifest.info)


def save_state(folder: Path, model: torch.nn.Module, optimizer: Moments) -> None:
    """`model.safetensors` and the optimizer's moments, `optimizer.safetensors`."""
    save_file(model.state_dict(), folder / "model.safetensors")
    save_file(optimizer.state_tensors(), folder / "optimizer.safetensors")


def load_state(folder: Path, model: torch.nn.Module, optimizer: Moments) -> None:
    """The inverse of `save_state`, into a model and an optimizer of the same shape."""
    model.load_state_dict(load_file(folder / "model.safetensors"))
    optimizer.load_state_tensors(load_file(folder / "optimizer.safetensors"))
