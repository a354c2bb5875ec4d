"""SASRec as a study of MME-SID's claims uses it: a baseline, and embeddings for all variants.

    sasrec = Collaborative.trained(world.next_items, SasRecOptions(seed=0), device)
    sasrec.save(Path("beauty-0.npz"))     # for the processes that share its world and seed

Shapes: I rows of items with the padding, D width, V users with a target.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from models.next_items import NextItems
from models.sasrec_training import SasRecOptions, Trainer, fit


@dataclass(frozen=True, kw_only=True)
class Collaborative:
    """SASRec of one world and seed, trained."""

    table_ID: np.ndarray
    """float32; zeros for the padding and for items that no training part has."""
    ranks_V: np.ndarray
    """Of the test part's targets."""
    epochs: int
    seconds: float

    @classmethod
    def trained(
        cls, data: NextItems, options: SasRecOptions, device: torch.device
    ) -> "Collaborative":
        started = time.perf_counter()
        trainer = Trainer(data, options, device)
        epochs = len(list(fit(trainer)))
        ranks_V = trainer.ranks(data.held_out("test"))
        table_ID = trainer.model.item_matrix().detach().float().cpu().numpy().copy()
        # A row that no training part has is noise of the start, and no embedding.
        table_ID[data.counts_I == 0] = 0
        seconds = time.perf_counter() - started
        return cls(table_ID=table_ID, ranks_V=ranks_V, epochs=epochs, seconds=seconds)

    def save(self, path: Path) -> None:
        np.savez(path, allow_pickle=False, **asdict(self))

    @classmethod
    def load(cls, path: Path) -> "Collaborative":
        """The inverse of `save`."""
        with np.load(path, allow_pickle=False) as file:
            return cls(
                table_ID=file["table_ID"],
                ranks_V=file["ranks_V"],
                epochs=int(file["epochs"]),
                seconds=float(file["seconds"]),
            )
