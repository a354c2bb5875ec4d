"""Training of an RQ-VAE: its net and its books together.

    z = E(x),  r_1 = z,  id_l = argmin_k ||r_l - e_l,k||^2,  r_l+1 = r_l - e_l,id_l
    x_hat = D(sum_l e_l,id_l)
    loss = ||x - x_hat||^2 + sum_l ||sg(r_l) - e_l,id_l||^2 + beta ||r_l - sg(e_l,id_l)||^2

(Lee et al. 2022, arXiv 2203.01941, section 3; for IDs of items Rajput et al. 2023, arXiv
2305.05065, section 3.1.) E and D are multilayer perceptrons with ReLU. sg stops the gradient; D's
gradient passes the quantizer straight through to z; r_l+1 is formed with sg(e), so that only its
own two terms move a code.

Choices the papers leave open: x is centred and measured in units of its root mean square norm, so
that the first term starts near 1 on any data; that is folded into the first and the last layer.
Every level's codes start from residual k-means of encoded rows. A code that no row of a whole epoch
chose is *revived*: it moves onto the residual of a row drawn from the epoch's last batch, and its
optimizer state is set to zero. Not in the last epochs (`SETTLE`).

Shape suffixes: N rows, B rows of a batch, S sampled rows, D dims, Z latent dims, O dims of a
layer's output, K codes, L levels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import linear

from models.exact_mlp import ExactMlp
from models.psrq import PsrqOptions, level_seed
from models.psrq import fit as fit_residual
from models.residual_codebook import Codebook
from models.rows import check_rows, mean_and_scatter
from models.rq_vae import RqVaeBook

INIT_ROWS_PER_CODE = 64
"""Rows for each code, drawn by the seed, from whose latents the codes start (8,192 at least)."""
SETTLE = 0.1
"""Share of the epochs, at the end, in which no code is revived: each has time to settle."""


@dataclass(frozen=True, kw_only=True)
class RqVaeOptions:
    """How one family's net and books are fitted. A bad value raises ValueError naming the field."""

    levels: int = 3
    codes: int = 128
    hidden: tuple[int, ...] = (512, 256)
    """Widths of the encoder's hidden layers; the decoder has them in reverse."""
    latent_dims: int = 32
    epochs: int = 100
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    beta: float = 0.25
    """Weight of the term that pulls the encoder to its codes."""
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"levels": 1, "codes": 1, "latent_dims": 1, "epochs": 1, "batch_size": 1, "seed": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"{name} must be an integer of at least {low}, got {value!r}")
        if not all(isinstance(width, int) and width >= 1 for width in self.hidden):
            raise ValueError(f"hidden must be integers of at least 1, got {self.hidden!r}")
        for name in ("learning_rate", "weight_decay", "beta"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a number of at least 0, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class RqVaeTrace:
    """How the fit went, by epoch: means over rows of the two parts of the loss; revivals in all."""

    reconstruction: tuple[float, ...]
    quantization: tuple[float, ...]
    revived: int


class RqVaeNet(torch.nn.Module):
    """What is trained: two perceptrons and L books of latent codes, as plain parameters."""

    def __init__(self, dims: int, options: RqVaeOptions, generator: torch.Generator) -> None:
        super().__init__()
        widths = [dims, *options.hidden, options.latent_dims]
        self.encoder = _layers(widths, generator)
        self.decoder = _layers(widths[::-1], generator)
        with torch.no_grad():  # latents of norm 1, more or less: both losses start at one scale
            self.encoder[-2] /= math.sqrt(2 * options.latent_dims)
        self.books = torch.nn.ParameterList(
            torch.zeros(options.codes, options.latent_dims) for _ in range(options.levels)
        )

    def losses(self, x_BD: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        """Per row: mean square error of x_hat (B,), quantization loss (B,); codes (B, L)."""
        z_BZ = _forward(self.encoder, x_BD)
        sum_BZ, quantization_B, codes = torch.zeros_like(z_BZ), torch.zeros_like(x_BD[:, 0]), []
        for book_KZ in self.books:
            r_BZ = z_BZ - sum_BZ
            codes.append(torch.cdist(r_BZ.detach(), book_KZ.detach()).argmin(1))
            e_BZ = book_KZ[codes[-1]]
            # ||sg(r) - e||^2 + beta ||r - sg(e)||^2
            pull_code_B = (r_BZ.detach() - e_BZ).square().sum(1)
            pull_latent_B = (r_BZ - e_BZ.detach()).square().sum(1)
            quantization_B = quantization_B + pull_code_B + beta * pull_latent_B
            sum_BZ = sum_BZ + e_BZ.detach()
        straight_BZ = z_BZ + (sum_BZ - z_BZ).detach()
        x_hat_BD = _forward(self.decoder, straight_BZ)
        return (x_BD - x_hat_BD).square().mean(1), quantization_B, torch.stack(codes, 1)


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


def fit(
    x_ND: Tensor, options: RqVaeOptions, *, device: torch.device | None = None
) -> tuple[RqVaeBook, Tensor, RqVaeTrace]:
    """Book, the rows' codes (N, L) int64, equal to `book.encode(x_ND)`, and how it went.

    `device`: where the net is trained, by default where the rows are. On the CPU the same seed
    gives the same book. ValueError naming the first row that is not finite.
    """
    x_ND = check_rows(x_ND)
    device = device or x_ND.device
    mean_D, scatter = mean_and_scatter(x_ND)
    mean_D, scale = mean_D.float(), math.sqrt(scatter / x_ND.numel()) or 1.0
    generator = torch.Generator().manual_seed(level_seed(options.seed, options.levels))
    net = RqVaeNet(x_ND.shape[1], options, generator).to(device)

    def batch(rows_B: Tensor) -> Tensor:
        return ((x_ND[rows_B] - mean_D) / scale).to(device)

    _start_books(net, batch, len(x_ND), options, generator)
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
    )
    reconstruction, quantization, revived = [], [], 0
    for epoch in range(options.epochs):
        totals = torch.zeros(2, dtype=torch.float64)
        counts_LK = torch.zeros(options.levels, options.codes, dtype=torch.int64)
        for rows_B in torch.randperm(len(x_ND), generator=generator).split(options.batch_size):
            x_BD = batch(rows_B)
            error_B, quantization_B, codes_BL = net.losses(x_BD, options.beta)
            optimizer.zero_grad()
            (error_B.mean() + quantization_B.mean()).backward()
            optimizer.step()
            totals += torch.stack([error_B.detach().sum(), quantization_B.detach().sum()]).cpu()
            for level, code_B in enumerate(codes_BL.cpu().unbind(1)):
                counts_LK[level] += torch.bincount(code_B, minlength=options.codes)
        reconstruction.append(float(totals[0]) / len(x_ND))
        quantization.append(float(totals[1]) / len(x_ND))
        if epoch < math.floor((1 - SETTLE) * options.epochs):
            revived += _revive(net, optimizer, x_BD, counts_LK, generator)
    book = _book(net.cpu(), mean_D, scale)
    trace = RqVaeTrace(
        reconstruction=tuple(reconstruction), quantization=tuple(quantization), revived=revived
    )
    return book, book.encode(x_ND), trace


@torch.no_grad()
def _start_books(
    net: RqVaeNet,
    batch: Callable[[Tensor], Tensor],
    rows: int,
    options: RqVaeOptions,
    generator: torch.Generator,
) -> None:
    """Residual k-means of the latents of sampled rows."""
    limit = max(8_192, options.codes * INIT_ROWS_PER_CODE)
    rows_S = torch.randperm(rows, generator=generator)[:limit]
    z_SZ = torch.cat([_forward(net.encoder, batch(rows_B)).cpu() for rows_B in rows_S.split(1024)])
    start = PsrqOptions(
        levels=options.levels, codes=options.codes, prefix_weight=0.0, seed=options.seed
    )
    for book_KZ, found_KZ in zip(net.books, fit_residual(z_SZ, start)[0].residuals, strict=True):
        book_KZ.copy_(found_KZ)


@torch.no_grad()
def _revive(
    net: RqVaeNet,
    optimizer: torch.optim.Optimizer,
    x_BD: Tensor,
    counts_LK: Tensor,
    generator: torch.Generator,
) -> int:
    """Moves each code that was not chosen onto the residual of a drawn row; returns how many."""
    r_BZ = _forward(net.encoder, x_BD)
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
def _book(net: RqVaeNet, mean_D: Tensor, scale: float) -> RqVaeBook:
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
    return RqVaeBook(encoder=mlps[0], latent=latent, decoder=mlps[1])
