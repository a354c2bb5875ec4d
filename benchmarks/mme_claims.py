"""MME-SID's claims on two real data sets: variants x seeds, trained on one GPU, then judged.

    python benchmarks/mme_claims.py prepare --data DATA --out WORLDS
    python benchmarks/mme_claims.py run --worlds WORLDS --results RESULTS [--seconds 480]
    python benchmarks/mme_claims.py answer --results RESULTS

`prepare` writes one npz a data set (`ray_jobs.mme_worlds`). `run` needs torch and numpy alone, no
Ray and no Feast: it trains SASRec once for each world and seed, then every variant
(`models.mme_variants`), those of one quantizer in one process, many processes on one GPU, which a
small model leaves idle. Each run appends a line of JSON to RESULTS/runs.jsonl; what has its line is
not run again, and after `--seconds` no further run is begun. `answer` prints the tables of
`crescendo mme-study` and writes its page and JSON beside the results.
"""

import argparse
import json
import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from models.mme_variants import PAPER_SASREC, POPULAR, SASREC

QUICK_USERS = 100
RUNS_FILE = "runs.jsonl"
BASELINES = (SASREC, POPULAR)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    prepare_ = commands.add_parser("prepare")
    prepare_.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    prepare_.add_argument("--out", type=Path, required=True)
    run_ = commands.add_parser("run")
    run_.add_argument("--worlds", type=Path, required=True, help="folder of npz files")
    run_.add_argument("--results", type=Path, required=True)
    run_.add_argument("--seeds", type=int, default=3)
    run_.add_argument("--seconds", type=float, default=480.0)
    run_.add_argument("--processes", type=int, default=14)
    run_.add_argument("--device", default="cuda")
    run_.add_argument("--quick", action="store_true", help="few listeners and epochs: a check")
    answer_ = commands.add_parser("answer")
    answer_.add_argument("--results", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    if chosen.command == "prepare":
        prepare(chosen.data, chosen.out)
    elif chosen.command == "run":
        run(chosen)
    else:
        judge(chosen.results)


def prepare(data: Path, out: Path) -> None:
    from ray_jobs.mme_worlds import beauty, hetrec_spotify

    out.mkdir(parents=True, exist_ok=True)
    for world in (
        beauty(data / "amazon-beauty-collab"),
        hetrec_spotify(data / "hetrec-spotify"),
    ):
        path = out / f"{world.name}.npz"
        world.save(path)
        facts = {
            "world": world.name,
            "items": world.next_items.items,
            "users": len(world.next_items.user_ids_U),
            "dims": {family: table.shape[1] for family, table in world.raw.items()},
            "bytes": path.stat().st_size,
        }
        print(json.dumps(facts))


def run(chosen: argparse.Namespace) -> None:
    started = time.time()
    chosen.results.mkdir(parents=True, exist_ok=True)
    worlds = sorted(chosen.worlds.glob("*.npz"))
    if not worlds:
        sys.exit(f"no npz file in {chosen.worlds}: run `prepare` first")
    until = started + chosen.seconds
    with (
        tempfile.TemporaryDirectory() as kept,
        ProcessPoolExecutor(
            chosen.processes,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=prepare_process,
        ) as pool,
    ):
        one_part = partial(run_part, Path(kept), chosen)
        parts, futures = parts_of(worlds), []
        first = {
            pool.submit(one_part, world, seed, BASELINES, math.inf): (world, seed)
            for seed in range(chosen.seeds)
            for world in worlds
        }
        # The longest parts, and what all claims need: they wait for no other SASRec.
        for done in as_completed(first):
            world, seed = first[done]
            names = next(names for path, names in parts if path == world)
            futures += [
                pool.submit(one_part, world, seed, part, until) for part in ((PAPER_SASREC,), names)
            ]
        futures += [
            pool.submit(one_part, world, seed, names, until)
            for world, names in parts[len(worlds) :]
            for seed in range(chosen.seeds)
        ]
        lines = sum(future.result() for future in (*first, *futures))
    print(json.dumps({"lines": lines, "seconds": round(time.time() - started)}))


def parts_of(worlds: Sequence[Path]) -> list[tuple[Path, tuple[str, ...]]]:
    """Names of variants that one process runs: a world's full model and what shares its quantizer
    first, then the ablations, and last what reads no semantic IDs."""
    from models.mme_runs import world_variants
    from models.mme_variants import sharing
    from models.mme_world import MmeWorld

    by_world = [
        [
            (path, tuple(variant.name for variant in part))
            for part in sharing(world_variants(MmeWorld.load(path)))
        ]
        for path in worlds
    ]
    ordered = [[full, *reversed(others)] for full, *others in by_world]
    return [part for parts in zip_longest(*ordered) for part in parts if part is not None]


def prepare_process() -> None:
    import torch

    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")


def run_part(
    kept: Path,
    chosen: argparse.Namespace,
    path: Path,
    seed: int,
    names: Sequence[str],
    until: float,
) -> int:
    """Runs these variants of a world and seed; returns how many lines. SASRec is in `kept`."""
    import torch

    from models.mme_collaborative import Collaborative
    from models.mme_run_file import append_runs
    from models.mme_world import MmeWorld

    if time.time() > until:
        return 0
    world, device = MmeWorld.load(path), torch.device(chosen.device)
    if chosen.quick:
        world = first_users(world, QUICK_USERS)
    options = options_of(world.name, quick=chosen.quick)
    sasrec = kept / f"{world.name}-{seed}.npz"
    if not sasrec.exists():
        of_seed = replace(options.sasrec, seed=seed)
        Collaborative.trained(world.next_items, of_seed, device).save(sasrec)
    lines = 0
    for line in append_runs(
        chosen.results / RUNS_FILE,
        world,
        options,
        seed,
        device,
        names=names,
        collaborative=Collaborative.load(sasrec),
    ):
        print(told(line), flush=True)
        lines += 1
        if time.time() > until:
            break
    return lines


def options_of(world: str, *, quick: bool) -> Any:
    """Fixed beforehand, the same for every variant of a world.

    The number of steps is what fits a run into seconds: Beauty has 22,332 listeners in steps of
    128, hetrec-spotify 995 in steps of 32.
    """
    from models.mme_runs import RunOptions

    options = RunOptions()
    options = replace(
        options,
        training=replace(options.training, epochs=8),
        quantizer=replace(options.quantizer, epochs=60),
        sasrec=replace(options.sasrec, epochs=60),
    )
    if not world.startswith("amazon"):
        options = replace(
            options,
            training=replace(options.training, epochs=20, batch_size=32),
            quantizer=replace(options.quantizer, epochs=120),
        )
    if not quick:
        return options
    return replace(
        options,
        training=replace(options.training, epochs=2),
        quantizer=replace(options.quantizer, epochs=1, codes=8),
        sasrec=replace(options.sasrec, epochs=2),
        paper_sasrec=replace(options.paper_sasrec, epochs=2),
    )


def first_users(world: Any, users: int) -> Any:
    """The same items, fewer listeners."""
    data = world.next_items
    kept = replace(
        data,
        rows_P=data.rows_P[: data.lengths_U[:users].sum()],
        lengths_U=data.lengths_U[:users],
        valid_U=data.valid_U[:users],
        test_U=data.test_U[:users],
        user_ids_U=data.user_ids_U[:users],
    )
    return replace(world, next_items=kept)


def told(line: dict[str, Any]) -> str:
    """A run in one line of the log."""
    found = [f"{line['world']} {line['seed']} {line['variant']}: {line['seconds']:.1f} s"]
    found.append(f"epoch {line['epochs']}")
    found += [f"{name} {line['metrics'][name]:.4f}" for name in ("hr@10", "ndcg@10")]
    if "collapse" in line:
        found.append(f"rank {line['collapse']['input']['effective_rank']:.1f}")
    for kind in ("codes_tau", "ids_tau"):
        taus = [f"{of_family['tau']:.3f}" for of_family in line.get(kind, {}).values()]
        found += [f"{kind} {'/'.join(taus)}"] if taus else []
    return ", ".join(found)


def judge(results: Path) -> None:
    from ray_jobs.mme_claims import answer, read_results
    from ray_jobs.report.mme_page import write_mme_page
    from ray_jobs.report.mme_tables import print_claims

    answers = answer(read_results(sorted(results.glob("*.jsonl"))))
    print_claims(answers)
    (results / "claims.json").write_text(json.dumps(answers, indent=1))
    write_mme_page(results / "mme-study.html", answers)
    print(json.dumps({"path": str(results / "mme-study.html")}))


if __name__ == "__main__":
    main()
