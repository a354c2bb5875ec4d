"""A study's runs in a file, a line of JSON each: what is there is not run again.

for line in append_runs(Path("results.jsonl"), world, RunOptions(), seed, device): ...
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from models.mme_runs import RunOptions, Shared, world_variants
from models.mme_variants import POPULAR, SASREC
from models.mme_world import MmeWorld


def append_runs(
    results: Path, world: MmeWorld, options: RunOptions, seed: int, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Runs every variant of one world and seed that has no line in `results` yet, and appends it.

    Yields each line once it is written. A line that a kill cut off is taken out and run again.
    """
    done = _done(results, world.name, seed)
    wanted = {SASREC, POPULAR} | {one.name for one in world_variants(world)}
    if wanted <= done:
        return
    shared = Shared(world, options, seed, device)
    for line in _lines(shared, done):
        with results.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        yield line


def _lines(shared: Shared, done: set[str]) -> Iterator[dict[str, Any]]:
    yield from (line for line in shared.baselines() if line["variant"] not in done)
    for variant in world_variants(shared.world):
        if variant.name not in done:
            yield shared.run(variant)


def _done(results: Path, world: str, seed: int) -> set[str]:
    """Variants of the world and seed that have their line."""
    if not results.exists():
        return set()
    lines = results.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        results.write_text("".join(whole))
    read = [json.loads(line) for line in whole]
    return {one["variant"] for one in read if (one["world"], one["seed"]) == (world, seed)}
