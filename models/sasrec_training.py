"""Training of SASRec, torch only: losses, epochs, validation. `ray_jobs.sasrec` spreads it.

    trainer = Trainer(data, SasRecOptions(loss="ce"), torch.device("cpu"))
    curve = list(fit(trainer))  # the model then has the best epoch's weights
    trainer.metrics("test")["ndcg@10"]

At every position the next item is predicted (`models.next_items`), with one of two losses:

    ce   -log softmax_i(<h, E_i>) at the next item, over all items
    bce  -log sigmoid(<h, E_next>) - log(1 - sigmoid(<h, E_j>)), j drawn evenly from the items that
         the user's training rows do not hold: the paper's (Kang and McAuley 2018, equation 6)

`ce` is the default. Measured on Amazon Beauty (22,332 users, 12,086 items, leave-last-out, full
ranking; one CPU thread, the options' defaults): ce has HR@10 .087 and nDCG@10 .053 after 14 epochs,
530 s of CPU, and .075 and .043 after 270 s; bce, with dropout .5 and patience 20, had .053 and .028
at its end after 78 epochs (one seed, an H200). Published for the paper's loss: about .065 and .035.

Shapes: P positions of a batch, S histories, I rows of items with the padding, N drawn items,
D width, V users that have a target, M metrics.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from models.full_ranking import ranking_metrics, ranks_of_vectors
from models.item_cross_entropy import (
    draw_items,
    draw_probabilities,
    full_cross_entropy,
    sampled_cross_entropy,
)
from models.next_items import HeldOut, NextItems, Part, TrainBatch
from models.sasrec import SasRec, SasRecConfig

LOSSES = ("ce", "bce")
NEGATIVE_TRIES = 20
RANKED_USERS = 1024
CHOSEN_BY = "ndcg@10"
"""Of the validation part: what the best epoch has most of."""


@dataclass(frozen=True, kw_only=True)
class SasRecOptions:
    loss: str = "ce"
    sampled_items: int | None = None
    """Items that a step of `ce` draws instead of taking all, for a catalogue of millions."""
    width: int = 64
    layers: int = 2
    heads: int = 1
    length: int = 50
    """Newest items of a history that the model reads."""
    dropout: float = 0.2
    learning_rate: float = 1e-3
    batch_size: int = 128
    """Users of one optimizer step, over all workers."""
    epochs: int = 200
    """Passes over the training part at most."""
    patience: int = 5
    """Epochs without a better validation nDCG@10 after which a run ends."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {LOSSES}, got {self.loss!r}")
        for name in ("batch_size", "epochs", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.sampled_items is not None and (self.loss != "ce" or self.sampled_items < 1):
            raise ValueError(
                f"sampled_items must be at least 1, and belongs to loss ce, got "
                f"{self.sampled_items} with {self.loss}"
            )
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        self.config(items=2)  # its own checks

    def config(self, items: int) -> SasRecConfig:
        return SasRecConfig(
            items=items,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            length=self.length,
            dropout=self.dropout,
        )


@dataclass(frozen=True, kw_only=True)
class Share:
    """One of several workers that train the same model: whose users, and how they add up."""

    rank: int = 0
    workers: int = 1
    add_up: Callable[[Tensor], None] = lambda tensor: None
    """Puts the sum over all workers in place of a tensor."""


class Trainer:
    """The model, its optimizer and the data. Equal seeds give equal weights on a CPU."""

    def __init__(
        self,
        data: NextItems,
        options: SasRecOptions,
        device: torch.device,
        share: Share | None = None,
    ) -> None:
        self.data, self.options, self.device = data, options, device
        self.share = share or Share()
        torch.manual_seed(options.seed)
        self.model = SasRec(options.config(len(data.track_ids_I))).to(device)
        self._q_I = draw_probabilities(torch.from_numpy(data.counts_I))
        self._adam = torch.optim.Adam(
            self.model.parameters(), lr=options.learning_rate, betas=(0.9, 0.98), fused=True
        )

    def epoch(self, number: int) -> dict[str, float]:
        """Trains one epoch, from 0: `train_loss` a position, `positions`, `seconds`.

        Seeds torch by the seed, the epoch and the worker, so an epoch depends on the weights and
        moments before it alone. ValueError for a loss that is not finite, or no position at all.
        """
        self.model.train()
        seeds = np.random.SeedSequence((self.options.seed, number, self.share.rank))
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
        self._draw = np.random.default_rng(seeds)
        self._draw_items = torch.Generator().manual_seed(int(self._draw.integers(2**62)))
        started = time.perf_counter()
        # Losses and positions stay on the device: one wait an epoch.
        sums_2 = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in self._batches(number):
            sums_2 += self._step(batch)
        self.share.add_up(sums_2)
        loss, positions = sums_2.tolist()
        if not positions:
            raise ValueError("no user has two training items: there is nothing to learn from")
        if not np.isfinite(loss):
            raise ValueError(
                f"the loss of epoch {number + 1} is {loss}: give a smaller learning_rate than "
                f"{self.options.learning_rate}"
            )
        return {
            "train_loss": loss / positions,
            "positions": int(positions),
            "seconds": time.perf_counter() - started,
        }

    def _batches(self, number: int) -> Iterator[TrainBatch]:
        return self.data.train_batches(
            length=self.options.length,
            batch_size=self.options.batch_size,
            # One order for all workers: each takes its users of the same batches.
            seed=self.options.seed * 1_000_003 + number,
            share=(self.share.rank, self.share.workers),
        )

    def _step(self, batch: TrainBatch) -> Tensor:
        """One optimizer step; the summed loss and the positions of this worker, (2,)."""
        rows_P, lengths_S, targets_P = self._on_device(
            batch.rows_P, batch.lengths_S, batch.targets_P
        )
        self._adam.zero_grad()
        hidden_PD = self.model(rows_P, lengths_S)
        loss = self._loss(hidden_PD, targets_P, batch)
        loss.backward()
        # The mean over the positions of all workers, which need not have equally many.
        positions = torch.full((), len(rows_P), dtype=torch.float32, device=self.device)
        of_all = positions.clone()
        self.share.add_up(of_all)
        for parameter in self.model.parameters():
            assert parameter.grad is not None
            self.share.add_up(parameter.grad)
            parameter.grad /= of_all
        self._adam.step()
        return torch.stack([loss.detach(), positions]).double()

    def _loss(self, hidden_PD: Tensor, targets_P: Tensor, batch: TrainBatch) -> Tensor:
        """Summed over the positions."""
        items_ID = self.model.item_matrix()
        if self.options.loss == "bce":
            drawn_P = torch.from_numpy(negatives(batch, self.data.items, self._draw))
            return binary_sum(hidden_PD, items_ID, targets_P, drawn_P.to(self.device))
        if self.options.sampled_items is None:
            return full_cross_entropy(hidden_PD, items_ID, targets_P)
        drawn_N = draw_items(self._q_I, self.options.sampled_items, self._draw_items)
        return sampled_cross_entropy(
            hidden_PD,
            items_ID[targets_P],
            items_ID[drawn_N.to(self.device)],
            targets_P,
            drawn_N.to(self.device),
            self._q_I[drawn_N].log().to(self.device),
        )

    @torch.no_grad()
    def ranks(self, held_out: HeldOut) -> np.ndarray:
        """Ranks of this worker's share of the targets, by the weights as they are."""
        self.model.eval()
        ranks = [np.zeros(0, dtype=np.int64)]
        for batch in held_out.batches(
            length=self.options.length,
            batch_size=RANKED_USERS,
            share=(self.share.rank, self.share.workers),
        ):
            vectors_SD = self.model.user_vectors(*self._on_device(batch.rows_P, batch.lengths_S))
            seen = (batch.targets_S, batch.seen_Q, batch.seen_lengths_S)
            ranks.append(ranks_of_vectors(vectors_SD, self.model.item_matrix(), *seen))
        return np.concatenate(ranks)

    def metrics(self, part: Part) -> dict[str, float]:
        """HR@k and nDCG@k of the part's targets by full ranking, over all workers' shares."""
        ranks_V = self.ranks(self.data.held_out(part))
        of_share = ranking_metrics(ranks_V)
        # Means weigh as much as the share has users; one without users adds nothing.
        sums = [value * len(ranks_V) if len(ranks_V) else 0.0 for value in of_share.values()]
        sums_M = torch.tensor([*sums, len(ranks_V)], dtype=torch.float64, device=self.device)
        self.share.add_up(sums_M)
        *totals, users = sums_M.tolist()
        means = [total / users if users else math.nan for total in totals]
        return dict(zip(of_share, means, strict=True))

    def _on_device(self, *arrays: np.ndarray) -> list[Tensor]:
        return [torch.from_numpy(array.astype(np.int64)).to(self.device) for array in arrays]

    def state_tensors(self) -> dict[str, Tensor]:
        """Adam's moments and step counts, as `<parameter>.<exp_avg | exp_avg_sq | step>`."""
        return {
            f"{name}.{key}": value
            for name, parameter in self.model.named_parameters()
            for key, value in self._adam.state[parameter].items()
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state_tensors`."""
        saved = self._adam.state_dict()
        saved["state"] = {
            number: {key: tensors[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            for number, (name, _) in enumerate(self.model.named_parameters())
        }
        self._adam.load_state_dict(saved)


def fit(trainer: Trainer) -> Iterator[dict[str, float]]:
    """Trains until the validation does not get better; yields each epoch's line.

    When it ends, the model has the weights of the best epoch. ValueError where no user has a
    validation target.
    """
    best, best_epoch = -1.0, -1
    weights = trainer.model.state_dict()
    for number in range(trainer.options.epochs):
        line = trainer.epoch(number) | trainer.metrics("valid")
        yield line | {"epoch": number}
        if math.isnan(line[CHOSEN_BY]):
            raise ValueError("no user has a validation target that can be ranked")
        if line[CHOSEN_BY] > best:
            best, best_epoch = line[CHOSEN_BY], number
            weights = copy.deepcopy(trainer.model.state_dict())
        if number - best_epoch >= trainer.options.patience:
            break
    trainer.model.load_state_dict(weights)


def binary_sum(
    hidden_PD: Tensor, items_ID: Tensor, targets_P: Tensor, negatives_P: Tensor
) -> Tensor:
    """-sum_p log sigmoid(<h_p, E_next>) + log(1 - sigmoid(<h_p, E_j>))."""
    for_P = (hidden_PD * items_ID[targets_P]).sum(1)
    against_P = (hidden_PD * items_ID[negatives_P]).sum(1)
    return -(logsigmoid(for_P) + logsigmoid(-against_P)).sum()


def negatives(batch: TrainBatch, items: int, draw: np.random.Generator) -> np.ndarray:
    """One item a position (P,) int64, drawn evenly from those that its user's rows do not hold.

    A position whose tries all fail, of a user who heard nearly everything, keeps its last draw.
    """
    user_P = np.repeat(np.arange(len(batch.lengths_S)), batch.lengths_S)
    heard = np.concatenate(
        [user_P * (items + 1) + rows for rows in (batch.rows_P, batch.targets_P)]
    )
    drawn_P = draw.integers(1, items + 1, len(user_P))
    for _ in range(NEGATIVE_TRIES):
        again_P = np.isin(user_P * (items + 1) + drawn_P, heard)
        if not again_P.any():
            break
        drawn_P[again_P] = draw.integers(1, items + 1, int(again_P.sum()))
    return drawn_P
