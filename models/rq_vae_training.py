"""Training of an RQ-VAE: its net and its books together (`models.rq_vae_net`).

    loss = ||x - x_hat||^2 + sum_l ||sg(r_l) - e_l,id_l||^2 + beta ||r_l - sg(e_l,id_l)||^2

(Lee et al. 2022, arXiv 2203.01941, section 3; for IDs of items Rajput et al. 2023, arXiv
2305.05065, section 3.1.)

Choices the papers leave open: x is centred and measured in units of its root mean square norm, so
that the first term starts near 1 on any data; that is folded into the first and the last layer.
Codes start from residual k-means and are revived, but not in the last epochs (`SETTLE`).

Shape suffixes: N rows, B rows of a batch, D dims, K codes, L levels.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.psrq import level_seed
from models.rows import check_rows, mean_and_scatter
from models.rq_vae import RqVaeBook
from models.rq_vae_net import SETTLE, RqVaeNet, book_of, check_options, revive, start_books


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
        check_options(self, least, ("learning_rate", "weight_decay", "beta"))


@dataclass(frozen=True, kw_only=True)
class RqVaeTrace:
    """How the fit went, by epoch: means over rows of the two parts of the loss; revivals in all."""

    reconstruction: tuple[float, ...]
    quantization: tuple[float, ...]
    revived: int


def losses(net: RqVaeNet, x_BD: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Per row: mean square error of x_hat (B,), quantization loss (B,); codes (B, L)."""
    found = net.quantize(net.encode(x_BD), beta)
    x_hat_BD = net.decode(found.straight_BZ)
    return (x_BD - x_hat_BD).square().mean(1), found.loss_B, found.codes_BL


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

    start_books(net, batch, len(x_ND), options, generator)
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
    )
    reconstruction, quantization, revived = [], [], 0
    for epoch in range(options.epochs):
        totals = torch.zeros(2, dtype=torch.float64)
        counts_LK = torch.zeros(options.levels, options.codes, dtype=torch.int64)
        for rows_B in torch.randperm(len(x_ND), generator=generator).split(options.batch_size):
            x_BD = batch(rows_B)
            error_B, quantization_B, codes_BL = losses(net, x_BD, options.beta)
            optimizer.zero_grad()
            (error_B.mean() + quantization_B.mean()).backward()
            optimizer.step()
            totals += torch.stack([error_B.detach().sum(), quantization_B.detach().sum()]).cpu()
            for level, code_B in enumerate(codes_BL.cpu().unbind(1)):
                counts_LK[level] += torch.bincount(code_B, minlength=options.codes)
        reconstruction.append(float(totals[0]) / len(x_ND))
        quantization.append(float(totals[1]) / len(x_ND))
        if epoch < math.floor((1 - SETTLE) * options.epochs):
            revived += revive(net, optimizer, x_BD, counts_LK, generator)
    book = book_of(net.cpu(), mean_D, scale, "rq_vae")
    trace = RqVaeTrace(
        reconstruction=tuple(reconstruction), quantization=tuple(quantization), revived=revived
    )
    return book, book.encode(x_ND), trace
