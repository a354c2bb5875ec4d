"""Ranking over HTTP, ours against the plain way of building it, in one run.

    python benchmarks/serving.py [--quick] [--ray]

Both serve the same model, users and tracks (`benchmarks/serving_world.py`) and must give the same
scores. `ours` is the release as `crescendo serve` loads it, on packed Redis rows; `plain` is
`benchmarks/serving_peer.py`: Feast's `get_online_features` on its own Redis store, the torch model
on padded rows. By default both run under uvicorn; --ray adds ours under Ray Serve with its fast
settings, and the plain way under Ray Serve as it comes, which is then what ours is compared with
(on a machine that others reach, run it inside a network namespace: Ray listens everywhere).

`empty` is GET /healthz; `clients` wait for their answers; `open` and `common` are the open loop of
`crescendo load-test`, on the same cores. `common` is a rate that the plain way can sustain, half of
what one client gets of it: there its p99 is compared (ours over plain's), since at 100 a second its
queue only grows. CPU is that of the server's processes; `model` is the release's scoring alone. The
last line is one JSON object.
"""

import argparse
import http.client
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import processor, versions
from benchmarks.redis_server import redis_server
from benchmarks.serving_processes import (
    RAY_SERVE,
    UVICORN,
    cpu_s,
    scores_of,
    server,
)
from feature_repo.workspace import Workspace
from serving.load_client import Target
from serving.load_report import LoadReport
from serving.load_requests import rank_bodies
from serving.load_test import LoadOptions, run_closed, run_load
from serving.tokens import MAX_REQUESTS_PER_S, create_token

TRACKS, USERS = 20_000, 5_000
CANDIDATES = (500, 1000)
RATE = 100.0
CHECKED = 5
TIMEOUT_S = 60.0
"""The plain way with sixteen clients may need ten seconds on a busy machine."""

Found = dict[str, dict[str, Any]]
"""Figures by name, by contender."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """How long each measurement lasts, seconds."""

    closed_s: float
    open_s: float
    warm_up_s: float
    calls: int
    """Of the model, and of the empty request."""


FULL = Lengths(closed_s=20.0, open_s=120.0, warm_up_s=5.0, calls=2000)
QUICK = Lengths(closed_s=4.0, open_s=4.0, warm_up_s=1.0, calls=200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="shorter runs: within a minute")
    parser.add_argument("--ray", action="store_true", help="also under Ray Serve")
    given = parser.parse_args()
    lengths = QUICK if given.quick else FULL
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from benchmarks.serving_world import build, stock_store
    from ray_jobs.progress import configure_logging

    configure_logging()

    with redis_server() as redis_port, tempfile.TemporaryDirectory(prefix="serving-") as name:
        address = f"127.0.0.1:{redis_port}"
        workspace = build(Path(name) / "ours", address, tracks=TRACKS, users=USERS)
        repository = Path(name) / "stock"
        stock_store(repository, f"{address},db=1", workspace, USERS)
        bodies = {count: requests(count) for count in CANDIDATES}
        peer = [str(Path(__file__).with_name("serving_peer.py"))]
        starts = {
            "plain, uvicorn": ([*peer, workspace.root, repository], []),
            "ours, uvicorn": (["-c", UVICORN, workspace.root], []),
        }
        if given.ray:
            starts["plain, Ray Serve"] = ([*peer, workspace.root, repository], ["--ray"])
            starts["ours, Ray Serve"] = (["-c", RAY_SERVE, workspace.root], [])
        # With the fast settings HAProxy listens everywhere, and ours does not start without one.
        token = create_token(
            workspace, name="benchmark", scopes=["rank"], requests_per_s=MAX_REQUESTS_PER_S
        )["token"]
        model_ms = model_times(workspace, lengths.calls)
        found: Found = {}
        scores: dict[str, list[dict[int, float]]] = {}
        common_rate = RATE
        for label, (before, after) in starts.items():
            with server(before, after) as (url, process):
                target = Target(url=url, token=token, timeout_s=TIMEOUT_S)
                scores[label] = [scores_of(url, token, body) for body in bodies[500][:CHECKED]]
                measured = closed_loops(target, process, bodies[500], lengths)
                if label.startswith("plain"):
                    common_rate = min(RATE, measured["clients_1_per_s"] / 2)
                loops = [("common", common_rate, 500)]
                if label.startswith("ours"):
                    loops += [(f"open_{count}", RATE, count) for count in CANDIDATES]
                for prefix, rate, count in loops:
                    report = open_loop(target, bodies[count], rate, lengths)
                    measured |= figures(prefix, rate, report)
                found[label] = measured
    same = same_scores(scores)
    answer = summary(found, model_ms, same, "Ray Serve" if given.ray else "uvicorn")
    show(found, answer)
    print(json.dumps({**answer, **{name.replace(", ", "_"): row for name, row in found.items()}}))
    if not same:
        raise SystemExit("the contenders' scores differ by more than 1e-5")


def requests(candidates: int) -> list[bytes]:
    random = np.random.default_rng(candidates)
    users, tracks = np.arange(1, USERS + 1), np.arange(1, TRACKS + 1)
    return rank_bodies(users, tracks, candidates, 1000, random)


def same_scores(scores: dict[str, list[dict[int, float]]]) -> bool:
    first, *others = scores.values()
    return all(
        a.keys() == b.keys() and all(abs(a[track] - b[track]) <= 1e-5 for track in a)
        for other in others
        for a, b in zip(first, other, strict=True)
    )


def closed_loops(
    target: Target, process: psutil.Process, bodies: list[bytes], lengths: Lengths
) -> dict[str, float]:
    """The empty request; one client and sixteen, with the server's CPU for a request."""
    connection = http.client.HTTPConnection(target.url.removeprefix("http://"))

    def empty() -> None:
        connection.request("GET", "/healthz")
        connection.getresponse().read()

    found = {"empty_ms": float(np.median(times_ms(empty, lengths.calls)))}
    connection.close()
    for clients in (1, 16):
        begun_s = cpu_s(process)
        report = run_closed(
            target, bodies, clients=clients, seconds=lengths.closed_s, warm_up_s=0.5
        )
        cpu_ms = 1e3 * (cpu_s(process) - begun_s) / report.requests
        found[f"clients_{clients}_per_s"] = report.answers_per_s
        found[f"clients_{clients}_p50_ms"] = report.p50_ms
        found[f"clients_{clients}_p99_ms"] = report.p99_ms
        found[f"clients_{clients}_cpu_ms"] = cpu_ms
        found[f"clients_{clients}_degraded"] = report.degraded
        found[f"clients_{clients}_errors"] = report.errors
    return found


