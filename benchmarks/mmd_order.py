"""Under which settings do codes of MMD keep more order than codes of MSE? Quantizers alone.

    python benchmarks/mme_claims.py prepare --data DATA --out WORLDS
    python benchmarks/mmd_order.py run --worlds WORLDS --results RESULTS [--seconds 600]
    python benchmarks/mmd_order.py table --results RESULTS

The paper has Kendall's tau .4436 for MMD and .3714 for MSE, the study of claims has the reverse.
Here no recommender is trained: every setting fits two quantizers that differ in the reconstruction
alone, and tau compares their code embeddings with the vectors, as in the study. Beauty's vectors
are the authors' own (`collaborative_given`); those of hetrec-spotify are its text and audio, with
SASRec's trained here. A line of JSON each in RESULTS/order.jsonl, written as it is found; what is
there is not run again, and after `--seconds` no further fit is begun.
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

RESULTS_FILE = "order.jsonl"
BEAUTY, HETREC = "amazon-beauty-collab", "hetrec-spotify"
EPOCHS = {BEAUTY: 60, HETREC: 120}
"""Those of the study of claims."""
AUTHORS: dict[str, Any] = {"mu": 0.0, "quantization_weight": 1 / (4 * 64)}
"""Weights as in the authors' code: level losses are means, and what pulls an encoder to its codes
has the alignment's weight, .01, and reaches it from the first level alone: next to nothing."""
WIDE: dict[str, Any] = {
    "hidden": (4096, 4096, 4096),
    "latent_dims": 4096,
    "quantization_weight": 1 / (4 * 4096),
    "learning_rate": 2e-4,
}
"""Sizes and learning rate of the authors' script."""
UNTRAINED: dict[str, Any] = {"learning_rate": 0.0}
NO_REVIVAL: dict[str, Any] = {"revival": False}
"""Their code has none."""
SETTINGS: dict[str, dict[str, Any]] = {
    "as in the study": {},
    "untrained": UNTRAINED,
    "untrained, authors' sizes": AUTHORS | WIDE | UNTRAINED,
    "no commitment": {"mu": 0.0},
    "authors' weights": AUTHORS,
    "authors' weights, no revival, batch 64": AUTHORS | NO_REVIVAL | {"batch_size": 64},
    "authors' weights and sizes, no revival": AUTHORS | WIDE | NO_REVIVAL,
}
"""Changes of the study's options."""
OF_HETREC = (
    "as in the study",
    "untrained",
    "authors' weights",
    "authors' weights and sizes, no revival",
)
RECONSTRUCTIONS = ("mmd", "mse")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run_ = commands.add_parser("run")
    run_.add_argument("--worlds", type=Path, required=True, help="folder of npz files")
    run_.add_argument("--results", type=Path, required=True)
    run_.add_argument("--seeds", type=int, default=1)
    run_.add_argument("--seconds", type=float, default=600.0)
    run_.add_argument("--processes", type=int, default=4)
    run_.add_argument("--device", default="cuda")
    run_.add_argument("--only", nargs="*", choices=list(SETTINGS), help="these settings")
    run_.add_argument("--skip-wide", action="store_true", help="a check on a CPU")
    table_ = commands.add_parser("table")
    table_.add_argument("--results", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    if chosen.command == "run":
        run(chosen)
    else:
        table(chosen.results)


def run(chosen: argparse.Namespace) -> None:
    until = time.time() + chosen.seconds
    chosen.results.mkdir(parents=True, exist_ok=True)
    path = chosen.results / RESULTS_FILE
    names = [
        name
        for name in (chosen.only or SETTINGS)
        if not (chosen.skip_wide and SETTINGS[name].get("latent_dims", 0) > 64)
    ]
    done = {key_of(line) for line in read(path)}
    jobs = [
        (world, setting, reconstruction, seed)
        for seed in range(chosen.seeds)
        for setting in names
        for world in (BEAUTY, HETREC)
        for reconstruction in RECONSTRUCTIONS
        if (world == BEAUTY or setting in OF_HETREC)
        and (chosen.worlds / f"{world}.npz").exists()
        and (world, setting, reconstruction, seed) not in done
    ]
    if not jobs:
        sys.exit(f"nothing to run: {chosen.worlds} has no world, or {path} has every line")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(chosen.processes, mp_context=context) as pool:
        futures = [pool.submit(fitted, chosen, *job, until) for job in jobs]
        for future in as_completed(futures):
            line = future.result()
            if line is None:
                continue
            with path.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


def fitted(
    chosen: argparse.Namespace,
    world_name: str,
    setting: str,
    reconstruction: str,
    seed: int,
    until: float,
) -> dict[str, Any] | None:
    """One fit's line: tau by distance and by cosine, and relative error, of each family."""
    if time.time() > until:
        return None
    import numpy as np
    import torch

    from models.forgetting import among, forgetting
    from models.mm_rq_vae import MmRqVaeOptions
    from models.mm_rq_vae_training import fit
    from models.mme_world import MmeWorld
    from models.next_items import last_rows

    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("high")
    started = time.time()
    world, device = MmeWorld.load(chosen.worlds / f"{world_name}.npz"), torch.device(chosen.device)
    raw = {"collaborative": world.raw["collaborative_given"]} if world_name == BEAUTY else world.raw
    if world_name == HETREC:
        raw = {"collaborative": trained(world, seed, device), **raw}
    change = SETTINGS[setting]
    epochs = EPOCHS[world_name] if change.get("learning_rate", 1) else 1
    options = MmRqVaeOptions(
        **{"learning_rate": 1e-3} | change | {"epochs": epochs, "seed": seed},
        reconstruction=reconstruction,
    )
    x = {name: torch.from_numpy(table_ID[1:]) for name, table_ID in raw.items()}
    books = fit(x, options, device=device)
    test = world.next_items.held_out("test")
    everyone = np.arange(len(test.users_V))
    rows_P, lengths_V = last_rows(test.rows_P, test.lengths_V, everyone, 50)
    found: dict[str, Any] = {}
    for name, x_ND in x.items():
        book = books[name][0]
        known_I = (raw[name] != 0).any(1)
        latent_NZ = torch.zeros(len(raw[name]), options.latent_dims)
        codes_NL = book.encode(x_ND)
        latent_NZ[1:] = sum(
            level_KZ[codes_N]
            for level_KZ, codes_N in zip(book.latent.residuals, codes_NL.T, strict=True)
        )
        histories = among(known_I, rows_P, lengths_V, test.targets_V)
        spaces = (torch.from_numpy(raw[name]).to(device), latent_NZ.to(device))
        there_ND, back_ND = x_ND[known_I[1:]], book.decode(codes_NL)[known_I[1:]]
        spread = (there_ND - there_ND.mean(0)).square().sum()
        found[name] = {
            "tau": forgetting(*spaces, *histories).mean,
            "tau_cosine": forgetting(*spaces, *histories, by="cosine").mean,
            "error": float((there_ND - back_ND).square().sum() / spread),
            "ids": len(torch.unique(codes_NL[known_I[1:]], dim=0)),
            "reconstruction": books[name][1].reconstruction[-1:],
        }
    return {
        "world": world_name,
        "setting": setting,
        "reconstruction": reconstruction,
        "seed": seed,
        "epochs": epochs,
        "seconds": round(time.time() - started, 1),
        "families": found,
    }


def trained(world: Any, seed: int, device: Any) -> Any:
    """SASRec's item embeddings of the world."""
    from models.mme_collaborative import Collaborative
    from models.sasrec_training import SasRecOptions

    options = SasRecOptions(seed=seed, epochs=60)
    return Collaborative.trained(world.next_items, options, device).table_ID


def key_of(line: dict[str, Any]) -> tuple[str, str, str, int]:
    return line["world"], line["setting"], line["reconstruction"], line["seed"]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []


def table(results: Path) -> None:
    """A row a world, family and setting: means over seeds, MMD's beside MSE's."""
    shown = ("tau", "error", "ids")
    rows: dict[tuple[str, str, str], dict[str, list[list[float]]]] = {}
    for line in read(results / RESULTS_FILE):
        for family, found in line["families"].items():
            row = rows.setdefault((line["world"], family, line["setting"]), {})
            values = [float(found[name]) for name in shown]
            row.setdefault(line["reconstruction"], []).append(values)
    heads = "".join(f"{f'{name} {kind}':>12}" for name in shown for kind in RECONSTRUCTIONS)
    print(f"{'world':22}{'family':15}{'setting':40}{heads}")
    for (world, family, setting), row in sorted(rows.items()):
        means = {
            kind: [sum(values) / len(values) for values in zip(*of_kind, strict=True)]
            for kind, of_kind in row.items()
        }
        cells = "".join(
            f"{means[kind][place]:12.3f}" if kind in means else f"{'-':>12}"
            for place in range(len(shown))
            for kind in RECONSTRUCTIONS
        )
        print(f"{world:22}{family:15}{setting:40}{cells}")


if __name__ == "__main__":
    main()
