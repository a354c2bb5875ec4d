"""Training of MME-SID, torch only: steps, epochs, validation. `ray_jobs.mme_sid` spreads it.

    trainer = MmeSidTrainer(model, data, MmeSidTraining(epochs=4), torch.device("cpu"))
    for sums in trainer.steps(epoch=0): ...
    trainer.metrics("valid")["ndcg@10"]

The model is given prepared: what requires gradients is trained (LoRA and the item side in the
paper's setting; the whole net where all of it requires them). AdamW, a cosine from the learning
rate to 0 over all steps after a short rise (which the paper does not name: a new item side would
begin with its largest steps), gradients clipped by their norm. A user's last `length` items are one
sequence of an epoch, and every position is predicted (`models.next_items`).

A step whose activations do not fit is taken in `accumulate` passes, each over its part of the
sequences; their gradients add up to the step's own, to rounding. Drawn items are drawn once a step.
Only dropout, and which items a pass's consistency term sees, depend on how a step is cut.

Torch is seeded anew at every step, by the seed and the step's place, so a run that goes on from
saved weights and moments draws what an uninterrupted one draws.

Shapes: P positions of a batch, S sequences, I rows of items with the padding, N drawn items.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.full_ranking import KS, ranking_metrics, ranks_of_vectors
from models.item_cross_entropy import draw_items, draw_probabilities
from models.mme_sid import MmeSid
from models.mme_sid_flops import item_side_flops, training_flops
from models.next_items import HeldOutBatch, NextItems, Part, TrainBatch
from models.sasrec_training import Share

CHOSEN_BY = "ndcg@10"
"""Of the validation part: what the best epoch has most of."""


@dataclass(frozen=True, kw_only=True)
class MmeSidTraining:
    """The paper's settings where it states them (section 3)."""

    epochs: int = 4
    batch_size: int = 64
    """Users of one optimizer step, over all workers."""
    accumulate: int = 1
    """Passes of a step, whose gradients are added up: with more of them, less memory."""
    length: int = 50
    """Newest items of a history that the model reads."""
    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    warm_up: float = 0.05
    """Share of the steps over which the learning rate rises."""
    clip: float = 1.0
    """Largest norm of a step's gradient."""
    bf16: bool = False
    """Products of the item side in bfloat16 with float32 sums; the decoder has its own type."""
    full_softmax_up_to: int = 200_000
    """Catalogue size up to which the cross-entropy is over all items."""
    negatives: int = 16_384
    """Items drawn for a batch above that size."""
    ranked_users: int = 256
    """Users evaluated at once."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "length", "negatives", "ranked_users"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("weight_decay", "full_softmax_up_to"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.warm_up <= 1:
            raise ValueError(f"warm_up must be 0 to 1, got {self.warm_up}")


class MmeSidTrainer:
    """The prepared model, its optimizer and the data; `share`: which worker of how many."""

    def __init__(
        self,
        model: MmeSid,
        data: NextItems,
        options: MmeSidTraining,
        device: torch.device,
        share: Share | None = None,
        *,
        rank: int = 0,
    ) -> None:
        """`rank`: of the LoRA inside, for the count of FLOPs; 0 without."""
        self.model, self.data, self.options, self.device = model.to(device), data, options, device
        self.share = share or Share()
        self.rank = rank
        self.trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        self.sequences = int((data.lengths_U >= 2).sum())
        if not self.sequences:
            raise ValueError("no user has two training items: there is nothing to learn from")
        self.steps_per_epoch = math.ceil(self.sequences / options.batch_size)
        self._q_I = draw_probabilities(torch.from_numpy(data.counts_I))

    @property
    def sampled(self) -> bool:
        """Whether the catalogue is too large for a cross-entropy over all of it."""
        return self.data.items > self.options.full_softmax_up_to

    def steps(self, epoch: int, first: int = 0) -> Iterator[Tensor]:
        """The epoch's steps from number `first` on: after each, this worker's (3,) float64 of loss
        sum, positions and sum of squared lengths, on the device."""
        batches = self.data.train_batches(
            length=self.options.length,
            batch_size=self.options.batch_size,
            # One order for all workers: each takes its users of the same batches.
            seed=self.options.seed * 1_000_003 + epoch,
        )
        for number, batch in enumerate(batches):
            if number >= first:
                yield self._step(epoch, number, batch)

    def _step(self, epoch: int, number: int, whole: TrainBatch) -> Tensor:
        options, share = self.options, self.share
        self._set_rate(epoch * self.steps_per_epoch + number)
        seeds = np.random.SeedSequence((options.seed, epoch, number, share.rank))
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
        own = whole.part(share.rank, share.workers)
        drawn = self._drawn()
        self.model.train()
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        for number_of_pass in range(options.accumulate):
            batch = own.part(number_of_pass, options.accumulate)
            if not len(batch.lengths_S):  # a last batch may have fewer users than workers or passes
                continue
            with self._autocast():
                loss = self.model(*self._inputs(batch), **drawn)
            # The mean over the positions of all workers and passes.
            (loss / len(whole.rows_P)).backward()
            total += loss.detach()
        self._add_up_gradients()
        torch.nn.utils.clip_grad_norm_(list(self.trained.values()), options.clip)
        self.optimizer.step()
        squares = float(np.square(own.lengths_S, dtype=np.float64).sum())
        counts = torch.tensor([len(own.rows_P), squares], dtype=torch.float64)
        return torch.cat([total.double().view(1), counts.to(self.device)])

    def _set_rate(self, step: int) -> None:
        """min(1, (step + 1) / (warm_up * steps)) lr / 2 (1 + cos(pi step / steps))"""
        steps = self.steps_per_epoch * self.options.epochs
        risen = min(1.0, (step + 1) / max(1.0, self.options.warm_up * steps))
        rate = self.options.learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in self.optimizer.param_groups:
            group["lr"] = risen * rate

    def _inputs(self, batch: TrainBatch) -> tuple[Tensor, Tensor, Tensor]:
        rows_P, targets_P = (
            torch.from_numpy(values.astype(np.int64)).to(self.device, non_blocking=True)
            for values in (batch.rows_P, batch.targets_P)
        )
        return rows_P, torch.from_numpy(batch.lengths_S), targets_P

    def _drawn(self) -> dict[str, Tensor]:
        if not self.sampled:
            return {}
        drawn_N = draw_items(self._q_I, self.options.negatives, torch.default_generator)
        log_q_N = self._q_I[drawn_N].log().float()
        return {"drawn_N": drawn_N.to(self.device), "log_q_N": log_q_N.to(self.device)}

    def _add_up_gradients(self) -> None:
        """The sum over all workers, in one exchange."""
        if self.share.workers == 1:
            return
        parameters = list(self.trained.values())
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        grads = [parameter.grad for parameter in parameters]
        flat = torch.cat([grad.flatten().float() for grad in grads if grad is not None])
        self.share.add_up(flat)
        parts = flat.split([parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bf16)

    @torch.no_grad()
    def metrics(self, part: Part) -> dict[str, float]:
        """HR@k and nDCG@k of the part's targets, by full ranking over all workers, and `users`.

        Scores in float32, whatever the decoder's type: bfloat16 would make ties. So is the item
        matrix, as a trained model keeps it.
        """
        self.model.eval()
        matrix_ID = self.model.items.matrix()
        sums = torch.zeros(1 + 2 * len(KS), dtype=torch.float64)
        batches = self.data.held_out(part).batches(
            length=self.options.length, batch_size=self.options.ranked_users
        )
        names: list[str] = []
        for number, batch in enumerate(batches):
            if number % self.share.workers != self.share.rank:
                continue
            ranks_S = self._ranks(batch, matrix_ID)
            of_batch = ranking_metrics(ranks_S)
            names = list(of_batch)
            means = torch.tensor([1.0, *of_batch.values()], dtype=torch.float64)
            sums += len(ranks_S) * means
        sums = sums.to(self.device)
        self.share.add_up(sums)
        users, *totals = sums.tolist()
        names = names or list(ranking_metrics(np.zeros(0, dtype=np.int64)))
        values = [total / users if users else float("nan") for total in totals]
        return {"users": int(users), **dict(zip(names, values, strict=True))}

    def _ranks(self, batch: HeldOutBatch, matrix_ID: Tensor) -> np.ndarray:
        rows_P = torch.from_numpy(batch.rows_P.astype(np.int64)).to(self.device)
        with self._autocast():
            vectors_SD = self.model.last_vectors(rows_P, torch.from_numpy(batch.lengths_S))
        return ranks_of_vectors(
            vectors_SD.float(), matrix_ID, batch.targets_S, batch.seen_Q, batch.seen_lengths_S
        )

    def needed_flops(self, positions: float, squares: float, steps: int) -> float:
        """Arithmetic that so many steps need (`models.mme_sid_flops`), over all workers.

        `squares`: the sum of squared lengths of the sequences.
        """
        sizes = self.model.backbone.sizes
        scored = self.options.negatives if self.sampled else self.data.items
        # A token sees the mean length of its own sequence: squares / positions.
        decoder = positions * training_flops(sizes, squares / positions, self.rank)
        return decoder + item_side_flops(
            self.model.config,
            sizes.hidden,
            positions=positions,
            rows=scored * steps,
            scored=scored,
        )

    def weights(self) -> dict[str, Tensor]:
        """Copies on the host of what is trained, by parameter name."""
        return {name: p.detach().cpu().clone() for name, p in self.trained.items()}

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `weights`. ValueError where names differ."""
        if tensors.keys() != self.trained.keys():
            odd = sorted(tensors.keys() ^ self.trained.keys())
            raise ValueError(f"trained weights: {len(odd)} names differ, for instance {odd[0]}")
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(tensors[name])

    def state_tensors(self) -> dict[str, Tensor]:
        """AdamW's moments and step counts, as `<parameter>|<exp_avg | exp_avg_sq | step>`."""
        return {
            f"{name}|{key}": value.detach().cpu().clone()
            for name, parameter in self.trained.items()
            for key, value in self.optimizer.state[parameter].items()
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state_tensors`."""
        saved: dict[str, Any] = self.optimizer.state_dict()
        state: dict[int, dict[str, Tensor]] = {}
        for number, name in enumerate(self.trained):
            found = {
                key: tensors[f"{name}|{key}"]
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{name}|{key}" in tensors
            }
            if found:
                state[number] = found
        self.optimizer.load_state_dict({**saved, "state": state})
