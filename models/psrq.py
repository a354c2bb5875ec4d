"""Progressive semantic residual quantization (PSRQ), with plain RQ and VQ as the same code.

    X_1 = X,  C_1 = KMeans(X_1)                                   paper section 1
    X_l = X_{l-1} - NearestRep(X_{l-1}, C_{l-1})
    C_l = KMeans([X_l ; alpha * (X - X_l)])                       l >= 2

NearestRep searches in 2d and gives the residual half of the centroid, so X - X_l is the sum of the
halves already subtracted. alpha = `prefix_weight`: 1 is the paper, 0 is RQ; one level is VQ.

Shape suffixes: N rows, M rows of one chunk, D dims, K codes, L levels.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from models.balance import balanced, check_balance
from models.kmeans import kmeans
from models.means import Means
from models.option_checks import check_integers, check_weights, is_weight
from models.residual_codebook import Codebook
from models.rows import Centroids, Prefix, check_rows, chunks, mean_and_scatter
from models.shards import Shards

AUTO_ROWS = 65_536
"""Rows, drawn by the seed, from which the automatic prefix weight is estimated."""
AUTO_SHARE = 0.5
"""The automatic prefix weight as a share of the break-even weight."""
CUDA_WORKING_BYTES = 4 << 30
"""Left free on a CUDA device for tables, float64 chunks and rows that are scored again."""


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
    balance: float | None = None
    """Largest share of a code over the even share 1 / codes, 1 or more; None: no limit."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_integers(self, {"levels": 1, "codes": 1, "iterations": 1, "seed": 0})
        if self.prefix_weight != "auto" and not is_weight(self.prefix_weight):
            raise ValueError(
                "prefix_weight must be 'auto' or a number of at least 0, "
                f"got {self.prefix_weight!r}"
            )
        check_weights(self, ["tolerance"])
        check_balance(self.balance)


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


def fit(
    x_ND: Tensor,
    options: PsrqOptions,
    *,
    start: Codebook | None = None,
    device: torch.device | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Codebook, Tensor, FitTrace]:
    """Books, the rows' codes (N, L) int64, equal to `assign(codebook, x_ND)`, and how it went.

    With `options.balance` the codes are the balanced ones instead (`models.balance`). Fewer than K
    distinct rows leave codes unused, never NaN. `start`: books of the same shape from which k-means
    goes on, instead of its own start; an `auto` weight is then theirs. `device`: CPU by default;
    rows that do not fit a CUDA device stream through it. `group`: workers that hold one run of the
    rows each; all get the same books. ValueError naming the first row that is not finite, or a
    `start` of another shape.
    """
    x_ND = check_rows(x_ND)
    device = device or x_ND.device
    if start is not None:
        _check_start(start, x_ND, options)
    x_ND, part_rows = _placed(x_ND, device)
    shards = Shards(len(x_ND), group)
    if options.balance is not None and shards.total != len(x_ND):
        raise ValueError("balance needs all rows in one worker")
    variance = Means(x_ND, 1, None, device, shards).total
    weight = 0.0 if options.prefix_weight == "auto" else float(options.prefix_weight)
    if start is not None and options.prefix_weight == "auto":
        weight = start.prefix_weight
    auto: AutoWeight | None = None
    residual_ND = x_ND
    residuals: tuple[Tensor, ...] = ()
    prefixes: tuple[Tensor, ...] = ()
    codes_NL = torch.empty(len(x_ND), 0, dtype=torch.int64, device=x_ND.device)
    traces: list[LevelTrace] = []
    for level in range(options.levels):
        prefix = None
        if level > 0 and weight > 0:
            prefix = Prefix(codes_NJ=codes_NL, books=residuals, weight=weight)
        found = kmeans(
            residual_ND,
            options.codes,
            prefix=prefix,
            start=_level_start(start, level, prefix, device),
            iterations=options.iterations,
            tolerance=options.tolerance,
            seed=level_seed(options.seed, level),
            device=device,
            part_rows=part_rows,
            group=group,
        )
        if options.balance is not None:
            found = balanced(residual_ND, found, options.balance, prefix)
        book_KD = found.centroids.x_KD.to(x_ND.device)
        residuals += (book_KD,)
        if found.centroids.prefix_KD is not None:
            prefixes += (found.centroids.prefix_KD.cpu(),)
        codes_NL = torch.cat([codes_NL, found.codes_N[:, None]], 1)
        residual_ND = subtract_rows(residual_ND, book_KD, found.codes_N)
        left = float(shards.sum(_energy(residual_ND)))
        traces.append(
            LevelTrace(
                objectives=found.objectives,
                objective=found.objective,
                iterations=found.iterations,
                converged=found.converged,
                repaired=found.repaired,
                relative_mse=left / variance if variance > 0 else 0.0,
            )
        )
        if level == 0 and options.levels > 1 and options.prefix_weight == "auto" and start is None:
            auto = auto_weight(x_ND, residual_ND, options, device=device, shards=shards)
            weight = auto.weight
    codebook = Codebook(
        residuals=tuple(book_KD.cpu() for book_KD in residuals),
        prefixes=prefixes,
        prefix_weight=weight if options.levels > 1 else 0.0,
    )
    return codebook, codes_NL.cpu(), FitTrace(levels=tuple(traces), auto=auto)


