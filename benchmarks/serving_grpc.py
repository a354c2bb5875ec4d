"""The same rankings over HTTP and over gRPC, from one process, in turns.

    python benchmarks/serving_grpc.py [--quick]

Closed loops of one and of eight clients with 500 candidates. CPU is the server's for a request, all
of its threads; it does not depend on what either client costs, of which gRPC's, a library, costs
more. Prints a table; the last line is one JSON object.
"""

import argparse
import asyncio
import json
import os
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import processor, versions
from benchmarks.serving import TRACKS, USERS, requests
from benchmarks.serving_processes import cpu_s, server
from serving.load_client import Target
from serving.load_test import run_closed
from serving.ranking_pb2 import RankRequest, RankResponse

CLIENTS = (1, 8)
BOTH = """
import asyncio, sys
from contextlib import asynccontextmanager
from pathlib import Path
import torch, uvicorn
from feature_repo.workspace import Workspace
from serving.access import Access
from serving.app import create_app
from serving.deployment import load_events
from serving.grpc_server import GrpcOptions, grpc_server
from serving.live_releases import LiveReleases
from serving.metrics import ServingMetrics
from serving.pressure import PressureOptions
from serving.ranker import ReleaseRanker
from serving.ranking_service import RankingService
from serving.request_log import RequestLog, RequestLogOptions
torch.set_num_threads(1)
workspace, metrics = Workspace(Path(sys.argv[1])), ServingMetrics()
def load(release):
    ranker = ReleaseRanker(workspace, release)
    metrics.loaded(ranker)
    return ranker
live, access = LiveReleases(workspace, load), Access(workspace)
live.start()
service = RankingService(live, metrics, PressureOptions(), RequestLog(RequestLogOptions()))
app = create_app(service, load_events(workspace, metrics.took_events), access)
async def serve():
    options = GrpcOptions(host="127.0.0.1", port=int(sys.argv[2]))
    config = uvicorn.Config(app, port=int(sys.argv[3]), access_log=False, log_level="warning")
    async with grpc_server(service, access, options):
        await uvicorn.Server(config).serve()
import uvloop
uvloop.run(serve())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="shorter runs")
    quick = parser.parse_args().quick
    turns, seconds = (2, 3.0) if quick else (5, 20.0)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from benchmarks.redis_server import redis_server
    from benchmarks.serving_world import build
    from ray_jobs.progress import configure_logging

    configure_logging()
    bodies = requests(500)
    messages = [RankRequest(**json.loads(body)).SerializeToString() for body in bodies]
    found: dict[str, list[dict[str, float]]] = {}
    with redis_server() as redis_port, tempfile.TemporaryDirectory(prefix="serving-") as name:
        workspace = build(
            Path(name) / "ours", f"127.0.0.1:{redis_port}", tracks=TRACKS, users=USERS
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            grpc_port = free.getsockname()[1]
        with server(["-c", BOTH, workspace.root, grpc_port], []) as (url, process):
            for clients in CLIENTS:
                for _ in range(turns):
                    begun_s = cpu_s(process)
                    http = run_closed(
                        Target(url=url), bodies, clients=clients, seconds=seconds, warm_up_s=0
                    )
                    if http.p50_ms is None:
                        raise SystemExit(f"no full answer to {clients} clients: {http}")
                    own = {"per_s": http.answers_per_s, "p50_ms": http.p50_ms}
                    own["cpu_ms"] = 1e3 * (cpu_s(process) - begun_s) / http.requests
                    found.setdefault(f"http_{clients}", []).append(own)
                    over_grpc = asyncio.run(
                        grpc_loop(grpc_port, messages, clients, seconds, process)
                    )
                    found.setdefault(f"grpc_{clients}", []).append(over_grpc)
    medians = {
        name: {key: round(float(np.median([row[key] for row in rows])), 3) for key in rows[0]}
        for name, rows in found.items()
    }
    answer: dict[str, Any] = {
        f"grpc_over_http_{key}_{clients}": round(
            medians[f"grpc_{clients}"][key] / medians[f"http_{clients}"][key], 3
        )
        for clients in CLIENTS
        for key in ("per_s", "p50_ms", "cpu_ms")
    }
    table = Table(title="500 candidates, closed loop")
    for heading in ("", "a second", "p50 ms", "server CPU ms"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, row in medians.items():
        table.add_row(name.replace("_", ", clients "), *(f"{value:,.2f}" for value in row.values()))
    console = Console(width=100)
    console.print(table)
    console.print(f"{processor()}; {versions('grpcio', 'protobuf', 'fastapi', 'uvicorn')}")
    print(json.dumps({**answer, **medians}))


async def grpc_loop(
    port: int, messages: list[bytes], clients: int, seconds: float, process: psutil.Process
) -> dict[str, float]:
    latencies_s: list[float] = []
    others = 0
    until = time.perf_counter() + seconds
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        rank = channel.unary_unary("/crescendo.v1.Ranking/Rank")

        async def one_client(number: int) -> None:
            nonlocal others
            while (sent := time.perf_counter()) < until:
                try:
                    answer = RankResponse.FromString(await rank(messages[number % len(messages)]))
                except grpc.RpcError:
                    others += 1
                    continue
                if answer.degraded:
                    others += 1
                else:
                    latencies_s.append(time.perf_counter() - sent)
                number += clients

        begun_s = cpu_s(process)
        await asyncio.gather(*(one_client(number) for number in range(clients)))
        count = len(latencies_s) + others
        return {
            "per_s": len(latencies_s) / seconds,
            "p50_ms": 1e3 * float(np.median(latencies_s)),
            "cpu_ms": 1e3 * (cpu_s(process) - begun_s) / count,
        }


if __name__ == "__main__":
    main()
