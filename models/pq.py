"""Product quantization (PQ): the dims in L slices, one k-means for each.

    id_l = argmin_k ||x_slice_l - c_l,k||^2
    x_hat = [c_1,id_1 ; ... ; c_L,id_L]

The codes are independent: code l says nothing about the dims of another slice, and the first codes
are no coarse form of the ID. So `decode` of fewer levels has the mean of the fitted rows where no
slice is read. The paper's comparison has L = 4.

Shape suffixes: N rows, D dims, S dims of one slice, K codes, L levels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.balance import balanced, check_balance
from models.exact_products import distances
from models.kmeans import kmeans
from models.nearest import nearest
from models.option_checks import check_integers, check_weights
from models.psrq import LevelTrace, level_seed
from models.residual_codebook import check_codes, check_names
from models.rows import Centroids, check_rows, mean_and_scatter


@dataclass(frozen=True, kw_only=True)
class PqOptions:
    """How one family's books are fitted. A bad value raises ValueError naming the field."""

    levels: int = 4
    """Slices of the dims; at most as many as there are dims."""
    codes: int = 128
    iterations: int = 25
    """Most centroid updates of one slice."""
    tolerance: float = 1e-4
    """A slice ends when an update lowers its objective by less than this share."""
    balance: float | None = None
    """Largest share of a code over the even share 1 / codes, 1 or more; None: no limit."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_integers(self, {"levels": 1, "codes": 1, "iterations": 1, "seed": 0})
        check_weights(self, ["tolerance"])
        check_balance(self.balance)


@dataclass(frozen=True, kw_only=True)
class PqBook:
    """One family's L books: `subspaces[l]` (K, S_l) of slice l, `mean_D` of the fitted rows.

    float32; the slices side by side are the D dims. ValueError where they do not fit each other.
    """

    subspaces: tuple[Tensor, ...]
    mean_D: Tensor

    def __post_init__(self) -> None:
        if not self.subspaces:
            raise ValueError("a PQ book needs at least the tensor subspace_0")
        for name, tensor in self.tensors().items():
            if tensor.dtype != torch.float32 or tensor.ndim != 1 + (name != "mean"):
                raise ValueError(
                    f"{name} must be float32 of {1 + (name != 'mean')} axes, "
                    f"got {tensor.dtype} {tuple(tensor.shape)}"
                )
            if not tensor.isfinite().all():
                raise ValueError(f"{name} holds values that are not finite")
        widths = [book_KS.shape[1] for book_KS in self.subspaces]
        if widths != slice_widths(self.dims, self.levels):
            raise ValueError(
                f"subspaces of {self.levels} levels over {self.dims} dims must be "
                f"{slice_widths(self.dims, self.levels)} wide, got {widths}"
            )

    @property
    def method(self) -> str:
        return "pq"

    @property
    def levels(self) -> int:
        return len(self.subspaces)

    @property
    def dims(self) -> int:
        return len(self.mean_D)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each slice."""
        return tuple(len(book_KS) for book_KS in self.subspaces)

    def encode(self, x_ND: Tensor) -> Tensor:
        """Codes (N, L) int64. A row's codes depend on that row and the books alone.

        ValueError for rows of another width, or naming the first row that is not finite.
        """
        parts = slices(self._check(x_ND), self.levels)
        return torch.stack(
            [
                nearest(x_NS.contiguous(), Centroids(x_KD=book_KS.to(x_NS.device)))
                for book_KS, x_NS in zip(self.subspaces, parts, strict=True)
            ],
            1,
        )

    def decode(self, codes_NL: Tensor, levels: int | None = None) -> Tensor:
        """x_hat (N, D): the first `levels` slices (default: all), the fitted mean elsewhere.

        Codes beyond the books' levels are not read. ValueError for codes outside the books, or
        more levels than the books or the codes have.
        """
        levels = check_codes(codes_NL, self.sizes, levels)
        here = codes_NL.device
        read = [self.subspaces[level].to(here)[codes_NL[:, level]] for level in range(levels)]
        width = sum(x_NS.shape[1] for x_NS in read)
        return torch.cat([*read, self.mean_D[width:].to(here).expand(len(codes_NL), -1)], 1)

    def last_distances(self, x_ND: Tensor, codes_NL: Tensor) -> Tensor:
        """Squared distances (N, K) of the last slice to its codes; the earlier codes are not read.

        What `encode` minimises there, to rounding; for collisions (`models.collisions`).
        """
        x_NS = slices(self._check(x_ND), self.levels)[-1]
        return distances(x_NS, self.subspaces[-1].to(x_NS.device))

    def _check(self, x_ND: Tensor) -> Tensor:
        x_ND = check_rows(x_ND)
        if x_ND.shape[1] != self.dims:
            raise ValueError(f"the codebook takes {self.dims} dims, got {x_ND.shape[1]}")
        return x_ND

    def tensors(self) -> dict[str, Tensor]:
        """`subspace_0`, `subspace_1`, ..., and `mean`: the names in a codebook's file."""
        named = {f"subspace_{level}": book_KS for level, book_KS in enumerate(self.subspaces)}
        return {**named, "mean": self.mean_D}

    def settings(self) -> dict[str, Any]:
        """What `from_tensors` needs besides the tensors; plain JSON."""
        return {"method": self.method}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> "PqBook":
        """The inverse of `tensors`; ValueError for a missing or an unknown name."""
        levels = sum(name.startswith("subspace_") for name in tensors)
        names = [f"subspace_{level}" for level in range(levels)]
        check_names(tensors, {*names, "mean"}, f"method {settings['method']}")
        return cls(subspaces=tuple(tensors[name] for name in names), mean_D=tensors["mean"])


