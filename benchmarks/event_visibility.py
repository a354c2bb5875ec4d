"""How soon a live event is seen by the next ranking, at a steady rate of events.

    python benchmarks/event_visibility.py [--rate 200] [--seconds 60] [--quick]

The real application on uvicorn, a small release trained for it, its online rows first in Redis,
then in SQLite (--quick: 5 s on Redis). Events come by a Poisson process, one a request, whether
earlier ones are answered or not, each the first listen of a new user. From the moment at which it
was due until a ranking that was asked for after its answer knows the user: that is the time
measured, client, HTTP, journal, store and scoring included. A ranking that does not know the user
yet, or that an overloaded server refuses, is asked for again after 20 ms, then 40, ... 640 ms. At
the end the journal is folded and counted: `lost` are events that were answered and are not in the
log.

The client shares the machine, so it is made cheap, and its share of a core is printed beside the
server's. `server_cpu_ms` is the server's time for an event and the rankings after it,
`ranking_cpu_ms` that of a ranking alone, and `event_cpu_ms` what is left. The last line is one
JSON object.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import psutil
import yaml
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # for tests.trained

from benchmarks.machine import processor, versions
from benchmarks.redis_server import free_port, redis_server
from feature_repo.event_journal import fold
from feature_repo.workspace import Workspace

WARM_UP = 50
FIRST_USER = 1_000_000
CANDIDATES = list(range(1, 31))
GIVE_UP_S = 10.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 0.64
RANKINGS_ALONE = 200
STARTS_WITHIN_S = 120.0
SERVER = """
import sys
from pathlib import Path
import uvicorn
from feature_repo.workspace import Workspace
from serving.deployment import load_app
workspace = Workspace(Path(sys.argv[1]))
app = load_app(workspace)
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=200.0, help="events a second")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each run")
    parser.add_argument("--quick", action="store_true", help="5 seconds, Redis alone")
    options = parser.parse_args()
    seconds = 5.0 if options.quick else options.seconds
    stores = ["redis"] if options.quick else ["redis", "sqlite"]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    result: dict[str, object] = {"rate": options.rate, "seconds": seconds}
    with tempfile.TemporaryDirectory(prefix="visibility-") as folder:
        trained = release_of_its_own(Path(folder) / "trained")
        for store in stores:
            result[store] = measured(trained, store, options.rate, seconds)
    show(result, stores)
    print(json.dumps(result))


def release_of_its_own(folder: Path) -> Workspace:
    """A small published workspace with a live release."""
    from serving.releases import make_release
    from tests.trained import published_workspace, train_small

    write_settings(folder, packed_sqlite())
    workspace = published_workspace(folder)
    train_small(workspace, epochs=1)
    make_release(workspace)
    return workspace


def packed_sqlite() -> dict[str, str]:
    from feature_repo.store_settings import PACKED_SQLITE

    return {"type": PACKED_SQLITE, "path": "online.db"}


def write_settings(folder: Path, online_store: dict[str, str]) -> None:
    from feature_repo.store_settings import ASOF, STORE_SETTINGS

    folder.mkdir(parents=True, exist_ok=True)
    stores = {"online_store": online_store, "offline_store": {"type": ASOF}}
    (folder / "feature_store.yaml").write_text(yaml.safe_dump({**STORE_SETTINGS, **stores}))


def measured(trained: Workspace, store: str, rate: float, seconds: float) -> dict[str, object]:
    from feature_repo.store_settings import PACKED_REDIS
    from ray_jobs.publish import publish
    from serving.releases import make_release

    workspace = Workspace(trained.root.with_name(store))
    shutil.copytree(trained.root, workspace.root)
    with redis_server() as redis_port:
        online = {"type": PACKED_REDIS, "connection_string": f"127.0.0.1:{redis_port}"}
        write_settings(workspace.root, online if store == "redis" else packed_sqlite())
        publish(workspace)
        make_release(workspace)
        with server(workspace) as (port, process):
            client = Client(port)
            asyncio.run(client.run(rate, seconds, process))
        folded = fold(workspace)
    events = len(client.times) + client.unseen
    seen = np.array(client.times).reshape(-1, 2) * 1000
    return {
        "events": events,
        "lost": WARM_UP + events - folded,
        "unseen": client.unseen,
        "refused": client.refused,
        **{f"answered_p{p}_ms": round(float(np.percentile(seen[:, 0], p)), 1) for p in (50, 95)},
        **{f"visible_p{p}_ms": round(float(np.percentile(seen[:, 1], p)), 1) for p in (50, 95, 99)},
        **client.costs(),
    }


