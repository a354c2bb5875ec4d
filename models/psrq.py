"""Progressive semantic residual quantization (PSRQ), with plain RQ and VQ as the same code.

    X_1 = X,  C_1 = KMeans(X_1)                                   paper section 1
    X_l = X_{l-1} - NearestRep(X_{l-1}, C_{l-1})
    C_l = KMeans([X_l ; alpha * (X - X_l)])                       l >= 2

NearestRep searches in 2d and gives the residual half of the centroid, so X - X_l is the sum of the
halves already subtracted. alpha = `prefix_weight`: 1 is the paper, 0 is RQ; one level is VQ.

Shape suffixes: N rows, M rows of one chunk, D dims, K codes, L levels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from models.kmeans import KMeans, kmeans
from models.nearest import (
    Centroids,
    NearestCentroid,
    Prefix,
    check_rows,
    chunks,
    mean_and_scatter,
)

AUTO_ROWS = 65_536
"""Rows, drawn by the seed, from which the automatic prefix weight is estimated."""
AUTO_SHARE = 0.5
"""The automatic prefix weight as a share of the break-even weight."""


@dataclass(frozen=True, kw_only=True)
class PsrqOptions:
    """How one family's books are fitted. A bad value raises ValueError naming the field."""

    levels: int = 3
    codes: int = 128
    prefix_weight: float | Literal["auto"] = "auto"
    iterations: int = 25
    """Most centroid updates of one level."""
    tolerance: float = 1e-4
    """A level ends when an update lowers its objective by less than this share."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("levels", 1), ("codes", 1), ("iterations", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        if self.prefix_weight != "auto" and not _is_weight(self.prefix_weight):
            raise ValueError(
                "prefix_weight must be 'auto' or a number of at least 0, "
                f"got {self.prefix_weight!r}"
            )
        if not _is_weight(self.tolerance):
            raise ValueError(f"tolerance must be a number of at least 0, got {self.tolerance!r}")


def _is_weight(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 0  # type: ignore[arg-type,operator]


@dataclass(frozen=True, kw_only=True)
class Codebook:
    """One family's L books: all that is needed to give a new item its codes.

    `residuals[l]` (K, D) and, for PSRQ, `prefixes[l - 1]` (K, D) unscaled, for l >= 1; float32.
    ValueError where the shapes, the values or the weight do not fit each other.
    """

    residuals: tuple[Tensor, ...]
    prefixes: tuple[Tensor, ...]
    prefix_weight: float

    def __post_init__(self) -> None:
        if not self.residuals:
            raise ValueError("a codebook needs at least the tensor residual_0")
        if not _is_weight(self.prefix_weight):
            raise ValueError(f"prefix_weight must be at least 0, got {self.prefix_weight!r}")
        deeper = self.levels - 1 if self.prefix_weight > 0 else 0
        if len(self.prefixes) != deeper:
            raise ValueError(
                f"{self.levels} levels with prefix_weight {self.prefix_weight:g} need {deeper} "
                f"prefix tensors, got {len(self.prefixes)}"
            )
        for name, tensor in self.tensors().items():
            level = int(name.rpartition("_")[2])
            shape = (len(self.residuals[level]), self.dims)
            if tensor.shape != shape or tensor.dtype != torch.float32:
                raise ValueError(
                    f"{name} must be float32 {shape}, got {tensor.dtype} {tuple(tensor.shape)}"
                )
            if not tensor.isfinite().all():
                raise ValueError(f"{name} holds values that are not finite")

    @property
    def levels(self) -> int:
        return len(self.residuals)

    @property
    def dims(self) -> int:
        return self.residuals[0].shape[-1]

    @property
    def method(self) -> str:
        """`psrq`, `rq_kmeans` (no prefix) or `vq` (one level)."""
        if self.levels == 1:
            return "vq"
        return "psrq" if self.prefix_weight > 0 else "rq_kmeans"

    def tensors(self) -> dict[str, Tensor]:
        """`residual_0`, `residual_1`, `prefix_1`, ...: the names in a codebook's file."""
        named = {"residual_0": self.residuals[0]}
        for level in range(1, self.levels):
            named[f"residual_{level}"] = self.residuals[level]
            if self.prefixes:
                named[f"prefix_{level}"] = self.prefixes[level - 1]
        return named

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], *, prefix_weight: float) -> "Codebook":
        """The inverse of `tensors`; ValueError for a missing or an unknown name."""
        levels = sum(name.startswith("residual_") for name in tensors)
        names = [f"residual_{level}" for level in range(levels)]
        prefix_names = [f"prefix_{level}" for level in range(1, levels) if prefix_weight != 0]
        wanted = {*names, *prefix_names}
        if wanted != set(tensors):
            raise ValueError(
                f"codebook tensors with prefix_weight {prefix_weight:g}: "
                f"missing {sorted(wanted - set(tensors))}, unknown {sorted(set(tensors) - wanted)}"
            )
        return cls(
            residuals=tuple(tensors[name] for name in names),
            prefixes=tuple(tensors[name] for name in prefix_names),
            prefix_weight=prefix_weight,
        )


