"""What the training of an RQ-VAE moves: two perceptrons and L books of latent codes.

    z = E(x),  r_1 = z,  id_l = argmin_k ||r_l - e_l,k||^2,  r_l+1 = r_l - e_l,id_l
    x_hat = D(sum_l e_l,id_l)
    level loss = sum_l ||sg(r_l) - e_l,id_l||^2 + beta ||r_l - sg(e_l,id_l)||^2

(Lee et al. 2022, arXiv 2203.01941, section 3.) E and D are multilayer perceptrons with ReLU. sg
stops the gradient; D's gradient passes the quantizer straight through to z; r_l+1 is formed with
sg(e), so that only its own two terms move a code. Trained alone by `models.rq_vae_training`, one
for each modality by `models.mm_rq_vae_training`.

Codes start from residual k-means of encoded rows. A code that no row of a whole epoch chose is
*revived*: it moves onto the residual of a row drawn from the epoch's last batch, and its optimizer
state is set to zero.

Shape suffixes: N rows, B rows of a batch, S sampled rows, D dims, Z latent dims, O dims of a
layer's output, K codes, L levels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

from models.exact_mlp import ExactMlp
from models.option_checks import check_integers, check_weights
from models.psrq import PsrqOptions
from models.psrq import fit as fit_residual
from models.residual_codebook import Codebook
from models.rq_vae import RqVaeBook

INIT_ROWS_PER_CODE = 64
"""Rows for each code, drawn by the seed, from whose latents the codes start (8,192 at least)."""
SETTLE = 0.1
"""Share of the epochs, at the end, in which no code is revived: each has time to settle."""

Choice = Callable[[Tensor], Tensor]
"""Codes (B,) from squared distances (B, K)."""


class NetOptions(Protocol):
    """What the net and its books need of a training's options."""

    @property
    def levels(self) -> int: ...

    @property
    def codes(self) -> int: ...

    @property
    def hidden(self) -> tuple[int, ...]: ...

    @property
    def latent_dims(self) -> int: ...

    @property
    def seed(self) -> int: ...


def check_options(options: NetOptions, integers: Mapping[str, int], numbers: Sequence[str]) -> None:
    """ValueError naming the field: `integers` with their least values, `numbers` of at least 0."""
    check_integers(options, integers)
    if not all(isinstance(width, int) and width >= 1 for width in options.hidden):
        raise ValueError(f"hidden must be integers of at least 1, got {options.hidden!r}")
    check_weights(options, numbers)


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What the books make of latent vectors (B, Z)."""

    codes_BL: Tensor
    sum_BZ: Tensor
    """sum_l e_l,id_l; its gradient goes to the books."""
    straight_BZ: Tensor
    """The same values; the gradient goes to z as it is."""
    loss_B: Tensor


class RqVaeNet(torch.nn.Module):
    """Two perceptrons and L books of latent codes, as plain parameters."""

    def __init__(self, dims: int, options: NetOptions, generator: torch.Generator) -> None:
        super().__init__()
        widths = [dims, *options.hidden, options.latent_dims]
        self.encoder = _layers(widths, generator)
        self.decoder = _layers(widths[::-1], generator)
        with torch.no_grad():  # latents of norm 1, more or less: both losses start at one scale
            self.encoder[-2] /= math.sqrt(2 * options.latent_dims)
        self.books = torch.nn.ParameterList(
            torch.zeros(options.codes, options.latent_dims) for _ in range(options.levels)
        )

    def encode(self, x_BD: Tensor) -> Tensor:
        return _forward(self.encoder, x_BD)

    def decode(self, z_BZ: Tensor) -> Tensor:
        return _forward(self.decoder, z_BZ)

    def quantize(self, z_BZ: Tensor, beta: float, *, last: Choice | None = None) -> Quantized:
        """Codes, their sum and the level loss a row; `last` chooses instead of the nearest code."""
        sum_BZ, loss_B, codes = torch.zeros_like(z_BZ), torch.zeros_like(z_BZ[:, 0]), []
        for level, book_KZ in enumerate(self.books):
            r_BZ = z_BZ - sum_BZ.detach()
            distance_BK = torch.cdist(r_BZ.detach(), book_KZ.detach())
            if last is not None and level == len(self.books) - 1:
                codes.append(last(distance_BK.square()))
            else:
                codes.append(distance_BK.argmin(1))
            e_BZ = book_KZ[codes[-1]]
            # ||sg(r) - e||^2 + beta ||r - sg(e)||^2
            pull_code_B = (r_BZ.detach() - e_BZ).square().sum(1)
            pull_latent_B = (r_BZ - e_BZ.detach()).square().sum(1)
            loss_B = loss_B + pull_code_B + beta * pull_latent_B
            sum_BZ = sum_BZ + e_BZ
        return Quantized(
            codes_BL=torch.stack(codes, 1),
            sum_BZ=sum_BZ,
            straight_BZ=z_BZ + (sum_BZ - z_BZ).detach(),
            loss_B=loss_B,
        )


def _layers(widths: list[int], generator: torch.Generator) -> torch.nn.ParameterList:
    """Weight (O, D), bias (O,) of each layer: He et al.'s uniform start, zero biases."""
    tensors = []
    for dims, out in pairwise(widths):
        bound = math.sqrt(6 / dims)
        tensors += [(torch.rand(out, dims, generator=generator) * 2 - 1) * bound, torch.zeros(out)]
    return torch.nn.ParameterList(tensors)


