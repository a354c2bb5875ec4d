"""Rows to be clustered, their prefix, and centroids; what is checked, and how rows are chunked.

The first half of a point is x; the second half p, the *prefix* of PSRQ (paper section 1), is a sum
of one row from each earlier codebook: `Prefix` holds codes and books, never the rows.

Shape suffixes: N rows, M rows of one chunk, D dims, K codes, J earlier levels.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from models.threads import each

LARGEST = 1e15
"""Largest magnitude accepted: beyond it squares of float32 overflow."""
CHUNK_ELEMENTS = 1 << 21
"""Values held at once by a chunked step: 8 MB of float32, so that a chunk stays in cache."""
SMALL_ELEMENTS = 1 << 17
EPS = 2.0**-23


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """The second half of every point: alpha * p with p = sum_j books[j][codes_NJ[:, j]].

    `codes_NJ` int64, `books` J tensors (K_j, D) float32, `weight` alpha > 0.
    """

    codes_NJ: Tensor
    books: tuple[Tensor, ...]
    weight: float

    def rows(self, index: Tensor | slice) -> Tensor:
        """Unscaled p of a few rows, (M, D)."""
        return prefix_sum(self.books, self.codes_NJ[index])


@dataclass(frozen=True, kw_only=True)
class Centroids:
    """`x_KD` centroids of the data half, `prefix_KD` unscaled centroids of the prefix half."""

    x_KD: Tensor
    prefix_KD: Tensor | None = None


def check_shape(x_ND: Tensor) -> Tensor:
    """`x_ND` as float32; ValueError where it is not (N, D) with at least one of each."""
    if x_ND.ndim != 2 or x_ND.shape[0] == 0 or x_ND.shape[1] == 0:
        raise ValueError(
            f"vectors must be (rows, dims) with at least one of each, got {tuple(x_ND.shape)}"
        )
    return x_ND.to(torch.float32)


def check_rows(x_ND: Tensor) -> Tensor:
    """`x_ND` as float32 (N, D); ValueError naming the first row that cannot be clustered."""
    x_ND = check_shape(x_ND)
    norm_N = torch.cat(each(lambda part: torch.linalg.vector_norm(x_ND[part], dim=1), chunks(x_ND)))
    if (norm_N <= LARGEST).all():  # no value is larger than its row's norm
        return x_ND
    bad_N = ~(torch.linalg.vector_norm(x_ND, torch.inf, dim=1) <= LARGEST)  # NaN too
    if bad_N.any():
        first, count = int(bad_N.nonzero()[0]), int(bad_N.sum())
        raise ValueError(
            f"row {first} holds a value that is not finite or beyond {LARGEST:g}; "
            f"{count} of {len(bad_N)} rows do"
        )
    return x_ND


def chunks(x_ND: Tensor, width: int = 0) -> Iterator[slice]:
    """Row slices of at most CHUNK_ELEMENTS values, counting `width` more values a row.

    On a CUDA device 32 times as many: few launches matter there, not a cache.
    """
    size = max(256, min(8192, CHUNK_ELEMENTS // max(1, x_ND.shape[1] + width)))
    size *= 32 if x_ND.is_cuda else 1
    for start in range(0, len(x_ND), size):
        yield slice(start, min(start + size, len(x_ND)))


def small_chunks(x_ND: Tensor) -> Iterator[slice]:
    """Row slices whose float64 copies stay in a core's own cache."""
    size = max(16, SMALL_ELEMENTS // x_ND.shape[1]) * (256 if x_ND.is_cuda else 1)
    for start in range(0, len(x_ND), size):
        yield slice(start, min(start + size, len(x_ND)))


def parts(x_ND: Tensor) -> Iterator[slice]:
    """Row slices to search one after another: of 128 MB on the CPU, enough for all its threads, and
    of 4 GB on a CUDA device."""
    size = max(1, (1 << 30 if x_ND.is_cuda else 1 << 25) // x_ND.shape[1])
    for start in range(0, len(x_ND), size):
        yield slice(start, min(start + size, len(x_ND)))


def mean_and_scatter(x_ND: Tensor) -> tuple[Tensor, float]:
    """The mean (D,) and sum ||x - mean||^2, in float64."""
    mean_D = torch.stack([x_ND[part].double().sum(0) for part in chunks(x_ND)]).sum(0) / len(x_ND)
    return mean_D, sum(
        float((x_ND[part].double() - mean_D).square().sum()) for part in chunks(x_ND)
    )


def prefix_sum(books: tuple[Tensor, ...], codes_MJ: Tensor) -> Tensor:
    """p = X - X_l = sum of the codebook rows already subtracted (paper section 1), (M, D)."""
    p_MD = books[0].index_select(0, codes_MJ[:, 0])
    for j in range(1, codes_MJ.shape[1]):
        p_MD = p_MD + books[j].index_select(0, codes_MJ[:, j])
    return p_MD