class Client:
    """Sends the events of one run and asks for rankings, over connections that stay open.

    HTTP/1.1 by hand, and a head with a Content-Length is all that it reads: a whole client
    library costs more than the server that is measured.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._cpu_s: Counter[str] = Counter()
        self._rankings = 0
        self.times: list[tuple[float, float]] = []
        """Seconds from its due time until the answer, and until the user is known, of an event."""
        self.unseen = self.refused = 0

    async def run(self, rate: float, seconds: float, server: psutil.Process) -> None:
        random = np.random.default_rng(0)
        due = np.cumsum(random.exponential(1 / rate, int(rate * seconds)))
        await asyncio.gather(*(self._event(n, 0.0) for n in range(-WARM_UP, 0)))
        self.times, self._rankings, self.refused = [], 0, 0
        with self._counted(server, "run"):
            started = time.perf_counter()
            tasks = []
            for number, at in enumerate(due):
                await asyncio.sleep(max(0.0, started + at - time.perf_counter()))
                tasks.append(asyncio.create_task(self._event(number, started + at)))
            await asyncio.gather(*tasks)
        with self._counted(server, "rankings"):
            for number in range(RANKINGS_ALONE):
                await self._knows(FIRST_USER + number)

    async def _event(self, number: int, due: float) -> None:
        user = FIRST_USER + number
        event = {
            "event_id": 2**62 + number,
            "user_id": user,
            "track_id": CANDIDATES[number % len(CANDIDATES)],
            "event_timestamp": datetime.now(UTC).isoformat(),
            "action": "play",
        }
        status, answer = await self._post("/v1/events", {"events": [event]})
        assert (status, answer.get("rejected")) == (200, 0), answer
        answered = time.perf_counter()
        pause = FIRST_PAUSE_S
        while time.perf_counter() < answered + GIVE_UP_S:
            self._rankings += 1
            if await self._knows(user):
                self.times.append((answered - due, time.perf_counter() - due))
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
        self.unseen += 1

    async def _knows(self, user: int) -> bool:
        request = {"user_id": user, "candidates": CANDIDATES}
        status, answer = await self._post("/v1/rank", request)
        self.refused += status == 503
        assert status in (200, 503), answer
        return status == 200 and not answer["missing"]["user"]

    async def _post(self, path: str, request: dict) -> tuple[int, dict]:
        """Status and answer; asked again where the connection was lost, which both routes allow."""
        body = json.dumps(request).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        while True:
            if not self._idle:
                self._idle.append(await asyncio.open_connection("127.0.0.1", self._port))
            reader, writer = self._idle.pop()
            try:
                writer.write(head.encode() + body)
                status, *fields = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                size = dict(field.lower().split(": ", 1) for field in fields if field)
                answer = await reader.readexactly(int(size["content-length"]))
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()
                continue
            self._idle.append((reader, writer))
            return int(status.split()[1]), json.loads(answer)

    @contextmanager
    def _counted(self, server: psutil.Process, part: str):
        """Adds up the time of the block, and the CPU time of both processes, in seconds."""
        begun = time.perf_counter(), time.process_time(), sum(server.cpu_times()[:2])
        yield
        ended = time.perf_counter(), time.process_time(), sum(server.cpu_times()[:2])
        for name, a, b in zip(("wall", "client", "server"), begun, ended, strict=True):
            self._cpu_s[f"{part} {name}"] = b - a

    def costs(self) -> dict[str, float]:
        wall_s, events = self._cpu_s["run wall"], len(self.times) + self.unseen
        server_ms = self._cpu_s["run server"] / events * 1000
        ranking_ms = self._cpu_s["rankings server"] / RANKINGS_ALONE * 1000
        rankings = self._rankings / events
        return {
            "rankings_an_event": round(rankings, 3),
            "server_cpu_ms": round(server_ms, 2),
            "ranking_cpu_ms": round(ranking_ms, 2),
            "event_cpu_ms": round(server_ms - rankings * ranking_ms, 2),
            "server_cores": round(self._cpu_s["run server"] / wall_s, 2),
            "client_cores": round(self._cpu_s["run client"] / wall_s, 2),
        }


@contextmanager
def server(workspace: Workspace):
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(workspace.root), str(port)])
    url = f"http://127.0.0.1:{port}"
    give_up = time.monotonic() + STARTS_WITHIN_S
    try:
        while True:
            try:
                httpx.get(f"{url}/healthz").raise_for_status()
                break
            except httpx.ConnectError:
                assert process.poll() is None, "the server ended"
                assert time.monotonic() < give_up, f"no answer within {STARTS_WITHIN_S} s"
                time.sleep(0.2)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def show(result: dict[str, object], stores: list[str]) -> None:
    table = Table(title=f"{result['rate']:g} events/s for {result['seconds']:g} s, ms")
    names = list(result[stores[0]])
    table.add_column("")
    for store in stores:
        table.add_column(store, justify="right")
    for name in names:
        values = (str(result[store][name]) for store in stores)
        table.add_row(name.removesuffix("_ms").replace("_", " "), *values)
    console = Console()
    console.print(table)
    console.print(f"{processor()}; {versions('feast', 'fastapi', 'uvicorn')}")


if __name__ == "__main__":
    main()
