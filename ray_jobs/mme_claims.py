"""MME-SID's claims against a study's results: each direction, with figures and a paired test.

    answers = answer(read_results(folder))

Runs of one seed are paired, and so are the users of both runs. What is measured of every user
(nDCG@10, Kendall's tau) is tested by the bootstrap over users and seeds (`ray_jobs.bootstrap`);
an effective rank is one number a run, so its differences by seed have a t interval instead. A
direction is *reproduced* where the 95% interval lies on the claimed side of 0, *reversed* where it
lies on the other, else *not shown*.

Shape suffixes: U users, S seeds, R bootstrap draws.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from feature_repo.errors import InputError
from models.full_ranking import hits_and_gains
from models.mme_variants import (
    COLLABORATIVE,
    CONSISTENT,
    DISTILLED,
    FULL,
    MEAN_MMD,
    MEAN_MSE,
    MMD_ALIGNMENT,
    MSE,
    NO_ALIGNMENT,
    NO_COMMITMENT,
    NO_FUSION,
    NO_IDS,
    NO_RECONSTRUCTION,
    NO_REVIVAL,
    NO_SINKHORN,
    PAPER_SASREC,
    PLAIN_START,
    POPULAR,
    RANDOM_IDS,
    SASREC,
    only,
)
from models.per_user import unpacked
from ray_jobs.bootstrap import COVERAGE, Draws, draw, drawn_mean, interval

REPRODUCED, REVERSED, NOT_SHOWN = "reproduced", "reversed", "not shown"
RANK, PROJECTED_RANK, GAIN = "effective_rank", "effective_rank:projected", "ndcg@10"
COLLAPSES = "paper: collaborative alone collapses"
CODES_TAU = "paper: MMD .4436, MSE .3714"
IDS_TAU = "paper: initialised .2727, random about .05"
SUMMARY = "one summary, no code"
Runs = dict[str, dict[str, dict[int, dict[str, Any]]]]
"""World -> variant -> seed -> what `models.mme_runs` wrote of the run."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """`measure` is larger for variant `more` than for variant `less`."""

    topic: str
    more: str
    less: str
    measure: str
    """RANK, PROJECTED_RANK, GAIN, or `codes_tau:<family>` and `ids_tau:<family>`."""
    source: str
    """The paper's figure or who else says so."""


def claims_of(families: Sequence[str]) -> list[Claim]:
    """What is claimed of a world with these families; `collaborative` among them."""
    others = [one for one in families if one != COLLABORATIVE]
    alone = only(COLLABORATIVE)
    wider = [*(only(one) for one in others), *([NO_IDS] if others else []), FULL]
    found = [
        Claim(topic="collapse", more=more, less=alone, measure=measure, source=COLLAPSES)
        for measure in (RANK, PROJECTED_RANK)
        for more in wider
    ]
    for family in families:
        codes, ids = f"codes_tau:{family}", f"ids_tau:{family}"
        found += [
            Claim(topic="forgetting", more=FULL, less=MSE, measure=codes, source=CODES_TAU),
            Claim(
                topic="forgetting", more=MEAN_MMD, less=MEAN_MSE, measure=codes, source=CODES_TAU
            ),
            Claim(topic="forgetting", more=FULL, less=RANDOM_IDS, measure=ids, source=IDS_TAU),
            Claim(topic="distillation", more=DISTILLED, less=FULL, measure=codes, source=SUMMARY),
            Claim(topic="distillation", more=DISTILLED, less=FULL, measure=ids, source=SUMMARY),
            Claim(topic="distillation", more=CONSISTENT, less=FULL, measure=ids, source=SUMMARY),
        ]
    found += [
        Claim(topic="ranking", more=more, less=less, measure=GAIN, source=source)
        for more, less, source in (
            (FULL, SASREC, "paper: +4% to +10% nDCG@5"),
            (FULL, PAPER_SASREC, "paper: +4% to +10% nDCG@5"),
            (SASREC, POPULAR, "common"),
            *((FULL, only(one), "paper: ablation") for one in families),
            *(((FULL, NO_IDS, "paper: ablation"),) if others else ()),
            (FULL, RANDOM_IDS, "paper: ablation"),
        )
    ]
    parts = [MSE, NO_RECONSTRUCTION, NO_FUSION]
    if others:
        parts += [NO_ALIGNMENT, MMD_ALIGNMENT]
    found += [
        Claim(topic="parts", more=FULL, less=less, measure=GAIN, source="paper: ablation")
        for less in parts
    ]
    if others:
        found += [
            Claim(
                topic="parts",
                more=FULL,
                less=less,
                measure=f"codes_tau:{family}",
                source="paper: ablation, of nDCG alone",
            )
            for less in (NO_ALIGNMENT, MMD_ALIGNMENT)
            for family in families
        ]
    unproved = (NO_COMMITMENT, NO_SINKHORN, NO_REVIVAL, PLAIN_START)
    found += [
        Claim(topic="parts", more=FULL, less=less, measure=measure, source="used, not ablated")
        for less in unproved
        for measure in (GAIN, *(f"codes_tau:{family}" for family in families))
    ]
    found += [
        Claim(topic="distillation", more=more, less=FULL, measure=GAIN, source=SUMMARY)
        for more in (DISTILLED, CONSISTENT)
    ]
    return found


