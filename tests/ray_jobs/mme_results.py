"""Lines of a study of MME-SID's claims, written by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from models.full_ranking import ranking_metrics
from models.mme_variants import CONSISTENT, FULL, MSE, POPULAR, RANDOM_IDS, SASREC, only
from models.per_user import packed

USERS, SEEDS = 400, 3
ALONE = only("collaborative")
HOSTILE = '<img src=x onerror=alert(1)>"'


def a_line(
    variant: str,
    seed: int,
    *,
    world: str = "planted",
    rank: int,
    effective_rank: float | None = None,
    tau: float | None = None,
) -> dict[str, Any]:
    """Users' ranks lie around `rank`, their taus around `tau`; drawn by the seed, as if paired."""
    random = np.random.default_rng(seed)
    ranks_V = 1 + random.poisson(rank - 1, USERS)
    line: dict[str, Any] = {
        "world": world,
        "variant": variant,
        "seed": seed,
        "seconds": 1.0,
        "epochs": 2,
        "metrics": ranking_metrics(ranks_V),
        "ranks": packed(ranks_V),
    }
    if effective_rank is not None:
        found = {
            "effective_rank": effective_rank + 0.1 * seed,
            "stable_rank": 2.0,
            "collapsed_share": 0.5,
        }
        line |= {
            "families": ["collaborative"],
            "collapse": {"input": found, "projected": found},
            "spectrum": [0.7, 0.3, 0.0],
        }
    if tau is not None:
        tau_V = np.clip(tau + 0.2 * random.normal(size=USERS), -1, 1)
        tau_V[:3] = np.nan
        of_family = {"tau": float(np.nanmean(tau_V)), "per_user": packed(tau_V)}
        line |= {"codes_tau": {"collaborative": of_family}, "ids_tau": {"collaborative": of_family}}
    return line


def some_lines(world: str = "planted") -> list[dict[str, Any]]:
    """The full model ranks better than all but SASRec, and as well as the consistent one."""
    found = []
    for seed in range(SEEDS):
        found += [
            a_line(SASREC, seed, world=world, rank=4),
            a_line(POPULAR, seed, world=world, rank=40),
            a_line(FULL, seed, world=world, rank=8, effective_rank=20.0, tau=0.4),
            a_line(ALONE, seed, world=world, rank=12, effective_rank=5.0),
            a_line(MSE, seed, world=world, rank=9, effective_rank=20.0, tau=0.5),
            a_line(RANDOM_IDS, seed, world=world, rank=9, effective_rank=20.0, tau=0.05),
            a_line(CONSISTENT, seed, world=world, rank=8, effective_rank=20.0, tau=0.4),
        ]
    return found


def write_lines(folder: Path, lines: list[dict[str, Any]]) -> list[Path]:
    path = folder / "results.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [path]
