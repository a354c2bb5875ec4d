"""Drift watch: are new tracks still like those that the codebooks were fitted on?

    fitting_profile(book, x_ND, codes_NL)    `quantize`: the codebook's manifest, info["fitting"]
    Cohort.measure(...), a + b               `assign`: what the new tracks cost and which codes they
                                             use, chunk by chunk
    judge(profile, cohort, limits)           figures, and warnings; never an error

A fitted book knows its own rows, which therefore cost less than any new row. So the profile says
what each fitting row would cost, and which codes it would have, had it not been in the fit
(`models.left_out`): new rows of the same kind then cost about as much.

Shape suffixes: N rows, S sampled rows, D dims, K codes, L levels, R random draws.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feature_repo.errors import InputError
from models.left_out import left_out
from models.pq import PqBook
from models.quantizers import Quantizer
from models.residual_codebook import Codebook
from models.rows import mean_and_scatter

PROFILE_ROWS = 16_384
"""Most rows, drawn evenly, that a profile looks at."""
QUANTILES = (0.5, 0.9, 0.99)
STANDARD_ERRORS = 3.0
"""By how much a mean or a share has to pass its limit."""
NULL_DRAWS = 199
"""Divisions of all tracks at random, which say how far chance alone drives two usages apart."""
NULL_DEVIATIONS = 5.0
"""By how many of the draws' deviations a usage has to differ. A family has a test a level and a
run; at 3 deviations a daily run would cry wolf every few months."""


@dataclass(frozen=True, kw_only=True)
class DriftLimits:
    """When new tracks are worth a warning. A bad value raises InputError naming the field."""

    error_ratio: float = 1.25
    """Mean reconstruction error over the fitting set's: 1.04 to 1.09 on tracks of the same kind, up
    to 1.5 on kinds that the fit has not seen, if they do not happen to be easy ones."""
    tail_share: float = 0.05
    """Share of tracks that cost more than 99% of the fitting set: 0.01 to 0.04 on the same kind."""
    usage_shift: float = 0.05
    """Jensen-Shannon divergence of a level's code usage in bits, less what chance gives: below 0.03
    on the same kind, 0.09 to 0.73 on kinds that the fit has not seen. 0.05 is a population
    stability index of 0.28, on which the custom is to act from 0.25."""
    least_tracks: int = 100
    """Fewer are not judged: tracks come in albums, whose tracks are alike."""

    def __post_init__(self) -> None:
        for name, least in (("error_ratio", 1.0), ("tail_share", 0.01), ("usage_shift", 0.0)):
            if not getattr(self, name) >= least:
                raise InputError(f"{name} must be at least {least:g}, got {getattr(self, name)}")
        if self.least_tracks < 2:
            raise InputError(f"least_tracks must be at least 2, got {self.least_tracks}")


# --- the fitting set -------------------------------------------------------------------------


def fitting_profile(book: Quantizer, x_ND: Tensor, codes_NL: Tensor) -> dict[str, Any]:
    """What the fitting rows would cost a book that had not seen them; plain JSON.

    `codes_NL` are the codes of the fit, before collisions were resolved. `rows` looked at;
    `variance` = sum ||x - mean||^2 / N, the unit of errors; `error` per level: mean and quantiles;
    `counts` per level: rows a code. `left_out` is false for RQ-VAE, whose rows are in its fit.
    """
    variance = mean_and_scatter(x_ND)[1] / len(x_ND)
    device = next(iter(book.tensors().values())).device
    sizes = [
        torch.bincount(codes_NL[:, level], minlength=size).to(device)
        for level, size in enumerate(book.sizes)
    ]
    step = max(1, -(-len(x_ND) // PROFILE_ROWS))
    x_SD, codes_SL = x_ND[::step].to(device), codes_NL[::step].to(device)
    if isinstance(book, Codebook | PqBook):
        codes_SL, errors_SL = left_out(book, x_SD, codes_SL, sizes)
    else:
        codes_SL = book.encode(x_SD)
        errors_SL = _errors(book, x_SD, codes_SL)
    errors_SL = errors_SL / variance if variance > 0 else torch.zeros_like(errors_SL)
    return {
        "rows": len(x_SD),
        "variance": variance,
        "left_out": isinstance(book, Codebook | PqBook),
        "error": [
            {
                "mean": float(errors_SL[:, level].mean()),
                **{f"q{q * 100:g}": float(errors_SL[:, level].quantile(q)) for q in QUANTILES},
            }
            for level in range(book.levels)
        ],
        "counts": [
            torch.bincount(codes_SL[:, level], minlength=size).tolist()
            for level, size in enumerate(book.sizes)
        ],
    }


def _errors(book: Quantizer, x_ND: Tensor, codes_NL: Tensor) -> Tensor:
    """||x - x_hat||^2 (N, L) after each level, in float64."""
    return torch.stack(
        [
            (x_ND - book.decode(codes_NL, level + 1)).square().sum(1).double()
            for level in range(book.levels)
        ],
        1,
    )


# --- the new tracks --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """What a number of tracks cost, and which codes they use. Sums, so that cohorts add up."""

    rows: int
    error: tuple[float, ...]
    """Sum of the relative errors, per level."""
    error_squared: float
    """Sum of the squares of the relative errors of the last level."""
    tail: int
    """Rows that cost more than 99% of the fitting set."""
    counts: tuple[tuple[int, ...], ...]
    """Rows a code, per level."""

    @classmethod
    def measure(
        cls, profile: dict[str, Any], book: Quantizer, x_ND: Tensor, codes_NL: Tensor
    ) -> "Cohort":
        """Of rows and their codes by `book.encode`; `profile` is that of the book."""
        errors_NL = _errors(book, x_ND, codes_NL)
        if profile["variance"] > 0:
            errors_NL /= profile["variance"]
        return cls(
            rows=len(x_ND),
            error=tuple(errors_NL.sum(0).tolist()),
            error_squared=float(errors_NL[:, -1].square().sum()),
            tail=int((errors_NL[:, -1] > profile["error"][-1]["q99"]).sum()),
            counts=tuple(
                tuple(torch.bincount(codes_NL[:, level], minlength=size).tolist())
                for level, size in enumerate(book.sizes)
            ),
        )

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Cohort":
        """The inverse of `to_json`."""
        counts = tuple(tuple(of_level) for of_level in stored["counts"])
        return cls(**stored | {"error": tuple(stored["error"]), "counts": counts})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __add__(self, other: "Cohort") -> "Cohort":
        return Cohort(
            rows=self.rows + other.rows,
            error=tuple(a + b for a, b in zip(self.error, other.error, strict=True)),
            error_squared=self.error_squared + other.error_squared,
            tail=self.tail + other.tail,
            counts=tuple(
                tuple(a + b for a, b in zip(ours, theirs, strict=True))
                for ours, theirs in zip(self.counts, other.counts, strict=True)
            ),
        )


def judge(
    profile: dict[str, Any], cohort: Cohort, limits: DriftLimits
) -> tuple[dict[str, Any], list[str]]:
    """A cohort's figures, and a line for each that passes its limit by more than chance would.

    `error_ratio` per level, `tail_share`, `usage_shift` per level. Fewer than `least_tracks` are
    measured but not judged; neither is the error by an RQ-VAE, which knows its own rows by heart to
    an extent that nobody knows.
    """
    n = cohort.rows
    pairs = list(zip(profile["counts"], cohort.counts, strict=True))
    shifts = [usage_shift(np.array(ours), np.array(theirs)) for ours, theirs in pairs]
    figures = {
        "tracks": n,
        "judged": n >= limits.least_tracks,
        "error_ratio": [
            total / n / of_level["mean"] if of_level["mean"] > 0 else None
            for total, of_level in zip(cohort.error, profile["error"], strict=True)
        ],
        "tail_share": cohort.tail / n,
        "usage_shift": [shift for shift, _ in shifts],
    }
    warnings: list[str] = []
    if not figures["judged"]:
        return figures, warnings
    if profile["left_out"]:
        warnings += _dear(profile["error"][-1]["mean"], cohort, limits)
    for level, (shift, beyond_chance) in enumerate(shifts):
        if beyond_chance and shift > limits.usage_shift:
            warnings.append(
                f"{n:,} new tracks use the codes of level {level + 1} unlike the fitting set: "
                f"by {shift:.3f} bits, more than {limits.usage_shift:g}"
            )
    return figures, warnings


def _dear(fitted: float, cohort: Cohort, limits: DriftLimits) -> list[str]:
    """Lines about tracks whose error is too large in the mean, or too large too often."""
    n, mean, tail = cohort.rows, cohort.error[-1] / cohort.rows, cohort.tail / cohort.rows
    deviation = max(0.0, cohort.error_squared / n - mean**2) ** 0.5
    sure, limit = STANDARD_ERRORS / n**0.5, limits.tail_share
    lines = []
    if mean - sure * deviation > limits.error_ratio * fitted:
        lines.append(
            f"the reconstruction error of {n:,} new tracks is {mean:.3g}, that of the fitting set "
            f"{fitted:.3g}: more than {limits.error_ratio:g} times as much"
        )
    if tail - sure * (limit * (1 - limit)) ** 0.5 > limit:
        lines.append(
            f"{tail:.1%} of {n:,} new tracks cost more than 99% of the fitting set: "
            f"more than {limit:.1%}"
        )
    return lines


def usage_shift(fitted_K: np.ndarray, new_K: np.ndarray) -> tuple[float, bool]:
    """How far two usages of K codes are apart, and whether by more than chance gives.

    The Jensen-Shannon divergence in bits, 0 to 1, less its mean when all tracks are divided at
    random into two sets of these sizes; at least 0. Beyond chance: `NULL_DEVIATIONS` of that.
    """
    all_K = fitted_K + new_K
    drawn_RK = np.random.default_rng(0).multivariate_hypergeometric(
        all_K, int(new_K.sum()), size=NULL_DRAWS, method="marginals"
    )
    by_chance_R = _divergence(all_K - drawn_RK, drawn_RK)
    shift = float(_divergence(fitted_K[None], new_K[None])[0] - by_chance_R.mean())
    return max(0.0, shift), shift > NULL_DEVIATIONS * float(by_chance_R.std())


def _divergence(a_RK: np.ndarray, b_RK: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence (R,) in bits: H((p + q) / 2) - (H(p) + H(q)) / 2."""

    def entropy(p_RK: np.ndarray) -> np.ndarray:
        return -(p_RK * np.log2(np.where(p_RK > 0, p_RK, 1))).sum(1)

    p_RK, q_RK = (counts / counts.sum(1, keepdims=True) for counts in (a_RK, b_RK))
    return entropy((p_RK + q_RK) / 2) - (entropy(p_RK) + entropy(q_RK)) / 2