def _forward(layers: torch.nn.ParameterList, x_BD: Tensor) -> Tensor:
    for index in range(0, len(layers), 2):
        x_BD = linear(x_BD.relu() if index else x_BD, layers[index], layers[index + 1])
    return x_BD


@torch.no_grad()
def start_books(
    net: RqVaeNet,
    batch: Callable[[Tensor], Tensor],
    rows: int,
    options: NetOptions,
    generator: torch.Generator,
    *,
    balance: float | None = None,
) -> None:
    """Residual k-means of the latents of sampled rows, balanced if asked (`models.balance`).

    `batch` gives the rows, as the encoder takes them, of the numbers 0 to `rows` - 1.
    """
    limit = max(8_192, options.codes * INIT_ROWS_PER_CODE)
    rows_S = torch.randperm(rows, generator=generator)[:limit]
    z_SZ = torch.cat([net.encode(batch(rows_B)).cpu() for rows_B in rows_S.split(1024)])
    start = PsrqOptions(
        levels=options.levels,
        codes=options.codes,
        prefix_weight=0.0,
        balance=balance,
        seed=options.seed,
    )
    for book_KZ, found_KZ in zip(net.books, fit_residual(z_SZ, start)[0].residuals, strict=True):
        book_KZ.copy_(found_KZ)


@torch.no_grad()
def revive(
    net: RqVaeNet,
    optimizer: torch.optim.Optimizer,
    x_BD: Tensor,
    counts_LK: Tensor,
    generator: torch.Generator,
) -> int:
    """Moves each code that was not chosen onto the residual of a drawn row; returns how many."""
    r_BZ = net.encode(x_BD)
    revived = 0
    for book_KZ, count_K in zip(net.books, counts_LK, strict=True):
        code_B = torch.cdist(r_BZ, book_KZ).argmin(1)
        left_BZ = r_BZ - book_KZ[code_B]
        dead = (count_K == 0).nonzero()[:, 0]
        # No more codes than rows to draw, so that none of them are equal; the rest have their turn.
        rows = torch.randperm(len(x_BD), generator=generator)[: len(dead)]
        dead = dead[: len(rows)].to(book_KZ.device)
        book_KZ[dead] = r_BZ[rows.to(book_KZ.device)]
        for name in ("exp_avg", "exp_avg_sq"):
            optimizer.state[book_KZ][name][dead] = 0
        revived += len(dead)
        r_BZ = left_BZ
    return revived


@torch.no_grad()
def book_of(net: RqVaeNet, mean_D: Tensor, scale: float, method: str) -> RqVaeBook:
    """The trained net on unscaled rows: E((x - m) / s) and s D(z) + m as plain layers."""
    encoder = [tensor.double().clone() for tensor in net.encoder]
    decoder = [tensor.double().clone() for tensor in net.decoder]
    encoder[0] /= scale
    encoder[1] -= encoder[0] @ mean_D.double()
    decoder[-2] *= scale
    decoder[-1] = decoder[-1] * scale + mean_D.double()
    mlps = [
        ExactMlp(
            weights=tuple(tensor.float() for tensor in layers[::2]),
            biases=tuple(tensor.float() for tensor in layers[1::2]),
        )
        for layers in (encoder, decoder)
    ]
    latent = Codebook(residuals=tuple(book_KZ.detach().clone() for book_KZ in net.books))
    return RqVaeBook(encoder=mlps[0], latent=latent, decoder=mlps[1], method=method)
