"""The same rankings over HTTP and over gRPC, from one process, in turns.

    python benchmarks/serving_grpc.py [--quick]

Closed loops of one and of eight clients with 500, 1,000 and 2,000 candidates. The client shares the
cores, so it comes in two pairs: `h2load http` and `h2load grpc` are one program, written in C,
which sends one request again and again and does not look into the answers (Debian's
nghttp2-client); `httpx` and `grpcio` are what a Python caller has, and read them. Eight clients are
eight connections over HTTP and eight calls at once on one over gRPC, as each is used. CPU is the
server's for a request, all of its threads. Prints a table; the last line is one JSON object, with
the ratios of each pair: the median of those of its turns.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import processor, versions
from benchmarks.serving import TRACKS, USERS, requests
from benchmarks.serving_processes import cpu_s, server
from serving.grpc_calls import METHOD, frame
from serving.ranking_pb2 import RankRequest, RankResponse

CLIENTS = (1, 8)
CANDIDATES = (500, 1000, 2000)
LEAST_BYTES = 5
"""Of an answer for each candidate: a track id of one byte, a score of four."""
PATIENT_MS = 60_000
"""Longer than any answer takes: what is compared is whole answers."""
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
PATIENT = PressureOptions(deadline_ms=float(sys.argv[4]), read_budget_ms=float(sys.argv[4]) / 2)
workspace, metrics = Workspace(Path(sys.argv[1])), ServingMetrics()
def load(release):
    ranker = ReleaseRanker(workspace, release)
    metrics.loaded(ranker)
    return ranker
live, access = LiveReleases(workspace, load), Access(workspace)
live.start()
service = RankingService(live, metrics, PATIENT, RequestLog(RequestLogOptions()))
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
    if shutil.which("h2load") is None:
        raise SystemExit("h2load is not there: apt-get install nghttp2-client")
    turns, seconds = (5, 1) if quick else (9, 4)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from benchmarks.redis_server import redis_server
    from benchmarks.serving_world import build
    from ray_jobs.progress import configure_logging

    configure_logging()
    found: dict[str, list[dict[str, float]]] = {}
    with redis_server() as redis_port, tempfile.TemporaryDirectory(prefix="serving-") as name:
        workspace = build(
            Path(name) / "ours", f"127.0.0.1:{redis_port}", tracks=TRACKS, users=USERS
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            grpc_port = free.getsockname()[1]
        before: list[object] = ["-c", BOTH, workspace.root, grpc_port]
        with server(before, [str(PATIENT_MS)]) as (url, process):
            for candidates in CANDIDATES:
                bodies = requests(candidates)
                for clients in CLIENTS:
                    for _ in range(turns):
                        for name, row in (
                            ("h2load http", h2load_http(url, bodies, clients, seconds, process)),
                            (
                                "h2load grpc",
                                h2load_grpc(grpc_port, bodies, clients, seconds, process),
                            ),
                            ("httpx", httpx_loop(url, bodies, clients, seconds, process)),
                            ("grpcio", grpc_loop(grpc_port, bodies, clients, seconds, process)),
                        ):
                            found.setdefault(f"{name}_{clients}_{candidates}", []).append(row)
    medians = {
        name: {key: round(float(np.median([row[key] for row in rows])), 3) for key in rows[0]}
        for name, rows in found.items()
    }
    answer: dict[str, Any] = {
        f"{over_grpc}_over_{over_http}_{key}_{clients}_{candidates}".replace(" ", "_"): round(
            ratio(
                found[f"{over_grpc}_{clients}_{candidates}"],
                found[f"{over_http}_{clients}_{candidates}"],
                key,
            ),
            3,
        )
        for candidates in CANDIDATES
        for clients in CLIENTS
        for over_http, over_grpc in (("h2load http", "h2load grpc"), ("httpx", "grpcio"))
        for key in ("per_s", "cpu_ms")
    }
    table = Table(title="Closed loop")
    for heading in ("", "clients", "candidates", "a second", "server CPU ms"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, row in medians.items():
        table.add_row(*name.split("_"), *(f"{value:,.2f}" for value in row.values()))
    console = Console(width=100)
    console.print(table)
    used = versions("grpcio", "protobuf", "h2corn", "fastapi", "uvicorn", "httpx")
    console.print(f"{processor()}; {used}; {h2load_version()}")
    print(json.dumps({**answer, **medians}))


def ratio(ours: list[dict[str, float]], others: list[dict[str, float]], key: str) -> float:
    """Each turn's are of the same seconds of the machine."""
    return float(np.median([a[key] / b[key] for a, b in zip(ours, others, strict=True)]))


