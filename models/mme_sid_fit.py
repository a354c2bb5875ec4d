"""Training of MME-SID from its first epoch to its last, in one process.

curve = list(fit(MmeSidTrainer(model, data, MmeSidTraining(epochs=4), torch.device("cuda"))))
"""

import math
import time
from collections.abc import Iterator
from typing import Any

import torch

from models.mme_sid_training import CHOSEN_BY, MmeSidTrainer


def fit(trainer: MmeSidTrainer) -> Iterator[dict[str, Any]]:
    """Trains all epochs in this process; yields each one's line: `train_loss` a position,
    validation metrics, `sequences_per_s`, `tokens_per_s`.

    When it ends, the model has the weights of the best epoch by validation nDCG@10; of the last
    where no user has a validation target. ValueError for a loss that is not finite.
    """
    best, weights = -1.0, trainer.weights()
    for epoch in range(trainer.options.epochs):
        started = time.perf_counter()
        sums = torch.zeros(3, dtype=torch.float64, device=trainer.device)
        for of_step in trainer.steps(epoch):
            sums += of_step
        loss, positions, _ = sums.tolist()  # the one wait for the device
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss of epoch {epoch + 1} is {loss}: give a smaller learning_rate than "
                f"{trainer.options.learning_rate}"
            )
        seconds = time.perf_counter() - started
        metrics = trainer.metrics("valid")
        yield {
            "epoch": epoch,
            "train_loss": loss / positions,
            **metrics,
            "positions": int(positions),
            "seconds": seconds,
            "sequences_per_s": trainer.sequences / seconds,
            "tokens_per_s": positions / seconds,
        }
        if not metrics[CHOSEN_BY] <= best:  # NaN: the last is kept
            best, weights = metrics[CHOSEN_BY], trainer.weights()
    trainer.load_weights(weights)
