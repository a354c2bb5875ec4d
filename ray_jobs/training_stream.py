"""Streams a training set's rows as model batches: one file in memory, order fixed by the seed.

Every worker walks the same sequence of global batches and takes every world-size-th row of each,
so any number of workers sees the same batches and the mean gradient is the same. The sequence can
be entered at any batch, so that a resumed run sees the rows that are left and no others.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from safetensors.numpy import load_file
from torch import Tensor

from feature_repo import schema
from models.batch import (
    Batch,
    ItemLookup,
    ItemTable,
    TrackRows,
    Vocabulary,
    make_batch,
    track_rows,
)
from ray_jobs.ahead import ahead
from ray_jobs.number_features import numbers_of

SCORING_BATCH = 4096
CPU = torch.device("cpu")
READERS = 4
"""Threads that read a worker's files, so many files ahead."""


@dataclass(frozen=True, kw_only=True)
class ItemSide:
    """What turns a row's track ids into model inputs."""

    items: ItemTable
    vocabulary: Vocabulary
    history_length: int
    device: torch.device = CPU
    """Where the batches are wanted."""

    def batch(self, rows: pa.Table) -> Batch:
        """Model batch of training-set rows, or of rows joined in the same columns."""
        return make_batch(self.track_rows(rows), self.lookup)

    def track_rows(self, rows: pa.Table) -> TrackRows:
        """The rows' track ids on the side's device, histories padded."""
        column = rows[schema.SEQUENCE_TRACK_IDS]
        if column.null_count:  # no sequence at that moment: an empty history
            column = pc.coalesce(column, pa.scalar([], column.type))
        histories = column.combine_chunks()
        numbers_BN = numbers_of(rows)
        return track_rows(
            self.tensor(rows[schema.TRACK_ID].to_numpy()),
            self.tensor(histories.values.to_numpy(zero_copy_only=False)),
            self.tensor(histories.offsets.to_numpy()),
            history_length=self.history_length,
            numbers_BN=None if numbers_BN is None else self.tensor(numbers_BN),
        )

    def tensor(self, column: np.ndarray) -> Tensor:
        """A copy on the side's device."""
        host = torch.from_numpy(column.copy())  # Arrow's memory is not to be written to
        if self.device.type == "cuda":  # pinned memory is copied beside what the device does
            host = host.pin_memory()
        return host.to(self.device, non_blocking=True)

    @cached_property
    def lookup(self) -> ItemLookup:
        return ItemLookup.of(self.items, self.vocabulary, self.device)


def read_item_side(folder: Path, history_length: int, device: torch.device = CPU) -> ItemSide:
    """The item side of the training set in `folder`."""
    tensors = load_file(folder / "items.safetensors")
    return ItemSide(
        items=ItemTable(track_ids_I=tensors["track_ids"], codes_IFL=tensors["codes"]),
        vocabulary=Vocabulary(
            track_ids_I=tensors["vocabulary_track_ids"],
            train_counts_I=tensors["vocabulary_train_counts"],
        ),
        history_length=history_length,
        device=device,
    )


def train_rows(folder: Path) -> int:
    """Rows of the training part in `folder`."""
    return sum(pq.read_metadata(path).num_rows for path in folder.glob("train-*.parquet"))


@dataclass(frozen=True, kw_only=True)
class StreamPlace:
    """Which rows of the training stream one worker takes in one epoch, and from where on."""

    seed: int
    epoch: int
    batch_size: int
    rank: int
    world_size: int
    first_batch: int = 0
    """Global batches of the epoch that are done already, by whatever number of workers."""


def train_batches(
    folder: Path, side: ItemSide, place: StreamPlace
) -> Iterator[tuple[TrackRows, Tensor, int]]:
    """This worker's part of each global batch: track ids, labels_B, rows of the global batch.

    On the side's device. Files are read and padded in threads, ahead of who takes the batches. The
    last batch of an epoch may be smaller; one with fewer rows than workers is left out.
    """
    left: list[_Block] = []
    for block in ahead(partial(_read_block, side), _shuffled(folder, place), threads=READERS):
        block = _Block.joined([*left, block])
        full = block.labels_N.shape[0] // place.batch_size * place.batch_size
        yield from block.parts(full, place)
        left = [block.slice(slice(full, None))]
    for block in left:
        yield from block.parts(block.labels_N.shape[0], place)


