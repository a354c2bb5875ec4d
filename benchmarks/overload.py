"""What a server still answers in time when more comes than it can do.

    python benchmarks/overload.py [--quick]

One process under uvicorn, the workspace of `benchmarks/serving.py`, 500 candidates a request, an
open loop at rising rates on the same cores. Goodput: answers 200 within the deadline of 100 ms, a
second, whole or degraded as they say themselves; refusals are 503. The peak is the best goodput of
any rate; the last row doubles the rate at which it was reached. Last line JSON.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import processor, versions
from benchmarks.redis_server import redis_server
from benchmarks.serving_processes import UVICORN, server
from serving.load_client import Target
from serving.load_report import LoadReport, Objective
from serving.load_requests import rank_bodies
from serving.load_test import LoadOptions, run_load

TRACKS, USERS, CANDIDATES = 20_000, 5_000, 500
RATES = (50, 100, 200, 300, 400, 600, 800, 1000)
DEADLINE = Objective.parse("p99=100")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="4 seconds a rate instead of 20")
    parser.add_argument("--rounds", type=int, default=5, help="of the peak and twice the peak")
    given = parser.parse_args()
    seconds = 4.0 if given.quick else 20.0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from benchmarks.serving_world import build
    from ray_jobs.progress import configure_logging

    configure_logging()
    random = np.random.default_rng(0)
    users, tracks = np.arange(1, USERS + 1), np.arange(1, TRACKS + 1)
    bodies = rank_bodies(users, tracks, CANDIDATES, 1000, random)
    with redis_server() as port, tempfile.TemporaryDirectory(prefix="overload-") as name:
        workspace = build(Path(name) / "w", f"127.0.0.1:{port}", tracks=TRACKS, users=USERS)
        with server(["-c", UVICORN, workspace.root], []) as (url, _):

            def measure(rate: float) -> LoadReport:
                options = LoadOptions(
                    target=Target(url=url),
                    rate=rate,
                    seconds=seconds,
                    warm_up_s=2.0,
                    objectives=(DEADLINE,),
                )
                return run_load(options, bodies)

            reports = {float(rate): measure(float(rate)) for rate in RATES}
            best = max(reports, key=lambda rate: reports[rate].goodput)
            rounds: dict[float, list[LoadReport]] = {best: [], 2 * best: []}
            for number in range(given.rounds):
                for rate in sorted(rounds, reverse=bool(number % 2)):
                    rounds[rate].append(measure(rate))
    medians = {rate: float(np.median([one.goodput for one in own])) for rate, own in rounds.items()}
    for rate, own in rounds.items():  # shown: the round in the middle
        reports[rate] = sorted(own, key=lambda one: one.goodput)[len(own) // 2]
    show(reports)
    print(
        json.dumps(
            {
                "peak": medians[best],
                "peak_rate": best,
                "goodput_at_twice": medians[2 * best],
                "share_of_peak": round(medians[2 * best] / medians[best], 3),
                "rounds": {rate: [one.goodput for one in own] for rate, own in rounds.items()},
                "goodput": {rate: report.goodput for rate, report in reports.items()},
            }
        )
    )


def show(reports: dict[float, LoadReport]) -> None:
    table = Table(title=f"{CANDIDATES} candidates, deadline 100 ms, one process")
    columns = ("requests/s", "goodput/s", "200 p50 ms", "200 p99 ms", "503 p99 ms", "given up")
    for column in columns:
        table.add_column(column, justify="right")
    for rate, report in sorted(reports.items()):
        answered, refused = report.answers.get("200"), report.answers.get("503")
        table.add_row(
            f"{rate:g}",
            f"{report.goodput:.1f}",
            "" if answered is None else f"{answered.p50_ms:.1f}",
            "" if answered is None else f"{answered.p99_ms:.1f}",
            "" if refused is None else f"{refused.p99_ms:.1f}",
            str(sum(report.degraded.values())),
        )
    console = Console(stderr=True)
    console.print(table)
    console.print(f"{processor()}; {versions('torch', 'fastapi', 'uvicorn')}")


if __name__ == "__main__":
    main()
