"""A study's runs in a file, a line of JSON each: what is there is not run again.

for line in append_runs(Path("results.jsonl"), world, RunOptions(), seed, device): ...

Several processes may append to one file, each its own variants: a lock keeps their lines apart.
"""

import fcntl
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from models.mme_collaborative import Collaborative
from models.mme_runs import RunOptions, Shared, world_variants
from models.mme_variants import PAPER_SASREC, POPULAR, SASREC
from models.mme_world import MmeWorld


def append_runs(
    results: Path,
    world: MmeWorld,
    options: RunOptions,
    seed: int,
    device: torch.device,
    *,
    names: Collection[str] | None = None,
    collaborative: Collaborative | None = None,
) -> Iterator[dict[str, Any]]:
    """Runs the variants of one world and seed that have no line in `results` yet, and appends it.

    `names`: of the variants and baselines that are wanted; None: all. `collaborative`: SASRec of
    the same world and seed, if it is there already. Yields each line once it is written. A line
    that a kill cut off is taken out and run again.
    """
    everything = [SASREC, POPULAR, PAPER_SASREC, *(one.name for one in world_variants(world))]
    wanted = set(everything if names is None else names) - _done(results, world.name, seed)
    if not wanted:
        return
    shared = Shared(world, options, seed, device, collaborative)
    for line in _lines(shared, wanted):
        with _locked(results) as stream:
            stream.write(json.dumps(line) + "\n")
        yield line


def _lines(shared: Shared, wanted: set[str]) -> Iterator[dict[str, Any]]:
    yield from (line for line in shared.baselines() if line["variant"] in wanted)
    if PAPER_SASREC in wanted:
        yield shared.paper_sasrec()
    for variant in world_variants(shared.world):
        if variant.name in wanted:
            yield shared.run(variant)


def _done(results: Path, world: str, seed: int) -> set[str]:
    """Variants of the world and seed that have their line."""
    with _locked(results) as stream:
        stream.seek(0)
        text = stream.read()
        whole = text[: text.rfind("\n") + 1]
        if len(whole) < len(text):
            stream.truncate(len(whole.encode()))
    read = [json.loads(line) for line in whole.splitlines()]
    return {one["variant"] for one in read if (one["world"], one["seed"]) == (world, seed)}


@contextmanager
def _locked(results: Path) -> Iterator[IO[str]]:
    """The file, made if need be, to be read and appended to by nobody else in the block."""
    with results.open("a+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # let go when the file is closed
        yield stream
