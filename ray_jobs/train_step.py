"""One optimizer step of a ranker, at the speed of its device.

On the CPU the step runs as it stands. On one CUDA device it is recorded as a graph, as a ranker's
step is a hundred small kernels which the host cannot launch as fast as they run; a long run also
pays for compiling the model first. With several CUDA workers the step runs as it stands, for the
exchange of gradients is not recorded.

Shapes: B rows of this worker's part of a global batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from models.batch import Batch, ItemLookup, TrackRows, make_batch
from models.code_embedding import CodeEmbedding
from models.cuda_graph import Replayed
from models.ranker_optimizer import RankerOptimizer
from models.track_embedding import TrackEmbedding

COMPILED_FROM_STEPS = 20_000
"""Compiling takes about ten seconds and saves 0.1 to 4 ms a step (one H100)."""


class TrainStep:
    """`step(rows, labels_B, weight)` trains on one batch, whose tensors lie on the lookup's device.

    `batch_size` and `steps`: of a full batch, and how many there are at most; a recorded step has
    one size, and many steps are worth compiling the model for.
    `bf16`: products in bfloat16 with float32 sums; weights and moments stay float32.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: RankerOptimizer,
        lookup: ItemLookup,
        *,
        batch_size: int,
        steps: int,
        workers: int,
        bf16: bool = False,
    ) -> None:
        self.model, self.optimizer, self.lookup = model, optimizer, lookup
        self.device = lookup.track_ids_I.device
        self.batch_size, self.bf16 = batch_size, bf16
        self.recorded = self.device.type == "cuda" and workers == 1
        self._forward: Callable[[Batch], Tensor] = model
        if self.recorded and steps >= COMPILED_FROM_STEPS:
            self._forward = _compiled(model)
        self._replayed: Replayed | None = None

    def __call__(self, rows: TrackRows, labels_B: Tensor, weight: float) -> Tensor:
        """The sum of the batch's losses, left on the device; the next call may overwrite it.

        `weight` is workers / rows of the global batch: DistributedDataParallel averages over
        workers, so the gradient is that of the mean over the global batch, however it is divided.
        """
        if not self.recorded or len(labels_B) != self.batch_size:  # such as an epoch's last batch
            return self._train(self.model, rows, labels_B, weight)
        if self._replayed is None:
            self._record(rows, labels_B, weight)
        assert self._replayed is not None
        for into, value in zip(self._inputs, (*rows.columns().values(), labels_B), strict=True):
            into.copy_(value)
        self._replayed()
        return self._loss

    def _record(self, rows: TrackRows, labels_B: Tensor, weight: float) -> None:
        """Sets up the tensors that the recorded step reads, and the loss that it writes."""
        static, static_labels_B = rows.each(torch.clone), labels_B.clone()
        self._inputs = (*static.columns().values(), static_labels_B)
        self._loss = torch.zeros((), device=self.device)

        def step() -> None:
            self._loss.copy_(self._train(self._forward, static, static_labels_B, weight))

        self._replayed = Replayed(step, self.device)

    def _train(
        self,
        forward: Callable[[Batch], Tensor],
        rows: TrackRows,
        labels_B: Tensor,
        weight: float,
    ) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits_B = forward(make_batch(rows, self.lookup))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            logits_B.float(), labels_B, reduction="sum"
        )
        self.optimizer.zero_grad()
        (loss * weight).backward()
        self.optimizer.step()
        return loss.detach()


def _compiled(model: torch.nn.Module) -> Callable[[Batch], Tensor]:
    """The model compiled, its tables left as they are.

    Gradients of compiled and recorded code tables came out wrong (torch 2.11), and what an ID
    table's backward pass does in place may not be reordered. Marked here and not where the tables
    are defined: the mark imports the compiler, two seconds that serving would pay as well.
    """
    for module in model.modules():
        if isinstance(module, CodeEmbedding | TrackEmbedding):
            module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]
    return torch.compile(model)