def open_loop(target: Target, bodies: list[bytes], rate: float, lengths: Lengths) -> LoadReport:
    options = LoadOptions(
        target=target, rate=rate, seconds=lengths.open_s, warm_up_s=lengths.warm_up_s
    )
    return run_load(options, bodies)


def figures(prefix: str, rate: float, report: LoadReport) -> dict[str, float | None]:
    answered = report.answers.get("200")
    at_most = report.percentiles["p99"].at_most_ms
    if answered is None:
        raise SystemExit(f"no request was answered at {rate:.1f} a second: {report.answers}")
    return {
        f"{prefix}_rate": round(rate, 2),
        f"{prefix}_p50_ms": answered.p50_ms,
        f"{prefix}_p99_ms": answered.p99_ms,
        f"{prefix}_p99_at_most_ms": at_most,
        f"{prefix}_errors": report.errors,
        f"{prefix}_degraded": sum(report.degraded.values()),
        f"{prefix}_client_cpu_ms": report.client_cpu_ms,
        f"{prefix}_sent_late_p99_ms": report.sent_late_p99_ms,
    }


def model_times(workspace: Workspace, calls: int) -> dict[int, float]:
    """Median milliseconds of scoring so many candidates, in one thread and nothing else."""
    import torch

    from serving.ranker import ReleaseRanker
    from serving.releases import live_release

    torch.set_num_threads(1)
    ranker = ReleaseRanker(workspace, live_release(workspace))
    random = np.random.default_rng(0)
    users = ranker.user_rows.read(random.integers(1, USERS + 1, 100).tolist())
    found = {}
    for count in CANDIDATES:
        drawn = [
            np.sort(random.choice(ranker.items.track_ids_I, count, replace=False)) for _ in users
        ]
        turns = iter(range(calls + 1))

        def score(drawn: list[np.ndarray] = drawn, turns: Iterator[int] = turns) -> None:
            turn = next(turns) % len(users)
            ranker.score(users[turn], drawn[turn], time.time_ns() // 1000)

        score()
        found[count] = float(np.median(times_ms(score, calls)))
    return found


def times_ms(call: Callable[[], None], calls: int) -> list[float]:
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - began))
    return times


def summary(found: Found, model_ms: dict[int, float], same: bool, under: str) -> dict[str, object]:
    """What is promised, of ours and the plain way under the same server."""
    ours, plain = found[f"ours, {under}"], found[f"plain, {under}"]
    most_ours, most_plain = (
        max(row["clients_1_per_s"], row["clients_16_per_s"]) for row in (ours, plain)
    )
    # "at most 2x the model's own time plus Ray Serve's own empty-request time"
    limit_ms = 2 * model_ms[500] + ours["empty_ms"]
    return {
        "under": under,
        "throughput_ratio": round(most_ours / most_plain, 2),
        "p99_ratio": round(ours["common_p99_ms"] / plain["common_p99_ms"], 4),
        "cpu_ratio": round(plain["clients_16_cpu_ms"] / ours["clients_16_cpu_ms"], 2),
        "p50_ms": ours["open_500_p50_ms"],
        "p99_ms": ours["open_500_p99_ms"],
        "p99_1000_ms": ours["open_1000_p99_ms"],
        "model_500_ms": round(model_ms[500], 3),
        "model_1000_ms": round(model_ms[1000], 3),
        "share_of_limit": round(ours["open_500_p50_ms"] / limit_ms, 2),
        "same_scores": same,
    }


def show(found: Found, answer: dict[str, object]) -> None:
    table = Table(title=f"{TRACKS:,} tracks, {USERS:,} users, history 50, MCCA d' = 64")
    table.add_column("")
    for label in found:
        table.add_column(label, justify="right")
    for name in next(row for label, row in found.items() if label.startswith("ours")):
        values = [row.get(name) for row in found.values()]
        table.add_row(
            name.replace("_", " "), *("" if value is None else f"{value:,.2f}" for value in values)
        )
    console = Console(width=110)
    console.print(table)
    console.print(", ".join(f"{name} {value}" for name, value in answer.items()))
    console.print(
        f"{processor()}; {versions('torch', 'feast', 'ray', 'fastapi', 'uvicorn')}; "
        "p50 and p99 as seen in these runs; load average "
        f"{os.getloadavg()[0]:.1f} at the end"
    )


if __name__ == "__main__":
    main()
