"""Embedding collapse: how many dims a table of embeddings really spreads over.

    spectrum(table_ND).effective_rank

The singular values of the table as it is, not centred: a table whose rows share one large direction
has collapsed onto it, whether or not that direction is their mean (MME-SID, paper section 3). One
spectrum, three readings, for sigma_1 >= ... >= sigma_D and shares p_i = sigma_i / sum sigma:

    effective rank  exp(-sum_i p_i ln p_i)              Roy & Vetterli 2007 (EUSIPCO)
    stable rank     sum_i sigma_i^2 / sigma_1^2         Rudelson & Vershynin 2007
    collapsed       share of i with sigma_i <= COLLAPSED sigma_1

Shape suffixes: N rows, C rows of a chunk, D dims.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

COLLAPSED = 1e-3
"""A singular value this far below the largest carries nothing that training could use."""
CHUNK_VALUES = 1 << 24
"""Values in float64 at once: 128 MB."""


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Singular values of a table, largest first, and what they say of it."""

    singular_values_D: np.ndarray
    """float64; as many as the table has columns."""
    rows: int

    @property
    def shares_D(self) -> np.ndarray:
        """p_i, sum 1; zeros where the table is zero."""
        total = self.singular_values_D.sum()
        return self.singular_values_D / total if total else self.singular_values_D

    @property
    def effective_rank(self) -> float:
        """1 (one direction) to D (all alike); 0 for a table of zeros."""
        p = self.shares_D[self.shares_D > 0]
        # exp(H(p)), H = -sum p ln p
        return float(np.exp(-(p * np.log(p)).sum())) if len(p) else 0.0

    @property
    def stable_rank(self) -> float:
        """At most the rank; less moved by many small values than the effective rank."""
        largest = self.singular_values_D[0]
        return float(((self.singular_values_D / largest) ** 2).sum()) if largest else 0.0

    @property
    def collapsed_share(self) -> float:
        """Share of the dims with a singular value of at most COLLAPSED times the largest."""
        found = self.singular_values_D
        return float((found <= COLLAPSED * found[0]).mean())

    def plain(self) -> dict[str, Any]:
        """For JSON, without the values themselves."""
        return {
            "rows": self.rows,
            "dims": len(self.singular_values_D),
            "effective_rank": self.effective_rank,
            "stable_rank": self.stable_rank,
            "collapsed_share": self.collapsed_share,
        }


@torch.no_grad()
def spectrum(table_ND: Tensor) -> Spectrum:
    """The spectrum of a table (N, D), N and D at least 1, computed where the table is.

    From the eigenvalues of A^T A in float64, read in chunks of rows: N D^2 multiplications and
    D^2 values, where an SVD of the table itself would copy it whole. It costs the small end its
    digits: below about 1e-8 sigma_1 a value is noise, which no reading above can tell from 0.
    ValueError for another shape, or naming the first row that is not finite.
    """
    if table_ND.ndim != 2 or 0 in table_ND.shape:
        raise ValueError(
            f"a table must be (rows, dims) with at least one of each, got {tuple(table_ND.shape)}"
        )
    finite_N = torch.isfinite(table_ND).all(1)
    if not finite_N.all():
        raise ValueError(
            f"row {int((~finite_N).nonzero()[0])} of the table holds a value that is not finite"
        )
    rows, dims = table_ND.shape
    # In units of the largest value: squares of large float32 values would lose the small ones.
    scale = table_ND.abs().max().double()
    if not scale:
        return Spectrum(singular_values_D=np.zeros(dims), rows=rows)
    gram_DD = torch.zeros(dims, dims, dtype=torch.float64, device=table_ND.device)
    for part_CD in table_ND.split(max(1, CHUNK_VALUES // dims)):
        scaled_CD = part_CD.double() / scale
        gram_DD += scaled_CD.T @ scaled_CD
    # sigma_i^2 are the eigenvalues of A^T A; rounding can leave a zero one slightly negative.
    squared_D = torch.linalg.eigvalsh(gram_DD).clamp(min=0).flip(0)
    return Spectrum(singular_values_D=(squared_D.sqrt() * scale).cpu().numpy(), rows=rows)
