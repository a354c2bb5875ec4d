"""Training speed: our DIN and MCCA against FuxiCTR's DIN, on the same rows, in one run.

    pip install --no-deps fuxictr polars polars-runtime-32 h5py tqdm
    python benchmarks/training.py [--device cuda] [--quick] [--tracks 200000] [--batch-size 512]

Same rows, history, batch, embedding width, attention width and MLP; random ids with the popularity
of real catalogues. Ours trains as `crescendo train` does: it reads the parquet files of a training
set, looks the IDs up, and steps. FuxiCTR's DIN (its `train_step`, with its loop's `loss.item()`)
has its batches ready in memory: what its own input costs is not counted. Contenders take turns;
each line is the median of its turns. `step` is ours on batches that lie ready as well; `input`
the share of the whole that the files cost on top. `floor` (CUDA) is the time that the step's
bytes of table rows take at the card's measured copy speed. Prints a table; the last line is JSON.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import processor, versions
from benchmarks.training_data import CODES, FAMILIES, LEVELS, ROWS_PER_FILE, write_training_set
from models.batch import TrackRows
from models.ranker_config import RankerConfig
from models.ranker_optimizer import RankerOptimizer
from models.rankers import build_ranker
from ray_jobs import train_step
from ray_jobs.train_step import TrainStep
from ray_jobs.training_stream import ItemSide, StreamPlace, read_item_side, train_batches

WIDTH, TOWER, ATTENTION, LEARNING_RATE = 64, (200, 80), 64, 1e-3
WARM_UP = 8


class Ours:
    """One of our rankers, and its training set as the trainer reads it."""

    def __init__(self, name: str, folder: Path, side: ItemSide, batch_size: int) -> None:
        torch.manual_seed(0)
        config = RankerConfig(
            model=name,
            id_rows=side.vocabulary.rows,
            families=FAMILIES,
            levels=LEVELS,
            codes=CODES,
            history_length=side.history_length,
            embedding_width=WIDTH,
            attention_hidden=ATTENTION,
            tower_hidden=TOWER,
        )
        model = build_ranker(config).to(side.device)
        optimizer = RankerOptimizer(model, LEARNING_RATE)
        self.folder, self.side, self.batch_size = folder, side, batch_size
        self.step = TrainStep(
            model,
            optimizer,
            side.lookup,
            batch_size=batch_size,
            steps=train_step.COMPILED_FROM_STEPS,
            workers=1,
        )
        self.epoch = 0
        self.stream = self._rows()
        self.ready = [next(self.stream) for _ in range(WARM_UP)]
        for rows, labels_B, _ in self.ready:
            self.step(rows, labels_B, 1 / batch_size)

    def _rows(self) -> Iterator[tuple[TrackRows, Tensor, int]]:
        while True:
            place = StreamPlace(
                seed=0, epoch=self.epoch, batch_size=self.batch_size, rank=0, world_size=1
            )
            for batch in train_batches(self.folder, self.side, place):
                if batch[2] == self.batch_size:
                    yield batch
            self.epoch += 1

    def whole_epoch(self) -> float:
        """Seconds of one pass over all rows."""
        place = StreamPlace(seed=0, epoch=0, batch_size=self.batch_size, rank=0, world_size=1)
        started = time.perf_counter()
        for rows, labels_B, rows_B in train_batches(self.folder, self.side, place):
            loss = self.step(rows, labels_B, 1 / rows_B)
        if not loss.isfinite():  # waits for the device, too
            raise FloatingPointError(f"the last batch's loss is {float(loss)}")
        return time.perf_counter() - started

    def from_files(self) -> None:
        rows, labels_B, _ = next(self.stream)
        self.step(rows, labels_B, 1 / self.batch_size)

    def from_memory(self) -> None:
        rows, labels_B, _ = self.ready[0]
        self.ready.append(self.ready.pop(0))
        self.step(rows, labels_B, 1 / self.batch_size)


class Theirs:
    """FuxiCTR's DIN of the same sizes; its batches as its loaders hand them over, on the host."""

    def __init__(self, batches: list[tuple[TrackRows, Tensor, int]], tracks: int) -> None:
        from model_zoo.LongCTR.DIN.DIN import DIN

        class FeatureMap:
            dataset_id = "benchmark"
            features: ClassVar = OrderedDict(
                item_id={
                    "type": "categorical",
                    "vocab_size": tracks + 1,
                    "source": "item",
                    "padding_idx": 0,
                    "embedding_dim": WIDTH,
                }
            )
            labels = ("label",)
            group_id = None
            data_dir = ""

            def sum_emb_out_dim(self) -> int:
                return WIDTH

        on_cuda = batches[0][1].is_cuda
        torch.manual_seed(0)
        self.model = DIN(
            FeatureMap(),
            gpu=0 if on_cuda else -1,
            dnn_hidden_units=list(TOWER),
            attention_hidden_units=[ATTENTION],
            learning_rate=LEARNING_RATE,
            embedding_dim=WIDTH,
            optimizer="adam",
            loss="binary_cross_entropy",
            metrics=["AUC"],
            verbose=0,
            model_root=tempfile.gettempdir(),
        )
        self.model._max_gradient_norm, self.model._batch_index = 10.0, 0
        self.model.train()
        self.ready = [self._batch(rows, labels_B) for rows, labels_B, _ in batches]
        for _ in range(WARM_UP):
            self.from_memory()

    @staticmethod
    def _batch(rows: TrackRows, labels_B: Tensor) -> tuple[Any, Any, Tensor]:
        ids_BT = torch.cat([rows.history_track_ids_BT, rows.target_track_ids_B.unsqueeze(1)], dim=1)
        items = {"item_id": (ids_BT + 1).flatten().cpu()}
        return {"label": labels_B.cpu()}, items, rows.history_mask_BT.float().cpu()

    def from_memory(self) -> None:
        label, items, mask = self.ready[0]
        self.ready.append(self.ready.pop(0))
        # As its train_epoch does, which waits for the loss of every step.
        self.model.train_step((dict(label), dict(items), mask)).item()


