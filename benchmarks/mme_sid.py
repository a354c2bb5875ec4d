"""MME-SID at the size of Llama-3-8B on one GPU: fine-tuning with LoRA, and scoring users.

    python benchmarks/mme_sid.py [--quick] [--compiled] [--only train] [--device cpu --tiny]

Random weights, made on the device in bf16; needs torch, numpy, peft and rich, no Ray and no Feast.
`train`: whole optimizer steps at length 50 (three modalities, 4 levels x 256 codes), cross-entropy
over all items at every position. `score`: users of 50 items to their 100 best of the catalogue,
LoRA merged. `floor` is the share of the needed arithmetic over what a large bf16 matrix product
reaches in this run; what is needed is counted in `models/mme_sid_flops.py`: of the decoder alone,
and in `floor, all` with scores over all items and the item side. Each line is the median of its
steps. Pieces are guarded: one that fails is a line, and the others run. Prints a table; the last
line is one JSON object.
"""

import argparse
import itertools
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import processor, versions
from benchmarks.mme_sid_world import LENGTH, World
from models.llama import load_llama
from models.mme_sid import MmeSid
from models.mme_sid_flops import (
    forward_flops,
    item_flops,
    item_side_flops,
    score_flops,
    training_flops,
)
from ray_jobs.mme_sid_base import compile_layers
from ray_jobs.mme_sid_lora import LoraSettings, add_lora

LORA, TOP = LoraSettings(), 100


def train_piece(
    world: World,
    model: MmeSid,
    *,
    sequences: int,
    recompute: bool = False,
    compiled: bool = False,
    mixed: bool = False,
) -> dict[str, Any]:
    """Whole steps: forward, backward, clipping, AdamW on the adapters and the item side.

    `mixed`: lengths from 5 to 50, other ones in every step.
    """
    model.train()
    model.backbone.recompute = recompute
    if compiled:
        compile_layers(model.backbone)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-4, fused=world.device.type == "cuda")
    batches = itertools.cycle(world.batch(sequences, seed, mixed) for seed in range(4))
    losses, tokens, squares = [], [], []

    def step() -> None:
        rows_P, lengths_S, targets_P = next(batches)
        tokens.append(len(rows_P))
        squares.append(int(lengths_S.square().sum()))
        with torch.autocast(world.device.type, torch.bfloat16):
            loss = model(rows_P, lengths_S, targets_P) / len(rows_P)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(loss.detach())

    reset_peak(world.device)
    seconds = world.seconds(step)
    if not torch.stack(losses).isfinite().all():
        raise FloatingPointError(f"losses {[float(loss) for loss in losses]}")
    # The mean batch against the median step.
    mean, hidden = sum(tokens) / len(tokens), world.sizes.hidden
    length = sum(squares) / sum(tokens)  # as a token sees it
    decoder = mean * training_flops(world.sizes, length, LORA.rank)
    extra = item_side_flops(
        model.config, hidden, positions=mean, rows=world.items, scored=world.items
    )
    return rates(world, seconds, sequences, mean, decoder, extra) | {
        "loss_first": round(float(losses[0]), 3),
        "loss_last": round(float(losses[-1]), 3),
    }


def score_piece(
    world: World, model: MmeSid, *, sequences: int, compiled: bool = False
) -> dict[str, Any]:
    """Histories to each user's best items, the item matrix made before."""
    model.eval()
    if compiled:
        compile_layers(model.backbone)
    rows_P, lengths_S, _ = world.batch(sequences, seed=2)
    reset_peak(world.device)
    with torch.inference_mode(), torch.autocast(world.device.type, torch.bfloat16):
        matrix_ID = model.item_matrix()

        def step() -> None:
            users_SD = model.last_vectors(rows_P, lengths_S)
            (users_SD @ matrix_ID.T).topk(min(TOP, world.items), dim=1)

        seconds = world.seconds(step)
    hidden = world.sizes.hidden
    decoder = len(rows_P) * forward_flops(world.sizes, LENGTH)
    extra = sequences * score_flops(hidden, world.items)
    extra += len(rows_P) * item_flops(model.config, hidden, folded=False)
    answer = rates(world, seconds, sequences, len(rows_P), decoder, extra)
    return answer | {"minutes_for_1m_users": round(1e6 / sequences * seconds / 60, 1)}