@dataclass(frozen=True, kw_only=True)
class LevelTrace:
    """How the fit of one level went; `objectives` after each update, in 2d for PSRQ."""

    objectives: tuple[float, ...]
    objective: float
    iterations: int
    converged: bool
    repaired: int
    relative_mse: float
    """sum ||x - x_hat||^2 / sum ||x - mean||^2 with the levels so far; 0 for constant data."""


@dataclass(frozen=True, kw_only=True)
class AutoWeight:
    """The automatic prefix weight and the variance shares behind it (paper section 1.1)."""

    weight: float
    break_even: float
    explained_level_1: float
    gained_level_2: float
    rows: int


@dataclass(frozen=True, kw_only=True)
class FitTrace:
    levels: tuple[LevelTrace, ...]
    auto: AutoWeight | None


def fit(x_ND: Tensor, options: PsrqOptions) -> tuple[Codebook, Tensor, FitTrace]:
    """Books, the rows' codes (N, L) int64, equal to `assign(codebook, x_ND)`, and how it went.

    Fewer than K distinct rows leave codes unused, never NaN. ValueError naming the first row that
    is not finite.
    """
    x_ND = check_rows(x_ND)
    variance = mean_and_scatter(x_ND)[1]
    weight = 0.0 if options.prefix_weight == "auto" else float(options.prefix_weight)
    auto: AutoWeight | None = None
    residual_ND = x_ND
    residuals: tuple[Tensor, ...] = ()
    prefixes: tuple[Tensor, ...] = ()
    codes_NL = torch.empty(len(x_ND), 0, dtype=torch.int64)
    traces: list[LevelTrace] = []
    for level in range(options.levels):
        prefix = None
        if level > 0 and weight > 0:
            prefix = Prefix(codes_NJ=codes_NL, books=residuals, weight=weight)
        found = _fit_level(residual_ND, level, options, prefix)
        residuals += (found.centroids.x_KD,)
        if found.centroids.prefix_KD is not None:
            prefixes += (found.centroids.prefix_KD,)
        codes_NL = torch.cat([codes_NL, found.codes_N[:, None]], 1)
        residual_ND = residual_ND - found.centroids.x_KD[found.codes_N]
        traces.append(
            LevelTrace(
                objectives=found.objectives,
                objective=found.objective,
                iterations=found.iterations,
                converged=found.converged,
                repaired=found.repaired,
                relative_mse=_energy(residual_ND) / variance if variance > 0 else 0.0,
            )
        )
        if level == 0 and options.levels > 1 and options.prefix_weight == "auto":
            auto = auto_weight(x_ND, residual_ND, options)
            weight = auto.weight
    if options.levels == 1:
        weight = 0.0
    codebook = Codebook(residuals=residuals, prefixes=prefixes, prefix_weight=weight)
    return codebook, codes_NL, FitTrace(levels=tuple(traces), auto=auto)


def _fit_level(
    residual_ND: Tensor, level: int, options: PsrqOptions, prefix: Prefix | None
) -> KMeans:
    return kmeans(
        residual_ND,
        options.codes,
        prefix=prefix,
        iterations=options.iterations,
        tolerance=options.tolerance,
        seed=level_seed(options.seed, level),
    )


