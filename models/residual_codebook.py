"""The books of PSRQ, residual k-means and VQ: what gives an item its codes, and codes a vector.

    id_l  = argmin_k ||X_l - c_k||^2 + alpha^2 ||(x - X_l) - c_p,k||^2      paper section 1
    X_l+1 = X_l - c_id_l,  X_1 = x
    x_hat = sum_l c_id_l

Made by `models.psrq.fit`. Without prefixes (alpha = 0) it is residual k-means; with one level, VQ.

Shape suffixes: N rows, M rows of one chunk, D dims, K codes, L levels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.centroid_scores import CentroidScores
from models.exact_products import distances
from models.nearest import NearestCentroid
from models.option_checks import is_weight
from models.rows import LARGEST, Centroids, check_rows, check_shape, chunks, parts, prefix_sum
from models.threads import each, only_each

if TYPE_CHECKING:
    from models.cuda_rows import CudaNearest

OPEN_ROWS = 1 << 15
"""Rows coded once more at a time: a copy of them is made."""


@dataclass(frozen=True, kw_only=True)
class Codebook:
    """One family's L books: all that is needed to give a new item its codes.

    `residuals[l]` (K, D) and, for PSRQ, `prefixes[l - 1]` (K, D) unscaled, for l >= 1; float32.
    ValueError where the shapes, the values or the weight do not fit each other.
    """

    residuals: tuple[Tensor, ...]
    prefixes: tuple[Tensor, ...] = ()
    prefix_weight: float = 0.0

    def __post_init__(self) -> None:
        if not self.residuals:
            raise ValueError("a codebook needs at least the tensor residual_0")
        if not is_weight(self.prefix_weight):
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

    def to(self, device: torch.device | str) -> "Codebook":
        """The same books on another device, made once; `encode` follows the rows by itself."""
        if torch.device(device) == self.residuals[0].device:
            return self
        if str(device) not in self._elsewhere:
            self._elsewhere[str(device)] = Codebook(
                residuals=tuple(book_KD.to(device) for book_KD in self.residuals),
                prefixes=tuple(book_KD.to(device) for book_KD in self.prefixes),
                prefix_weight=self.prefix_weight,
            )
        return self._elsewhere[str(device)]

    @cached_property
    def _elsewhere(self) -> dict[str, "Codebook"]:
        return {}

    @property
    def levels(self) -> int:
        return len(self.residuals)

    @property
    def dims(self) -> int:
        return self.residuals[0].shape[-1]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each level."""
        return tuple(len(book_KD) for book_KD in self.residuals)

    @property
    def method(self) -> str:
        """`psrq`, `rq_kmeans` (no prefix) or `vq` (one level)."""
        if self.levels == 1:
            return "vq"
        return "psrq" if self.prefix_weight > 0 else "rq_kmeans"

    def encode(self, x_ND: Tensor) -> Tensor:
        """Codes (N, L) int64. A row's codes depend on that row and the books alone.

        ValueError for rows of another width, or naming the first row that is not finite.
        """
        x_ND, here = self._check(x_ND), self.to(x_ND.device)
        if not x_ND.is_cuda:
            with only_each():
                return here._encode(x_ND.contiguous())
        from models.cuda_rows import encode

        return torch.cat([encode(here._cuda_searches, x_ND[part]) for part in parts(x_ND)])

    def _encode(self, x_ND: Tensor) -> Tensor:
        _ = self._searches  # made once, not once a thread
        few = chunks(x_ND, max(self.sizes))
        codes_NL = torch.cat(each(lambda part: self._propose(x_ND, part), few))
        open_O = (codes_NL < 0).any(1).nonzero()[:, 0]
        for rows_M in open_O.split(OPEN_ROWS) if len(open_O) else ():
            codes_NL[rows_M] = self._settle(x_ND.index_select(0, rows_M))
        return codes_NL

    def _propose(self, x_ND: Tensor, part: slice) -> Tensor:
        """Codes of a few rows; -1 at all levels of a row that the fast search leaves open.

        All levels at once, while the rows' bf16 copies are in cache.
        """
        x_MD = x_ND[part]
        codes_ML = torch.zeros(len(x_MD), self.levels, dtype=torch.int64)
        prepared = self._searches[0].prepared(x_MD)
        far = LARGEST - float(self._searches[0].scores.centre_D.norm())
        if not bool((prepared.norm_N <= far).all()):
            check_rows(x_ND)
        open_M = torch.zeros(len(x_MD), dtype=torch.bool)
        for level, search in enumerate(self._searches):
            code_M = search.proposed(x_MD, codes_ML[:, :level], prepared)[0]
            open_M |= code_M < 0
            codes_ML[:, level] = code_M.clamp_min(0)
        codes_ML[open_M] = -1
        return codes_ML

    def _settle(self, x_MD: Tensor) -> Tensor:
        codes_ML = torch.empty(len(x_MD), self.levels, dtype=torch.int64)
        prepared = self._searches[0].prepared(x_MD)
        for level, search in enumerate(self._searches):
            codes_ML[:, level] = search.ranked(x_MD, codes_ML[:, :level], prepared=prepared)[0]
        return codes_ML

    def decode(self, codes_NL: Tensor, levels: int | None = None) -> Tensor:
        """x_hat (N, D) = sum of the residual rows of the first `levels` codes (default: all).

        Codes beyond the books' levels are not read. ValueError for codes outside the books, or
        more levels than the books or the codes have.
        """
        levels = check_codes(codes_NL, self.sizes, levels)
        x_hat_ND = torch.zeros(len(codes_NL), self.dims, device=codes_NL.device)
        for level in range(levels):
            x_hat_ND += (
                self.residuals[level].to(codes_NL.device).index_select(0, codes_NL[:, level])
            )
        return x_hat_ND

    def last_distances(self, x_ND: Tensor, codes_NL: Tensor) -> Tensor:
        """Squared distances (N, K) float32 to every code of the last level, given the earlier ones.

        What `encode` minimises at that level, to rounding; for collisions (`models.collisions`). A
        row's distances depend on that row and the books alone.
        """
        x_ND, here = self._check(x_ND), self.to(x_ND.device)
        if not x_ND.is_cuda:
            check_rows(x_ND)
        earlier_NJ = codes_NL[:, : self.levels - 1]
        prefix_ND = torch.zeros_like(x_ND)
        if self.levels > 1:
            prefix_ND = prefix_sum(here.residuals[:-1], earlier_NJ)
        distance_NK = distances(x_ND - prefix_ND, here.residuals[-1])
        if self.prefixes:
            distance_NK += self.prefix_weight**2 * distances(prefix_ND, here.prefixes[-1])
        return distance_NK

    def _check(self, x_ND: Tensor) -> Tensor:
        x_ND = check_shape(x_ND)
        if x_ND.shape[1] != self.dims:
            raise ValueError(f"the codebook takes {self.dims} dims, got {x_ND.shape[1]}")
        return x_ND

    @cached_property
    def _searches(self) -> list[NearestCentroid]:
        """One a level, with one centre; made once, for as many calls of `encode` as come."""
        centre_D = self.residuals[0].double().mean(0).float()
        shift: bool | None = None
        searches = []
        for level, x_KD in enumerate(self.residuals):
            prefixed = level > 0 and bool(self.prefixes)
            scores = CentroidScores(
                Centroids(x_KD=x_KD, prefix_KD=self.prefixes[level - 1] if prefixed else None),
                self.residuals[:level] if prefixed else (),
                self.prefix_weight,
                centre_D=centre_D,
                shift=shift,
                subtract=self.residuals[:level],
            )
            shift = scores.shift
            searches.append(NearestCentroid(scores))
        return searches

    @cached_property
    def _cuda_searches(self) -> "list[CudaNearest]":
        from models.cuda_rows import CudaNearest

        return [CudaNearest(search.scores) for search in self._searches]

    def tensors(self) -> dict[str, Tensor]:
        """`residual_0`, `residual_1`, `prefix_1`, ...: the names in a codebook's file."""
        named = {"residual_0": self.residuals[0]}
        for level in range(1, self.levels):
            named[f"residual_{level}"] = self.residuals[level]
            if self.prefixes:
                named[f"prefix_{level}"] = self.prefixes[level - 1]
        return named

    def settings(self) -> dict[str, Any]:
        """What `from_tensors` needs besides the tensors; plain JSON."""
        return {"method": self.method, "prefix_weight": self.prefix_weight}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> "Codebook":
        """The inverse of `tensors` and `settings`; ValueError for a missing or an unknown name."""
        weight = float(settings["prefix_weight"])
        levels = sum(name.startswith("residual_") for name in tensors)
        names = [f"residual_{level}" for level in range(levels)]
        prefix_names = [f"prefix_{level}" for level in range(1, levels) if weight != 0]
        check_names(tensors, {*names, *prefix_names}, f"prefix_weight {weight:g}")
        return cls(
            residuals=tuple(tensors[name] for name in names),
            prefixes=tuple(tensors[name] for name in prefix_names),
            prefix_weight=weight,
        )


def check_names(tensors: Mapping[str, Tensor], wanted: set[str], what: str) -> None:
    """ValueError naming the tensors that a book lacks or does not know."""
    if wanted != set(tensors):
        raise ValueError(
            f"codebook tensors with {what}: "
            f"missing {sorted(wanted - set(tensors))}, unknown {sorted(set(tensors) - wanted)}"
        )


def check_codes(codes_NL: Tensor, sizes: tuple[int, ...], levels: int | None) -> int:
    """`levels`, by default all of `sizes`, where the codes have them and lie inside the books."""
    levels = len(sizes) if levels is None else levels
    if not 1 <= levels <= len(sizes) or codes_NL.ndim != 2 or codes_NL.shape[1] < levels:
        raise ValueError(
            f"{levels} levels asked of a codebook of {len(sizes)} "
            f"and codes of shape {tuple(codes_NL.shape)}"
        )
    for level in range(levels):
        code_N = codes_NL[:, level]
        if len(code_N) and not 0 <= int(code_N.min()) <= int(code_N.max()) < sizes[level]:
            raise ValueError(f"codes of level {level} must be 0 to {sizes[level] - 1}")
    return levels
