"""Streams a training set's rows as model batches: one file in memory, order fixed by the seed.

Every worker walks the same sequence of global batches and takes every world-size-th row of each,
so any number of workers sees the same batches and the mean gradient is the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from safetensors.numpy import load_file
from torch import Tensor

from feature_repo import schema
from models.batch import Batch, ItemTable, Vocabulary, make_batch, to_device

SCORING_BATCH = 4096


@dataclass(frozen=True, kw_only=True)
class ItemSide:
    """What turns a row's track ids into model inputs."""

    items: ItemTable
    vocabulary: Vocabulary
    history_length: int

    def batch(self, rows: pa.Table) -> Batch:
        """Model batch of training-set rows, or of rows joined in the same columns."""
        column = rows[schema.SEQUENCE_TRACK_IDS]
        # No sequence at that moment: an empty history.
        histories = pc.coalesce(column, pa.scalar([], column.type)).combine_chunks()
        return make_batch(
            rows[schema.TRACK_ID].to_numpy(),
            histories.values.to_numpy(zero_copy_only=False),
            histories.offsets.to_numpy(),
            items=self.items,
            vocabulary=self.vocabulary,
            history_length=self.history_length,
        )


def read_item_side(folder: Path, history_length: int) -> ItemSide:
    """The item side of the training set in `folder`."""
    tensors = load_file(folder / "items.safetensors")
    return ItemSide(
        items=ItemTable(track_ids_I=tensors["track_ids"], codes_IFL=tensors["codes"]),
        vocabulary=Vocabulary(
            track_ids_I=tensors["vocabulary_track_ids"],
            train_counts_I=tensors["vocabulary_train_counts"],
        ),
        history_length=history_length,
    )


@dataclass(frozen=True, kw_only=True)
class StreamPlace:
    """Which rows of the training stream one worker takes in one epoch."""

    seed: int
    epoch: int
    batch_size: int
    rank: int
    world_size: int


def train_batches(
    folder: Path, side: ItemSide, place: StreamPlace
) -> Iterator[tuple[Batch, Tensor, int]]:
    """This worker's part of each global batch: inputs, labels_B, rows of the global batch.

    The last batch of an epoch may be smaller; one with fewer rows than workers is left out.
    """
    random = np.random.default_rng((place.seed, place.epoch))
    paths = sorted(folder.glob("train-*.parquet"))
    left_over: list[pa.Table] = []
    for number, index in enumerate(random.permutation(len(paths)), start=1):
        table = pq.read_table(paths[index])
        table = pa.concat_tables([*left_over, table.take(random.permutation(table.num_rows))])
        last_file = number == len(paths)
        full = table.num_rows // place.batch_size * place.batch_size
        end = table.num_rows if last_file else full
        for start in range(0, end, place.batch_size):
            rows = table.slice(start, min(place.batch_size, end - start))
            if rows.num_rows < place.world_size:
                break
            mine = rows.take(np.arange(place.rank, rows.num_rows, place.world_size))
            yield side.batch(mine), labels(mine), rows.num_rows
        left_over = [table.slice(full)]


def labels(rows: pa.Table) -> Tensor:
    """labels_B as float32."""
    return torch.from_numpy(rows["label"].to_numpy().astype(np.float32))


@torch.inference_mode()
def score_rows(model: torch.nn.Module, side: ItemSide, rows: pa.Table) -> np.ndarray:
    """Probabilities (N,) of rows, in their order."""
    device = next(model.parameters()).device
    scores = [
        torch.sigmoid(model(to_device(side.batch(rows.slice(start, SCORING_BATCH)), device)))
        .cpu()
        .numpy()
        for start in range(0, rows.num_rows, SCORING_BATCH)
    ]
    return np.concatenate(scores) if scores else np.zeros(0, dtype=np.float32)