def seconds_a_step(step: Callable[[], None], at_least_s: float, device: torch.device) -> float:
    steps = 0
    started = time.perf_counter()
    while True:
        for _ in range(4):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        steps += 4
        if (passed := time.perf_counter() - started) >= at_least_s:
            return passed / steps


def copy_bytes_per_s(device: torch.device) -> float:
    """Read and written by a large copy on the device."""
    source = torch.empty(2**28, device=device)
    into = torch.empty_like(source)
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    into.copy_(source)
    started.record()
    for _ in range(10):
        into.copy_(source)
    ended.record()
    torch.cuda.synchronize()
    return 10 * 2 * source.nbytes / (started.elapsed_time(ended) / 1000)


def floor_bytes(rows: TrackRows, families: int) -> int:
    """What no step can do without: of each position a row of the ID table and of each code table
    read, and the gradient of each written; of each distinct track the optimizer's 7 rows."""
    ids = torch.cat([rows.history_track_ids_BT.flatten(), rows.target_track_ids_B])
    row_bytes = 4 * WIDTH
    gathered = ids.numel() * (1 + families * LEVELS)
    return (2 * gathered + 7 * len(ids.unique())) * row_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="within a minute")
    parser.add_argument("--tracks", type=int, default=200_000)
    parser.add_argument("--rows", type=int, help="of the training set")
    parser.add_argument("--history", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--epoch", action="store_true", help="and one pass over all rows")
    options = parser.parse_args()
    device = torch.device(options.device)
    turns, turn_s = (2, 1.5) if options.quick else (5, 6.0)
    rows = options.rows or ROWS_PER_FILE * (8 if device.type == "cuda" else 2)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_training_set(folder, rows, options.tracks, options.history)
        side = read_item_side(folder, options.history, device)
        ours = {name: Ours(name, folder, side, options.batch_size) for name in ("din", "mcca")}
        theirs = Theirs(ours["din"].ready, options.tracks)
        contenders = {
            "FuxiCTR DIN": theirs.from_memory,
            "din, step": ours["din"].from_memory,
            "din": ours["din"].from_files,
            "mcca, step": ours["mcca"].from_memory,
            "mcca": ours["mcca"].from_files,
        }
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(turns):
            for name, step in contenders.items():
                times[name].append(seconds_a_step(step, turn_s, device))
        batch = ours["din"].ready[0][0]
        epochs = {}
        if options.epoch:
            epochs = {name: one.whole_epoch() for name, one in ours.items()}
    seconds = {name: statistics.median(of_turns) for name, of_turns in times.items()}
    report(options, device, seconds, batch, {"rows": rows, "epoch_s": epochs} if epochs else {})


def report(
    options: argparse.Namespace,
    device: torch.device,
    seconds: dict[str, float],
    batch: TrackRows,
    answer: dict[str, Any],
) -> None:
    rates = {name: options.batch_size / value for name, value in seconds.items()}
    peer = rates["FuxiCTR DIN"]
    table = Table(title=f"Training, {options.tracks:,} tracks, history {options.history}")
    for column in ("", "ms a step", "samples/s", "times FuxiCTR's DIN", "input", "floor"):
        table.add_column(column, justify="left" if not column else "right")
    speed = copy_bytes_per_s(device) if device.type == "cuda" else None
    for name, value in seconds.items():
        share = floor = ""
        model = name.removesuffix(", step")
        if name in ("din", "mcca"):
            waited = max(0.0, 1 - seconds[f"{name}, step"] / value)
            share = f"{waited:.0%}"
            answer[f"{name}_input_share"] = round(waited, 3)
        if speed and model in ("din", "mcca"):
            least_s = floor_bytes(batch, len(FAMILIES) if model == "mcca" else 0) / speed
            floor = f"{least_s / value:.0%}"
            answer[f"{model}_floor_share"] = round(least_s / value, 3)
        rate, times = f"{rates[name]:,.0f}", f"{rates[name] / peer:.1f}"
        table.add_row(name, f"{value * 1000:.2f}", rate, times, share, floor)
    Console(width=100).print(table)
    where = torch.cuda.get_device_name() if device.type == "cuda" else processor()
    print(
        f"batch {options.batch_size}, {torch.get_num_threads()} threads; {where}; "
        f"{versions('torch', 'fuxictr')}"
    )
    for name, epoch_s in answer.get("epoch_s", {}).items():
        print(f"one pass of {name} over {answer['rows']:,} rows: {epoch_s / 60:.1f} minutes")
    answer |= {
        "din_ratio": round(rates["din"] / peer, 2),
        "mcca_ratio": round(rates["mcca"] / peer, 2),
        "samples_per_s": {name: round(rate) for name, rate in rates.items()},
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