@dataclass(frozen=True, kw_only=True)
class PqTrace:
    """How the fit of each slice went."""

    levels: tuple[LevelTrace, ...]


def slice_widths(dims: int, levels: int) -> list[int]:
    """Nearly equal widths that add up to `dims`; the first ones are 1 wider where it must be."""
    return [dims // levels + (level < dims % levels) for level in range(levels)]


def slices(x_ND: Tensor, levels: int) -> tuple[Tensor, ...]:
    """Views (N, S_l) of the dims of each slice."""
    return x_ND.split(slice_widths(x_ND.shape[1], levels), dim=1)


def fit(
    x_ND: Tensor,
    options: PqOptions,
    *,
    start: PqBook | None = None,
    device: torch.device | None = None,
) -> tuple[PqBook, Tensor, PqTrace]:
    """Books, the rows' codes (N, L) int64, and how it went.

    The codes equal `book.encode(x_ND)`, unless `options.balance` is set. `start`: books of the same
    shape from which k-means goes on, instead of its own start. `device`: where the work is done, by
    default where the rows are. ValueError naming the first row that is not finite, and for more
    levels than dims, or a `start` of another shape.
    """
    x_ND = check_rows(x_ND)
    device = device or x_ND.device
    if options.levels > x_ND.shape[1]:
        raise ValueError(f"levels must be at most the {x_ND.shape[1]} dims, got {options.levels}")
    if start is not None:
        have = (start.levels, set(start.sizes), start.dims)
        want = (options.levels, {options.codes}, x_ND.shape[1])
        if have != want:
            raise ValueError(f"start must have (levels, codes, dims) {want}, got {have}")
    mean_D, variance = mean_and_scatter(x_ND)
    error = variance
    books: list[Tensor] = []
    codes: list[Tensor] = []
    traces: list[LevelTrace] = []
    for level, view_NS in enumerate(slices(x_ND, options.levels)):
        x_NS = view_NS.to(device).contiguous()
        found = kmeans(
            x_NS,
            options.codes,
            start=None if start is None else Centroids(x_KD=start.subspaces[level].to(device)),
            iterations=options.iterations,
            tolerance=options.tolerance,
            seed=level_seed(options.seed, level),
        )
        if options.balance is not None:
            found = balanced(x_NS, found, options.balance)
        books.append(found.centroids.x_KD.cpu())
        codes.append(found.codes_N.cpu())
        # A slice that is read costs its k-means' error instead of its scatter about the mean.
        error += found.objective - mean_and_scatter(x_NS)[1]
        traces.append(
            LevelTrace(
                objectives=found.objectives,
                objective=found.objective,
                iterations=found.iterations,
                converged=found.converged,
                repaired=found.repaired,
                relative_mse=max(0.0, error / variance) if variance > 0 else 0.0,
            )
        )
    book = PqBook(subspaces=tuple(books), mean_D=mean_D.float().cpu())
    return book, torch.stack(codes, 1), PqTrace(levels=tuple(traces))