def read_results(paths: Sequence[Path]) -> Runs:
    """Every line of the files; a run that is there twice counts once. InputError without a line."""
    runs: Runs = {}
    for path in paths:
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            try:
                run = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{path}:{number} is no result ({error})") from None
            runs.setdefault(run["world"], {}).setdefault(run["variant"], {})[run["seed"]] = run
    if not runs:
        raise InputError(f"no results in {[str(path) for path in paths]}; run the study first")
    return runs


def answer(runs: Runs) -> dict[str, Any]:
    """By world: `families`, `seeds`, `users`, `variants` (means, per seed) and `claims`.

    A claim of which a variant is missing, or that shares no seed, is left out.
    """
    return {world: _answer(of_world) for world, of_world in runs.items()}


def _answer(runs: dict[str, dict[int, dict[str, Any]]]) -> dict[str, Any]:
    full = next(iter(runs[FULL].values())) if FULL in runs else None
    families = list(full["families"]) if full else []
    draws: dict[tuple[int, int], Draws] = {}
    claims = []
    for claim in claims_of(families):
        seeds = sorted(set(runs.get(claim.more, {})) & set(runs.get(claim.less, {})))
        if not seeds:
            continue
        pairs = [(runs[claim.more][seed], runs[claim.less][seed]) for seed in seeds]
        tested = _test(claim.measure, pairs, draws)
        claims.append(
            {
                "topic": claim.topic,
                "more": claim.more,
                "less": claim.less,
                "measure": claim.measure,
                "source": claim.source,
                "seeds": seeds,
                **tested,
            }
        )
    first = next(iter(next(iter(runs.values())).values()))
    return {
        "families": families,
        "seeds": sorted({seed for of_variant in runs.values() for seed in of_variant}),
        "users": len(unpacked(first["ranks"])),
        "variants": {name: _summary(of_variant) for name, of_variant in runs.items()},
        "claims": claims,
    }


def _summary(of_variant: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """`measures`: mean over seeds and the values by seed; `spectrum` of the first seed or None."""
    seeds = sorted(of_variant)
    rows = [_numbers(of_variant[seed]) for seed in seeds]
    measures = {
        name: {
            "mean": float(np.mean([row[name] for row in rows])),
            "per_seed": [row[name] for row in rows],
        }
        for name in rows[0]
    }
    return {"measures": measures, "spectrum": of_variant[seeds[0]].get("spectrum")}


def _numbers(run: dict[str, Any]) -> dict[str, float]:
    numbers = {**run["metrics"], "seconds": run["seconds"], "epochs": run["epochs"]}
    for table, found in run.get("collapse", {}).items():
        name = RANK if table == "input" else f"{RANK}:{table}"
        numbers[name] = found["effective_rank"]
        if table == "input":
            numbers["stable_rank"] = found["stable_rank"]
            numbers["collapsed_share"] = found["collapsed_share"]
    for kind in ("codes_tau", "ids_tau"):
        for family, found in run.get(kind, {}).items():
            numbers[f"{kind}:{family}"] = found["tau"]
    return numbers


def _test(
    measure: str,
    pairs: list[tuple[dict[str, Any], dict[str, Any]]],
    draws: dict[tuple[int, int], Draws],
) -> dict[str, Any]:
    per_user = _of_users(measure)
    if per_user is None:
        more, less = (
            np.array([_numbers(run)[measure] for run in side]) for side in zip(*pairs, strict=True)
        )
        differences = more - less
        ends = _t_interval(differences)
        test = "t over seeds"
    else:
        sides = [[per_user(run) for run in side] for side in zip(*pairs, strict=True)]
        shape = (len(sides[0][0]), len(pairs))
        drawn = draws.setdefault(shape, draw(*shape))
        more, less = (np.array([np.nanmean(values) for values in side]) for side in sides)
        differences = more - less
        # Where either has no value (a tau of ties alone), a user counts for neither.
        both = [~np.isnan(a) & ~np.isnan(b) for a, b in zip(*sides, strict=True)]
        more_SR, less_SR = (
            np.stack(
                [
                    drawn_mean(np.flatnonzero(there), values[there], drawn.counts_UR)
                    for values, there in zip(side, both, strict=True)
                ]
            )
            for side in sides
        )
        ends = interval(more_SR, less_SR, drawn.counts_SR)
        test = "bootstrap over users and seeds"
    mean = float(differences.mean())
    return {
        "more_mean": float(more.mean()),
        "less_mean": float(less.mean()),
        "difference": mean,
        "per_seed": differences.tolist(),
        "interval": ends,
        "test": test,
        "verdict": _verdict(ends),
    }


def _of_users(measure: str) -> Callable[[dict[str, Any]], np.ndarray] | None:
    """What reads a measure of each user of a run; None for one that a run has one of."""
    if measure == GAIN:
        return lambda run: hits_and_gains(unpacked(run["ranks"]).astype(np.int64), 10)[1]
    kind, _, family = measure.partition(":")
    if kind in ("codes_tau", "ids_tau"):
        return lambda run: unpacked(run[kind][family]["per_user"])
    return None


def _t_interval(differences_S: np.ndarray) -> tuple[float, float] | None:
    """Of the mean of paired differences; None for one seed."""
    seeds = len(differences_S)
    if seeds < 2:
        return None
    half = stats.t.ppf((1 + COVERAGE) / 2, seeds - 1) * stats.sem(differences_S)
    return float(differences_S.mean() - half), float(differences_S.mean() + half)


def _verdict(ends: tuple[float, float] | None) -> str:
    if ends is None or ends[0] <= 0 <= ends[1]:
        return NOT_SHOWN
    return REPRODUCED if ends[0] > 0 else REVERSED
