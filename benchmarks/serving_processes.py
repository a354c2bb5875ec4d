"""The servers that `benchmarks/serving.py` measures, each in processes of its own."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

STARTS_WITHIN_S = 180.0
ASKED = 20
UVICORN = """
import sys
from pathlib import Path
from feature_repo.workspace import Workspace
from serving.uvicorn_server import serve_with_uvicorn
serve_with_uvicorn(Workspace(Path(sys.argv[1])), host="127.0.0.1", port=int(sys.argv[2]))
"""
RAY_SERVE = """
import sys
from pathlib import Path
from feature_repo.workspace import Workspace
from serving.deployment import serve_until_signal
workspace = Workspace(Path(sys.argv[1]))
serve_until_signal(workspace, host="127.0.0.1", port=int(sys.argv[2]), replicas=1, fast=True)
"""


@contextmanager
def server(before: list[object], after: list[str]) -> Iterator[tuple[str, psutil.Process]]:
    """`python BEFORE PORT AFTER` and its URL when it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, *map(str, before), str(port), *after]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with tempfile.TemporaryFile("w+") as said:
        started = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        process = psutil.Process(started.pid)
        give_up = time.monotonic() + STARTS_WITHIN_S
        try:
            while not answers(port):
                if started.poll() is not None or time.monotonic() > give_up:
                    said.seek(0)
                    raise SystemExit(f"no answer on port {port}:\n{said.read()[-5000:]}")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}", process
        finally:
            tree = process.children(recursive=True) if process.is_running() else []
            started.send_signal(signal.SIGTERM)
            _, left = psutil.wait_procs(tree, timeout=30)
            for one in left:  # Ray's, and only those that this server started
                one.kill()
            started.wait()


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def scores_of(url: str, token: str, body: bytes) -> dict[int, float]:
    """The score of each track of one answer that gave nothing up; a cold server's first may."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    for _ in range(ASKED):
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
        connection.request("POST", "/v1/rank", body, headers)
        answer = json.loads(connection.getresponse().read())
        connection.close()
        if not answer.get("error") and not answer.get("degraded"):
            return {result["track_id"]: result["score"] for result in answer["results"]}
    raise SystemExit(f"{url} gave no full answer to one request alone: {str(answer)[:300]}")


def cpu_s(process: psutil.Process) -> float:
    """Of the process and those that it started."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        try:
            total += sum(one.cpu_times()[:2])
        except psutil.NoSuchProcess:
            continue
    return total