def rates(
    world: World, seconds: float, sequences: int, tokens: float, decoder: float, extra: float
) -> dict[str, Any]:
    floor = seconds * world.flops_per_s
    peak = torch.cuda.max_memory_allocated() / 2**30 if world.device.type == "cuda" else 0.0
    return {
        "ms": round(seconds * 1000, 1),
        "sequences_per_s": round(sequences / seconds, 1),
        "tokens_per_s": round(tokens / seconds),
        "floor_share": round(decoder / floor, 3),
        "floor_share_all": round((decoder + extra) / floor, 3),
        "peak_gib": round(peak, 1),
    }


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="fewer steps and pieces")
    parser.add_argument("--tiny", action="store_true", help="a decoder of toy size")
    parser.add_argument("--layers", type=int, help="of the decoder; 32 by default")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--compiled", action="store_true", help="and with compiled layers")
    parser.add_argument("--only", choices=("train", "score"), help="by default both")
    parser.add_argument("--profile", action="store_true", help="and where a step's time goes")
    parser.add_argument("--until-s", type=float, default=110.0, help="no new piece after that")
    options = parser.parse_args()
    started = time.perf_counter()
    world = World(options)
    print(f"matrix product: {world.flops_per_s / 1e12:,.1f} TFLOP/s", flush=True)
    train_sizes = [(96, False), (256, True)]
    score_sizes = [512]
    if not options.quick:
        train_sizes.append((64, False))
        score_sizes.append(128)
    if options.tiny:
        train_sizes, score_sizes = [(8, False), (8, True)], [16]
    compiled = options.compiled
    if options.only is not None:
        train_sizes = train_sizes if options.only == "train" else []
        score_sizes = score_sizes if options.only == "score" else []
    answers: dict[str, dict[str, Any]] = {}

    def piece(name: str, work: Callable[..., dict[str, Any]], **how: Any) -> None:
        passed = time.perf_counter() - started
        if passed > options.until_s:
            print(f"{name}: left out after {passed:.0f} s", flush=True)
            return
        try:
            answers[name] = work(world, model, **how)
            print(f"{time.perf_counter() - started:6.1f} s  {name}: {answers[name]}", flush=True)
        except Exception as error:  # a piece that fails leaves the others their turn
            traceback.print_exc()
            answers[name] = {"error": f"{type(error).__name__}: {error}"[:300]}

    backbone = load_llama(world.config, world.weights(), dtype=world.dtype, device=world.device)
    model = world.model(backbone)
    print(f"{time.perf_counter() - started:6.1f} s  weights are made", flush=True)
    # Scoring first: LoRA that is merged is a base without adapters.
    for sequences in score_sizes:
        piece(f"score, {sequences} users", score_piece, sequences=sequences)
    if compiled and score_sizes:
        most = max(score_sizes)
        piece(f"score, {most} users, compiled", score_piece, sequences=most, compiled=True)
        for layer in backbone.layers:
            layer._compiled_call_impl = None  # as it was: torch has no public way back
    torch.manual_seed(1)
    add_lora(backbone, LORA)
    print(f"{time.perf_counter() - started:6.1f} s  adapters are in", flush=True)
    for sequences, recompute in train_sizes:
        name = f"train, {sequences} sequences{', recomputed' if recompute else ''}"
        piece(name, train_piece, sequences=sequences, recompute=recompute)
    if compiled and train_sizes:
        most = 8 if options.tiny else 160
        piece(f"train, {most} sequences, compiled", train_piece, sequences=most, compiled=True)
        name = f"train, {most} sequences, compiled, mixed"
        piece(name, train_piece, sequences=most, compiled=True, mixed=True)
    report(world, answers, time.perf_counter() - started)


def report(world: World, answers: dict[str, dict[str, Any]], seconds: float) -> None:
    table = Table(title=f"MME-SID, {world.sizes.layers} layers, {world.items:,} items, length 50")
    columns = ("ms", "sequences_per_s", "tokens_per_s", "floor_share", "floor_share_all")
    for column in ("", "ms", "sequences/s", "tokens/s", "floor", "floor, all", "peak GiB", "1 M"):
        table.add_column(column, justify="left" if not column else "right")
    for name, answer in answers.items():
        if "error" in answer:
            table.add_row(name, answer["error"][:60])
            continue
        minutes = answer.get("minutes_for_1m_users")
        table.add_row(
            name,
            *(f"{answer[column]:,}" for column in columns),
            f"{answer['peak_gib']}",
            "" if minutes is None else f"{minutes} min",
        )
    Console(width=120).print(table)
    where = torch.cuda.get_device_name() if world.device.type == "cuda" else processor()
    print(f"{where}; {versions('torch', 'peft')}; {seconds:.0f} s")
    best = {
        kind: max(
            (a["floor_share"] for n, a in answers.items() if n.startswith(kind) and "ms" in a),
            default=None,
        )
        for kind in ("train", "score")
    }
    print(
        json.dumps(
            {
                "matmul_tflops": round(world.flops_per_s / 1e12, 1),
                "train_floor_share": best["train"],
                "score_floor_share": best["score"],
                "pieces": answers,
            }
        )
    )


if __name__ == "__main__":
    main()
