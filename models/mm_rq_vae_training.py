"""Training of an MM-RQ-VAE: the nets and books of all modalities together (`models.mm_rq_vae`).

    from models.mm_rq_vae_training import MmRqVaeOptions, fit

    fits = fit({"collaborative": x_ND, "text": y_ND}, MmRqVaeOptions())
    book, trace = fits["text"]
    codes_NL = book.encode(y_ND)

AdamW, batches of 1,024 (paper section 3). As in `models.rq_vae_training`, each modality's vectors
are centred and measured in units of their root mean square, which is folded into the outer layers,
and dead codes are revived. Books start from residual k-means whose clusters are balanced
(`models.balance`).

The books that come out give a row the nearest code of every level. Sinkhorn's codes are of the
training alone: the IDs that are published are `book.encode` of the fitted rows too, so that they
follow from the vector and the book, as those of later items do.

Workers: every one holds all rows and takes its share of each batch; gradients are added up, each
term in proportion to its rows. So level losses and the mean square error are those of one worker,
to rounding. MMD, InfoNCE and Sinkhorn see the worker's share of the batch instead of all of it: the
same with one worker, noisier with many (give a larger batch).

Shape suffixes: N items, B rows of a batch, M rows that have a modality, D dims of a modality, L
levels, K codes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from models.mm_rq_vae import Batch, Key, MmRqVaeNet, MmRqVaeOptions
from models.psrq import level_seed
from models.rows import check_rows, chunks, mean_and_scatter
from models.rq_vae import RqVaeBook
from models.rq_vae_net import SETTLE, book_of, revive, start_books
from models.shards import Shards

START_BALANCE = 1.2
"""Largest share of a code over the even share, in the k-means that books start from."""


@dataclass(frozen=True, kw_only=True)
class MmRqVaeTrace:
    """How one modality's fit went, by epoch: means over rows of its terms; revivals in all.

    `alignment` is with the anchor: None of the anchor, and where nothing is aligned.
    """

    reconstruction: tuple[float, ...]
    quantization: tuple[float, ...]
    alignment: tuple[float, ...] | None
    revived: int


def fit(
    x: Mapping[str, Tensor],
    options: MmRqVaeOptions,
    *,
    device: torch.device | None = None,
    group: dist.ProcessGroup | None = None,
) -> dict[str, tuple[RqVaeBook, MmRqVaeTrace]]:
    """By modality its book, on the CPU, and how it went.

    `x`: by modality (N, D), the same items in the same rows; a row of zeros lacks the modality.
    `device`: where the nets are trained, by default where the rows are. On the CPU the same seed
    gives the same books. `group`: workers, which hold all rows each; all get the same books.
    ValueError for rows that no fit takes, naming the modality; for an anchor that is not there; and
    where no item has both the anchor and a modality to be aligned.
    """
    rows = _Rows(x, device)
    generator = torch.Generator().manual_seed(level_seed(options.seed, options.levels))
    net = MmRqVaeNet(rows.dims, options, generator)
    _check_pairs(net, rows.present)
    net = net.to(rows.device)
    workers = Shards(1, group)  # a row a worker: `first` is the number of this one
    balance = START_BALANCE if options.balanced_start else None
    for name in net.modalities:
        numbers = rows.present[name].nonzero()[:, 0]

        def batch(rows_M: Tensor, name: str = name, numbers: Tensor = numbers) -> Tensor:
            return rows.of(name, numbers[rows_M])

        start_books(net.stack(name), batch, len(numbers), options, generator, balance=balance)
    _agree(net, workers)
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
    )
    curves: dict[Key, list[float]] = {key: [] for key in net.rows(rows.present)}
    revived = dict.fromkeys(net.modalities, 0)
    for epoch in range(options.epochs):
        totals, counts, last_B = _epoch(net, optimizer, rows, workers, generator)
        for key, total in totals.items():
            curves[key].append(total)
        if options.revival and epoch < math.floor((1 - SETTLE) * options.epochs):
            whole = rows.batch(last_B)
            for name, counts_LK in counts.items():
                revived[name] += revive(
                    net.stack(name), optimizer, whole.x[name], counts_LK, generator
                )
            _agree(net, workers)
    net = net.cpu()
    return {
        name: (
            book_of(net.stack(name), rows.means[name], rows.scales[name], "mm_rq_vae"),
            MmRqVaeTrace(
                reconstruction=tuple(curves.get(("reconstruction", name), ())),
                quantization=tuple(curves["quantization", name]),
                alignment=tuple(curves["alignment", name])
                if ("alignment", name) in curves
                else None,
                revived=revived[name],
            ),
        )
        for name in net.modalities
    }


class _Rows:
    """The rows of all modalities, in units of their spread, on the device batch by batch."""

    def __init__(self, x: Mapping[str, Tensor], device: torch.device | None) -> None:
        counts = {name: len(x_ND) for name, x_ND in x.items()}
        if len(set(counts.values())) != 1:
            raise ValueError(f"modalities must have one row an item each, got rows {counts}")
        self.count = next(iter(counts.values()))
        self.x: dict[str, Tensor] = {}
        self.present: dict[str, Tensor] = {}
        self.means: dict[str, Tensor] = {}
        self.scales: dict[str, float] = {}
        for name, x_ND in x.items():
            try:
                x_ND = check_rows(x_ND)
            except ValueError as error:
                raise ValueError(f"modality {name}: {error}") from error
            present_N = torch.cat([(x_ND[part] != 0).any(1) for part in chunks(x_ND)])
            if not present_N.any():
                raise ValueError(f"modality {name}: every row is zeros, which stand for no vector")
            there_MD = x_ND if present_N.all() else x_ND[present_N]
            mean_D, scatter = mean_and_scatter(there_MD)
            self.x[name], self.present[name] = x_ND, present_N.cpu()
            self.means[name] = mean_D.float().cpu()
            self.scales[name] = math.sqrt(scatter / there_MD.numel()) or 1.0
        self.device = device or next(iter(self.x.values())).device

    @property
    def dims(self) -> dict[str, int]:
        return {name: x_ND.shape[1] for name, x_ND in self.x.items()}

    def of(self, name: str, rows_M: Tensor) -> Tensor:
        x_ND = self.x[name]
        x_MD = x_ND[rows_M.to(x_ND.device)].to(self.device)
        return (x_MD - self.means[name].to(self.device)) / self.scales[name]

    def batch(self, rows_B: Tensor) -> Batch:
        present = {name: there_N[rows_B] for name, there_N in self.present.items()}
        x = {name: self.of(name, rows_B[there_B]) for name, there_B in present.items()}
        return Batch(x=x, present=present)


def _check_pairs(net: MmRqVaeNet, present: Mapping[str, Tensor]) -> None:
    together = net.rows(present)
    for name in net.modalities:
        if name != net.anchor and net.weights["alignment"] and ("alignment", name) not in together:
            raise ValueError(
                f"alignment={net.options.alignment} needs items that have both {net.anchor} and "
                f"{name}, got none; give alignment none or another anchor"
            )


def _epoch(
    net: MmRqVaeNet,
    optimizer: torch.optim.Optimizer,
    rows: _Rows,
    workers: Shards,
    generator: torch.Generator,
) -> tuple[dict[Key, float], dict[str, Tensor], Tensor]:
    """Means of the terms, how often each code was chosen (L, K), and the last batch's items."""
    options = net.options
    whole = net.rows(rows.present)
    # On the device until the epoch ends: every step that reads a number of it waits for it.
    totals = {key: torch.zeros((), dtype=torch.float64, device=rows.device) for key in whole}
    counts = {
        name: torch.zeros(options.levels, options.codes, dtype=torch.int64, device=rows.device)
        for name in net.modalities
    }
    # Batches of equal size: MMD of a few rows at the end would say little.
    order_N = torch.randperm(rows.count, generator=generator)
    for rows_B in order_N.tensor_split(math.ceil(rows.count / options.batch_size)):
        of_all = net.rows({name: there_N[rows_B] for name, there_N in rows.present.items()})
        batch = rows.batch(rows_B.tensor_split(workers.total)[workers.first])
        of_mine = net.rows(batch.present)
        values, codes = net.losses(batch)
        optimizer.zero_grad()
        if values:
            shares = {key: of_mine[key] / of_all[key] for key in values}
            torch.stack(
                [net.weights[key[0]] * shares[key] * value for key, value in values.items()]
            ).sum().backward()
        _add_gradients(net, workers)
        optimizer.step()
        for key, value in values.items():
            totals[key] += of_mine[key] * value.detach().double()
        for name, codes_ML in codes.items():
            counts[name].scatter_add_(1, codes_ML.T, torch.ones_like(codes_ML.T))
    summed = workers.sum(torch.stack(list(totals.values())).cpu())
    means = {key: float(total) / whole[key] for key, total in zip(totals, summed, strict=True)}
    return means, {name: workers.sum(count_LK.cpu()) for name, count_LK in counts.items()}, rows_B


def _add_gradients(net: MmRqVaeNet, workers: Shards) -> None:
    """The gradients of all workers' shares of the batch, on each; zeros where there is none.

    Zeros, so that a modality that no row of a batch has is treated alike by any number of workers.
    """
    parameters = list(net.parameters())
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if workers.group is None:
        return
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = workers.sum(torch.cat([grad.flatten() for grad in grads]))
    for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad))


@torch.no_grad()
def _agree(net: MmRqVaeNet, workers: Shards) -> None:
    """The first worker's weights on all: devices and machines round in their own ways."""
    if workers.group is not None:
        for parameter in net.parameters():
            parameter.copy_(workers.agree(parameter))
