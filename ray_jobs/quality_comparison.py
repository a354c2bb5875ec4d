"""A family's IDs beside RQ and PSRQ on the same vectors: what the prefix buys, what it costs.

RQ (prefix weight 0), the paper's literal PSRQ (weight 1), PSRQ with the automatic weight, and a
curve of weights between, all with the generation's number of levels, codes and seed, on the same
rows, without balance or collision resolution. Every fit is measured by `models.sid_quality`.

Shape suffixes: N rows, D dims, L levels, P pairs.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.psrq import AutoWeight, PsrqOptions, fit
from models.sid_quality import quality
from ray_jobs.progress import track
from ray_jobs.quality_references import Reference

BREAK_EVEN_SHARES = (0.25, 0.5, 0.75, 1.0, 1.5)
"""Weights of the curve as shares of the break-even weight, beside 0 and 1."""
SAME_WEIGHT = 0.05
"""Weights closer than this share of the larger one are shown at one place."""
LEAST_ROOM = 0.05
"""Nats below which the levels after the first have nothing left to say."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """PSRQ with one prefix weight, and what `quality` measured."""

    weight: float
    measures: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`fits` by weight, the first of them RQ, and the generation's own `measures` on their rows."""

    rows: int
    auto: AutoWeight
    fits: tuple[Fit, ...]
    measures: dict[str, Any]
    own_weight: float | None
    """The generation's prefix weight; None for a method without one."""

    @property
    def rq(self) -> Fit:
        return self.at(0.0)

    @property
    def chosen(self) -> Fit:
        """The fit with the automatic weight."""
        return self.at(self.auto.weight)

    @property
    def literal(self) -> Fit:
        return self.at(1.0)

    def at(self, weight: float) -> Fit:
        """The fit with the nearest weight."""
        return min(self.fits, key=lambda one: abs(one.weight - weight))


@dataclass(frozen=True, kw_only=True)
class FamilyQuality:
    """One family's measures; `comparison` is None where the IDs have one level."""

    name: str
    method: str
    tracks: int
    """Tracks measured: those with an ID and a vector."""
    without_vector: int
    measures: dict[str, Any]
    reference: Reference
    within: str | None
    """What co-listening happens in, session or user; None without any."""
    comparison: Comparison | None

    def summary(self) -> dict[str, Any]:
        """Headline numbers of the IDs and of what they are compared with, on the same rows."""
        found = {"tracks": self.tracks, "reference": self.reference.kind}
        if self.comparison is None:
            return found | {"generation": headline(self.measures)}
        return {
            **found,
            "rows": self.comparison.rows,
            "prefix_weight": self.comparison.own_weight,
            "auto_weight": self.comparison.auto.weight,
            "break_even": self.comparison.auto.break_even,
            "generation": headline(self.comparison.measures),
            "rq": headline(self.comparison.rq.measures),
            "auto": headline(self.comparison.chosen.measures),
            "literal": headline(self.comparison.literal.measures),
        }

    def plain(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        counts = {"labels": self.reference.labels, "labelled": self.reference.labelled}
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return found | {
            "reference": {"kind": self.reference.kind, **counts},
            "comparison": None if self.comparison is None else asdict(self.comparison),
        }


def compare(
    x_ND: Tensor,
    options: PsrqOptions,
    measures: dict[str, Any],
    *,
    curve: tuple[float, ...] | None,
    own_weight: float | None,
    reference_N: np.ndarray,
    co_listened_P2: np.ndarray | None,
    device: torch.device,
) -> Comparison:
    """Fits and measures PSRQ with every weight of the curve.

    `options` are the generation's, for its method or the nearest PSRQ to it; their prefix weight is
    not used. `curve` are weights beside 0, 1 and the automatic one (None: BREAK_EVEN_SHARES).
    `measures` and `own_weight` are the generation's, on the same rows. Fits run on `device`.
    """
    book, codes_NL, trace = fit(x_ND, replace(options, prefix_weight="auto"), device=device)
    assert trace.auto is not None, "an automatic weight needs two levels"
    held: dict[str, Any] = {"reference_N": reference_N, "co_listened_P2": co_listened_P2}
    fits = [Fit(weight=trace.auto.weight, measures=quality(x_ND, codes_NL, book, **held))]
    if curve is None:
        curve = tuple(share * trace.auto.break_even for share in BREAK_EVEN_SHARES)
    # Not 0 or 1 again, nor the generation's weight where another is as good as equal to it.
    weights = distinct_weights((0.0, 1.0, trace.auto.weight, *curve), own_weight)
    weights.remove(trace.auto.weight)
    for weight in track(weights, "fits with a prefix weight", len(weights), "fits"):
        book, codes_NL, _ = fit(x_ND, replace(options, prefix_weight=weight), device=device)
        fits.append(Fit(weight=weight, measures=quality(x_ND, codes_NL, book, **held)))
    fits.sort(key=lambda one: one.weight)
    return Comparison(
        rows=len(x_ND),
        auto=trace.auto,
        fits=tuple(fits),
        measures=measures,
        own_weight=own_weight,
    )


def distinct_weights(weights: Iterable[float], own_weight: float | None) -> list[float]:
    """`weights` once each, ascending, with `own_weight` unless one of them is near it."""
    found = sorted(set(weights))
    if own_weight is not None and not any(same_weight(own_weight, weight) for weight in found):
        found = sorted([*found, own_weight])
    return found


def same_weight(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=SAME_WEIGHT)


def headline(measures: dict[str, Any]) -> dict[str, Any]:
    """One family's measures in a few numbers.

    `ami_*` and `nmi_*`: means over the levels after the first, with the reference and with level 1.
    AMI, as chance alone gives many codes and many labels some NMI. `unused`: the share of the
    information that the levels after the first could
    still give, the lesser of log N and sum_l log K_l less H(id_1), that they do not. None where
    there is one level, or nothing left to give.
    """
    first, deeper = measures["levels"][0], measures["levels"][1:]
    most = min(math.log(measures["rows"]), sum(math.log(row["codes"]) for row in [first, *deeper]))
    room = most - first["entropy"]
    given = sum(row["conditional_entropy"] for row in deeper)
    return {
        **{
            name: _mean([row[name] for row in deeper])
            for name in ("ami_reference", "ami_level_1", "nmi_reference", "nmi_level_1")
        },
        "items_sharing": measures["full"]["items_sharing"],
        "collision_rate": measures["full"]["collision_rate"],
        "distinct_codes": measures["full"]["distinct"],
        "unused": max(0.0, 1 - given / room) if deeper and room > LEAST_ROOM else None,
        "relative_mse": measures["levels"][-1]["relative_mse"],
        "neighbour_recall": measures["neighbour_recall"]["recall"],
        "recall_error": measures["neighbour_recall"]["standard_error"],
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
