"""Every quantizer of the paper's comparison behind one interface: fit, encode, decode, save, load.

    method      codes of an item                                    module
    psrq        residual k-means that sees its prefix (PSRQ)        models.psrq
    rq_kmeans   residual k-means: psrq with prefix weight 0         models.psrq
    vq          one k-means: the first level of either              models.psrq
    pq          one k-means for each slice of the dims              models.pq
    rq_vae      residual k-means of a learned latent vector         models.rq_vae
    mm_rq_vae   the same, all modalities trained together           models.mm_rq_vae

Shape suffixes: N rows, D dims, K codes of the last level, L levels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from models import mm_rq_vae_training, pq, psrq, rq_vae_training
from models.mm_rq_vae import COLLABORATIVE, MmRqVaeOptions
from models.mm_rq_vae_training import MmRqVaeTrace
from models.pq import PqBook, PqOptions, PqTrace
from models.psrq import FitTrace, PsrqOptions
from models.residual_codebook import Codebook
from models.rq_vae import RqVaeBook
from models.rq_vae_training import RqVaeOptions, RqVaeTrace

QuantizerOptions = PsrqOptions | PqOptions | RqVaeOptions | MmRqVaeOptions
Trace = FitTrace | PqTrace | RqVaeTrace | MmRqVaeTrace


class Quantizer(Protocol):
    """A fitted book: all that is needed to give a new item its codes."""

    @property
    def method(self) -> str: ...

    @property
    def levels(self) -> int: ...

    @property
    def dims(self) -> int: ...

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each level."""

    def encode(self, x_ND: Tensor) -> Tensor:
        """Codes (N, L) int64. A row's codes depend on that row and the book alone.

        ValueError for rows of another width, or naming the first row that is not finite.
        """

    def decode(self, codes_NL: Tensor, levels: int | None = None) -> Tensor:
        """x_hat (N, D) float32 from the first `levels` codes (default: all).

        Codes beyond the book's levels are not read. ValueError for codes outside the book, or more
        levels than book or codes have.
        """

    def last_distances(self, x_ND: Tensor, codes_NL: Tensor) -> Tensor:
        """Squared distances (N, K) to every code of the last level, given the earlier codes."""

    def tensors(self) -> dict[str, Tensor]:
        """What a codebook's file holds; the names are in the book's module."""

    def settings(self) -> dict[str, Any]:
        """`method`, and what else `load_quantizer` needs beside the tensors; plain JSON."""


BOOKS: dict[str, type[Codebook] | type[PqBook] | type[RqVaeBook]] = {
    "psrq": Codebook,
    "rq_kmeans": Codebook,
    "vq": Codebook,
    "pq": PqBook,
    "rq_vae": RqVaeBook,
    "mm_rq_vae": RqVaeBook,
}
METHODS = tuple(BOOKS)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A fitted book and the codes (N, L) of the rows it was fitted on.

    The codes are `book.encode` of those rows, unless the fit was balanced (`models.balance`).
    """

    book: Quantizer
    codes_NL: Tensor
    trace: Trace


def fit_quantizer(
    x_ND: Tensor,
    options: QuantizerOptions,
    *,
    start: Quantizer | None = None,
    device: torch.device | None = None,
) -> Fitted:
    """Fits the quantizer whose options these are.

    An MM-RQ-VAE is fitted as if these rows were its only modality; with several, use
    `models.mm_rq_vae_training.fit`.

    `start`: books of the same method and shape from which the fit goes on; not for RQ-VAEs.
    `device`: where the work is done, by default where the rows are. ValueError naming the first bad
    row, or for a `start` of another kind or shape.
    """
    book: Quantizer
    trace: Trace
    if isinstance(options, PqOptions) and isinstance(start, PqBook | None):
        book, codes_NL, trace = pq.fit(x_ND, options, start=start, device=device)
    elif isinstance(options, RqVaeOptions) and start is None:
        book, codes_NL, trace = rq_vae_training.fit(x_ND, options, device=device)
    elif isinstance(options, MmRqVaeOptions) and start is None:
        alone = {options.anchor or COLLABORATIVE: x_ND}
        ((book, trace),) = mm_rq_vae_training.fit(alone, options, device=device).values()
        codes_NL = book.encode(x_ND)
    elif isinstance(options, PsrqOptions) and isinstance(start, Codebook | None):
        book, codes_NL, trace = psrq.fit(x_ND, options, start=start, device=device)
    else:
        kind = type(options).__name__
        raise ValueError(f"a fit with {kind} cannot start from a {type(start).__name__}")
    return Fitted(book=book, codes_NL=codes_NL, trace=trace)


def load_quantizer(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Quantizer:
    """The inverse of `tensors()` and `settings()`; ValueError where they do not fit each other."""
    method = settings.get("method")
    if method not in BOOKS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    return BOOKS[method].from_tensors(tensors, settings)