def level_seed(seed: int, level: int) -> int:
    """Seed of one level's initial centroids: unrelated streams for all (seed, level)."""
    return int(np.random.SeedSequence((seed, level)).generate_state(1)[0])


def auto_weight(x_ND: Tensor, residual_ND: Tensor, options: PsrqOptions) -> AutoWeight:
    """Half the break-even weight alpha* = sqrt(g / f) of paper section 1.1.

    f is the share of variance that level 1 explains, g the further share that plain RQ gains at
    level 2. At alpha*, copying level 1 into level 2 costs as much as ignoring the prefix: above it
    the level repeats its prefix, well below it the level is RQ. f = 0 gives 0.
    `residual_ND` is what level 1 leaves of `x_ND`.
    """
    if len(x_ND) > AUTO_ROWS:
        generator = torch.Generator().manual_seed(level_seed(options.seed, options.levels))
        rows_S = torch.randperm(len(x_ND), generator=generator)[:AUTO_ROWS].sort().values
        x_ND, residual_ND = x_ND[rows_S], residual_ND[rows_S]
    variance, left_1 = mean_and_scatter(x_ND)[1], _energy(residual_ND)
    left_2 = _fit_level(residual_ND, 1, options, None).objective
    if variance <= 0 or left_1 >= variance:
        break_even, explained, gained = 0.0, 0.0, 0.0
    else:
        explained, gained = 1 - left_1 / variance, (left_1 - left_2) / variance
        break_even = math.sqrt(max(0.0, gained) / explained)
    return AutoWeight(
        weight=AUTO_SHARE * break_even,
        break_even=break_even,
        explained_level_1=explained,
        gained_level_2=gained,
        rows=len(x_ND),
    )


def assign(codebook: Codebook, x_ND: Tensor) -> Tensor:
    """Codes (N, L) int64. A row's codes depend on that row and the books alone.

    ValueError for rows of another width, or naming the first row that is not finite.
    """
    x_ND = check_rows(x_ND)
    if x_ND.shape[1] != codebook.dims:
        raise ValueError(f"the codebook takes {codebook.dims} dims, got {x_ND.shape[1]}")
    searches = [NearestCentroid(Centroids(x_KD=codebook.residuals[0]))]
    for level in range(1, codebook.levels):
        prefix_KD = codebook.prefixes[level - 1] if codebook.prefixes else None
        centroids = Centroids(x_KD=codebook.residuals[level], prefix_KD=prefix_KD)
        books = codebook.residuals[:level]
        searches.append(NearestCentroid(centroids, books, codebook.prefix_weight))
    codes_NL = torch.empty(len(x_ND), codebook.levels, dtype=torch.int64)
    for part in chunks(x_ND):
        residual_MD = x_ND[part]
        for level, search in enumerate(searches):
            code_M = search(residual_MD, codes_NL[part, :level])
            codes_NL[part, level] = code_M
            residual_MD = residual_MD - codebook.residuals[level][code_M]
    return codes_NL


def decode(codebook: Codebook, codes_NL: Tensor, levels: int | None = None) -> Tensor:
    """x_hat (N, D) = sum of the residual rows of the first `levels` codes (default: all).

    ValueError for codes outside the books or another number of levels.
    """
    levels = codebook.levels if levels is None else levels
    if not 1 <= levels <= codebook.levels or codes_NL.ndim != 2 or codes_NL.shape[1] < levels:
        raise ValueError(
            f"{levels} levels asked of a codebook of {codebook.levels} "
            f"and codes of shape {tuple(codes_NL.shape)}"
        )
    x_hat_ND = torch.zeros(len(codes_NL), codebook.dims)
    for level in range(levels):
        book_KD, code_N = codebook.residuals[level], codes_NL[:, level]
        if len(code_N) and not 0 <= int(code_N.min()) <= int(code_N.max()) < len(book_KD):
            raise ValueError(f"codes of level {level} must be 0 to {len(book_KD) - 1}")
        x_hat_ND += book_KD[code_N]
    return x_hat_ND


def _energy(x_ND: Tensor) -> float:
    """sum ||x||^2 in float64."""
    return sum(float(x_ND[part].double().square().sum()) for part in chunks(x_ND))
