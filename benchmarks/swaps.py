"""What a change of the live release costs those who ask meanwhile, and how soon it is there.

    python benchmarks/swaps.py [--quick]

One process under uvicorn, the workspace of `benchmarks/serving.py` with two models, an open loop of
500 candidates a request on the same cores: first with nothing else, then while the live release
changes to and fro. Printed: waiting times of both, failed requests, and seconds from the change of
`releases/CURRENT` to the first answer that names the new release (loaded, warmed up and checked in
between). Last line JSON.
"""

import argparse
import http.client
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import processor, versions
from benchmarks.redis_server import redis_server
from benchmarks.serving_processes import UVICORN, server
from feature_repo.workspace import Workspace
from serving.load_client import Target
from serving.load_report import LoadReport
from serving.load_requests import rank_bodies
from serving.load_test import LoadOptions, run_load

TRACKS, USERS, CANDIDATES = 100_000, 5_000, 500
RATE = 50.0
LOOK_S = 0.05
SWAPPED_WITHIN_S = 60.0


def swap_to(workspace: Workspace, url: str, model_id: str) -> float:
    """Makes the model's release live; seconds until the server says that it serves it."""
    from serving.releases import make_release

    release = make_release(workspace, model_id)["release_id"]
    began = time.monotonic()
    while time.monotonic() - began < SWAPPED_WITHIN_S:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
        connection.request("GET", "/readyz")
        live = json.loads(connection.getresponse().read())["release_id"]
        connection.close()
        if live == release:
            return time.monotonic() - began
        time.sleep(LOOK_S)
    raise SystemExit(f"{url} does not serve {release} after {SWAPPED_WITHIN_S:g} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="15 seconds a phase instead of 60")
    seconds = 15.0 if parser.parse_args().quick else 60.0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from benchmarks.serving_world import build
    from ray_jobs.progress import configure_logging

    configure_logging()
    bodies = rank_bodies(
        np.arange(1, USERS + 1),
        np.arange(1, TRACKS + 1),
        CANDIDATES,
        1000,
        np.random.default_rng(0),
    )
    took: list[float] = []
    with redis_server() as port, tempfile.TemporaryDirectory(prefix="swaps-") as name:
        workspace = build(
            Path(name) / "w", f"127.0.0.1:{port}", tracks=TRACKS, users=USERS, models=2
        )
        model_ids = sorted(path.name for path in workspace.models.iterdir())
        with server(["-c", UVICORN, workspace.root], []) as (url, _):
            options = LoadOptions(target=Target(url=url), rate=RATE, seconds=seconds, warm_up_s=3)
            quiet = run_load(options, bodies)
            ended = threading.Event()

            def swap_on() -> None:
                while not ended.is_set():
                    took.append(swap_to(workspace, url, model_ids[len(took) % 2]))

            swapper = threading.Thread(target=swap_on)
            swapper.start()
            swapping = run_load(options, bodies)
            ended.set()
            swapper.join()
    show({"no swap": quiet, f"{len(took)} swaps": swapping}, took)


def show(reports: dict[str, LoadReport], took: list[float]) -> None:
    table = Table(title=f"{CANDIDATES} candidates, {RATE:g} requests/s, {TRACKS:,} tracks")
    for column in ("", "p50 ms", "p99 ms", "max ms", "failed", "releases seen"):
        table.add_column(column, justify="right")
    answer: dict[str, object] = {"swaps": len(took), "swap_s": round(statistics.median(took), 2)}
    for name, report in reports.items():
        answers = report.answers["200"]
        times = [f"{ms:.1f}" for ms in (answers.p50_ms, answers.p99_ms, answers.max_ms)]
        table.add_row(name, *times, str(report.errors), str(len(report.releases)))
        key = "quiet" if name == "no swap" else "swapping"
        answer |= {f"{key}_p50_ms": answers.p50_ms, f"{key}_p99_ms": answers.p99_ms}
        answer[f"{key}_failed"] = report.errors
    console = Console(stderr=True)
    console.print(table)
    console.print(
        f"from CURRENT to serving: median {statistics.median(took):.2f} s, "
        f"longest {max(took):.2f} s"
    )
    console.print(f"{processor()}; {versions('torch', 'fastapi', 'uvicorn')}")
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