@dataclass(frozen=True, kw_only=True)
class _Block:
    """Shuffled rows of the stream: as columns of tensors, in order."""

    rows: TrackRows
    labels_N: Tensor

    @classmethod
    def joined(cls, blocks: Sequence["_Block"]) -> "_Block":
        if len(blocks) == 1:
            return blocks[0]
        columns = [block.rows.columns() for block in blocks]
        rows = {name: torch.cat([one[name] for one in columns]) for name in columns[0]}
        return cls(rows=TrackRows(**rows), labels_N=torch.cat([block.labels_N for block in blocks]))

    def slice(self, rows: slice) -> "_Block":
        return self.each(lambda value: value[rows])

    def each(self, change: Callable[[Tensor], Tensor]) -> "_Block":
        return _Block(rows=self.rows.each(change), labels_N=change(self.labels_N))

    def parts(self, end: int, place: StreamPlace) -> Iterator[tuple[TrackRows, Tensor, int]]:
        for start in range(0, end, place.batch_size):
            stop = min(end, start + place.batch_size)
            if stop - start >= place.world_size:
                mine = self.slice(slice(start + place.rank, stop, place.world_size))
                yield mine.rows, mine.labels_N, stop - start


def global_batches(folder: Path, place: StreamPlace) -> Iterator[tuple[pa.Table, list[str]]]:
    """The same global batches as tables, each with the files that its rows are from."""
    held: list[tuple[pa.Table, str]] = []
    for file in _shuffled(folder, place):
        held.append((file.read(), file.path.name))
        rows = pa.concat_tables([part for part, _ in held])
        full = rows.num_rows // place.batch_size * place.batch_size
        carried = rows.num_rows - held[-1][0].num_rows
        for start in range(0, full, place.batch_size):
            names = [name for _, name in held] if start < carried else [file.path.name]
            yield rows.slice(start, place.batch_size), names
        left = [(rows.slice(full), file.path.name)] if full else held
        held = [(part, name) for part, name in left if part.num_rows]
    if held:
        yield pa.concat_tables([part for part, _ in held]), [name for _, name in held]


@dataclass(frozen=True, kw_only=True)
class _ShuffledFile:
    path: Path
    seed: tuple[int, ...]
    done: int
    """Rows, in their shuffled order, that are not wanted any more."""

    def read(self) -> pa.Table:
        table = pq.read_table(self.path)
        return table.take(self.order(table.num_rows))

    def order(self, rows: int) -> np.ndarray:
        """Which rows are wanted, in their shuffled order."""
        return np.random.default_rng(self.seed).permutation(rows)[self.done :]


def _shuffled(folder: Path, place: StreamPlace) -> Iterator[_ShuffledFile]:
    """The epoch's files from `first_batch` on.

    Files, and the rows of each file, are in an order that seed and epoch alone decide. Of files
    whose rows are all done only the number of rows is read.
    """
    paths = sorted(folder.glob("train-*.parquet"))
    order = np.random.default_rng((place.seed, place.epoch)).permutation(len(paths))
    done = place.first_batch * place.batch_size
    for index in order:
        if done and (in_file := pq.read_metadata(paths[index]).num_rows) <= done:
            done -= in_file
            continue
        # 1 +: numpy takes (seed, epoch, 0) and (seed, epoch) for the same seed.
        seed = place.seed, place.epoch, 1 + int(index)
        yield _ShuffledFile(path=paths[index], seed=seed, done=done)
        done = 0


def _read_block(side: ItemSide, file: _ShuffledFile) -> _Block:
    """The file's rows, shuffled on the side's device: on the host that costs more than reading."""
    table = pq.read_table(file.path)
    # A stream of its own: behind the steps that are queued, copies would come too late.
    stream = torch.cuda.Stream(side.device) if side.device.type == "cuda" else None
    with torch.cuda.stream(stream):
        rows_N = side.tensor(file.order(table.num_rows))
        block = _Block(rows=side.track_rows(table), labels_N=side.tensor(labels(table).numpy()))
        block = block.each(lambda value: value[rows_N])
    if stream is not None:
        stream.synchronize()
        for value in (*block.rows.columns().values(), block.labels_N):
            value.record_stream(torch.cuda.default_stream(side.device))  # where steps run
    return block


def labels(rows: pa.Table) -> Tensor:
    """labels_B as float32."""
    return torch.from_numpy(rows["label"].to_numpy().astype(np.float32))


@torch.inference_mode()
def score_rows(model: torch.nn.Module, side: ItemSide, rows: pa.Table) -> np.ndarray:
    """Probabilities (N,) of rows, in their order. The model lies on the side's device."""
    scores = [
        torch.sigmoid(model(side.batch(rows.slice(start, SCORING_BATCH)))).cpu().numpy()
        for start in range(0, rows.num_rows, SCORING_BATCH)
    ]
    return np.concatenate(scores) if scores else np.zeros(0, dtype=np.float32)