def h2load_version() -> str:
    return subprocess.run(["h2load", "--version"], capture_output=True, text=True).stdout.strip()


def h2load_http(
    url: str, bodies: list[bytes], clients: int, seconds: int, process: psutil.Process
) -> dict[str, float]:
    how = ["--h1", "--clients", str(clients), "--header", "content-type: application/json"]
    return h2load([*how, f"{url}/v1/rank"], bodies[0], bodies[0], seconds, process)


def h2load_grpc(
    port: int, bodies: list[bytes], clients: int, seconds: int, process: psutil.Process
) -> dict[str, float]:
    how = ["--max-concurrent-streams", str(clients), "--header", "te: trailers"]
    how += ["--header", "content-type: application/grpc", f"http://127.0.0.1:{port}{METHOD}"]
    return h2load(how, frame(message(bodies[0])), bodies[0], seconds, process)


def h2load(
    how: list[str], sent: bytes, body: bytes, seconds: int, process: psutil.Process
) -> dict[str, float]:
    """One request, `sent`, again and again; `body` is the same as HTTP has it."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(sent)
        file.flush()
        begun_s = cpu_s(process)
        said = subprocess.run(
            ["h2load", "--duration", str(seconds), "--data", file.name, *how],
            capture_output=True,
            text=True,
        ).stdout
    statuses = re.search(r"status codes: (\d+) 2xx, 0 3xx, 0 4xx, 0 5xx", said)
    ends = re.search(r"0 failed, 0 errored, 0 timeout", said)
    received = re.search(r"\((\d+)\) data", said)
    if not (statuses and ends and received and int(statuses[1])):
        raise SystemExit(f"h2load did not get every answer:\n{said}")
    answers = int(statuses[1])
    # gRPC tells a failure behind status 200, without a message.
    if int(received[1]) < answers * LEAST_BYTES * len(json.loads(body)["candidates"]):
        raise SystemExit(f"h2load got other answers than whole ones:\n{said}")
    return {"per_s": answers / seconds, "cpu_ms": 1e3 * (cpu_s(process) - begun_s) / answers}


def message(body: bytes) -> bytes:
    """The same request as gRPC has it."""
    return bytes(RankRequest(**json.loads(body)).SerializeToString())


def httpx_loop(
    url: str, bodies: list[bytes], clients: int, seconds: float, process: psutil.Process
) -> dict[str, float]:
    headers = {"content-type": "application/json"}

    async def run() -> dict[str, float]:
        async with httpx.AsyncClient(timeout=60) as client:

            async def ask(number: int) -> bool:
                answer = await client.post(
                    f"{url}/v1/rank", content=bodies[number % len(bodies)], headers=headers
                )
                return answer.status_code == 200 and not answer.json()["degraded"]

            return await closed_loop(ask, clients, seconds, process)

    return asyncio.run(run())


def grpc_loop(
    port: int, bodies: list[bytes], clients: int, seconds: float, process: psutil.Process
) -> dict[str, float]:
    messages = [message(body) for body in bodies]

    async def run() -> dict[str, float]:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            rank = channel.unary_unary(METHOD)

            async def ask(number: int) -> bool:
                try:
                    sent = messages[number % len(messages)]
                    answer = RankResponse.FromString(await rank(sent))
                except grpc.RpcError:
                    return False
                return not answer.degraded

            return await closed_loop(ask, clients, seconds, process)

    return asyncio.run(run())


async def closed_loop(
    ask: Callable[[int], Awaitable[bool]], clients: int, seconds: float, process: psutil.Process
) -> dict[str, float]:
    """`ask` says whether the answer was a whole one; only those count."""
    whole = others = 0

    async def one_client(number: int) -> None:
        nonlocal whole, others
        while time.perf_counter() < until:
            if await ask(number):
                whole += 1
            else:
                others += 1
            number += clients

    await ask(0)  # connects
    begun_s, since = cpu_s(process), time.perf_counter()
    until = since + seconds
    await asyncio.gather(*(one_client(number) for number in range(clients)))
    if not whole:
        raise SystemExit(f"none of {others} answers was a whole one")
    return {
        "per_s": whole / (time.perf_counter() - since),
        "cpu_ms": 1e3 * (cpu_s(process) - begun_s) / (whole + others),
    }


if __name__ == "__main__":
    main()