def _placed(x_ND: Tensor, device: torch.device) -> tuple[Tensor, int | None]:
    """The rows on the device if they fit, or else where they are and how many to send at once."""
    if device.type != "cuda" or x_ND.is_cuda:
        return x_ND, None
    n, d = x_ND.shape
    free = torch.cuda.mem_get_info(device)[0] - CUDA_WORKING_BYTES
    # x and its residual in float32, and the float16 copy that the kernels read
    if free > n * d * 10:
        return x_ND.to(device), None
    rows = free // (d * 16)
    if rows < 1024:
        raise ValueError(f"{free} bytes free on {device}: too few for parts of {d}-d rows")
    return x_ND, min(n, rows)


def subtract_rows(x_ND: Tensor, book_KD: Tensor, code_N: Tensor) -> Tensor:
    """X_{l+1} = X_l - C_l[id_l], (N, D) float32."""
    left_ND = torch.empty_like(x_ND)
    for part in chunks(x_ND):
        torch.sub(x_ND[part], book_KD.index_select(0, code_N[part]), out=left_ND[part])
    return left_ND


def _check_start(start: Codebook, x_ND: Tensor, options: PsrqOptions) -> None:
    have = (start.levels, set(start.sizes), start.dims)
    want = (options.levels, {options.codes}, x_ND.shape[1])
    if have != want:
        raise ValueError(f"start must have (levels, codes, dims) {want}, got {have}")
    prefixed = options.prefix_weight != 0 and options.levels > 1
    if options.prefix_weight != "auto" and prefixed != bool(start.prefixes):
        raise ValueError(
            f"prefix_weight {options.prefix_weight} cannot start from books of weight "
            f"{start.prefix_weight:g}"
        )


def _level_start(
    start: Codebook | None, level: int, prefix: Prefix | None, device: torch.device
) -> Centroids | None:
    if start is None:
        return None
    prefix_KD = start.prefixes[level - 1].to(device) if prefix is not None else None
    return Centroids(x_KD=start.residuals[level].to(device), prefix_KD=prefix_KD)


def level_seed(seed: int, level: int) -> int:
    """Seed of one level's initial centroids: unrelated streams for all (seed, level)."""
    return int(np.random.SeedSequence((seed, level)).generate_state(1)[0])


def auto_weight(
    x_ND: Tensor,
    residual_ND: Tensor,
    options: PsrqOptions,
    *,
    device: torch.device | None = None,
    shards: Shards | None = None,
) -> AutoWeight:
    """Half the break-even weight alpha* = sqrt(g / f) of paper section 1.1.

    f is the share of variance that level 1 explains, g the further share that plain RQ gains at
    level 2. At alpha*, copying level 1 into level 2 costs as much as ignoring the prefix: above it
    the level repeats its prefix, well below it the level is RQ. f = 0 gives 0.
    `residual_ND` is what level 1 leaves of `x_ND`.
    """
    shards = shards or Shards(len(x_ND))
    if shards.total > AUTO_ROWS:
        generator = torch.Generator().manual_seed(level_seed(options.seed, options.levels))
        rows_S = torch.randperm(shards.total, generator=generator)[:AUTO_ROWS].sort().values
    else:
        rows_S = torch.arange(shards.total)
    x_SD, residual_SD = shards.gather(x_ND, rows_S), shards.gather(residual_ND, rows_S)
    variance, left_1 = mean_and_scatter(x_SD)[1], float(_energy(residual_SD))
    left_2 = kmeans(
        residual_SD,
        options.codes,
        iterations=options.iterations,
        tolerance=options.tolerance,
        seed=level_seed(options.seed, 1),
        device=device,
    ).objective
    numbers = torch.tensor([variance, left_1, left_2], dtype=torch.float64)
    variance, left_1, left_2 = shards.agree(numbers).tolist()
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
        rows=len(x_SD),
    )


def assign(codebook: Codebook, x_ND: Tensor) -> Tensor:
    """`codebook.encode(x_ND)`."""
    return codebook.encode(x_ND)


def decode(codebook: Codebook, codes_NL: Tensor, levels: int | None = None) -> Tensor:
    """`codebook.decode(codes_NL, levels)`."""
    return codebook.decode(codes_NL, levels)


def _energy(x_ND: Tensor) -> Tensor:
    """sum ||x||^2 in float64."""
    return torch.stack([x_ND[part].double().square().sum() for part in chunks(x_ND)]).sum()
