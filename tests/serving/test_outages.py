"""The online store dies, hangs and comes back under load: every request is answered.

Real processes: redis-server, `crescendo serve --uvicorn`, and the load of `crescendo load-test`.
"""

import json
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from feature_repo.store_settings import PACKED_REDIS
from serving.load_client import Target
from serving.load_report import LoadReport
from serving.load_requests import rank_bodies
from serving.load_test import LoadOptions, run_load
from serving.releases import make_release
from tests.servers import RedisServer, require_redis
from tests.serving.release_world import release_world
from tests.serving.serving_process import free_port, served
from tests.trained import TRACKS

pytestmark = [pytest.mark.redis, pytest.mark.slow]

USERS = np.arange(1, 40)
ASKED_WHILE_AWAY = 300
"""Long enough for requests of the load to come meanwhile."""
BODIES = rank_bodies(USERS, np.arange(1, TRACKS + 1), 20, 200, np.random.default_rng(0))


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    require_redis()
    server = RedisServer(tmp_path_factory.mktemp("redis"), durable=True).start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, redis):
    online = {"type": PACKED_REDIS, "connection_string": redis.connection_string}
    world = release_world(tmp_path_factory.mktemp("outages") / "workspace", online)
    make_release(world.workspace, world.old)
    return world.workspace


@pytest.fixture(scope="module")
def url(workspace):
    with served(workspace) as url:
        yield url


def asked(url: str, user: int = 1) -> dict:
    body = json.dumps({"user_id": user, "candidates": [1, 2, 3]}).encode()
    request = urllib.request.Request(
        f"{url}/v1/rank", body, {"content-type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def until(url: str, *, away: bool) -> dict:
    """Asks again until the store is away, or back; pytest's timeout ends what never comes.

    (All answers are `user_stale`: the log of these tests is of a year ago.)
    """
    while ("user_unavailable" in (answer := asked(url))["degraded"]) != away:
        pass
    return answer


class Load(threading.Thread):
    """Twenty requests a second for some seconds, and what became of them."""

    def __init__(self, url: str, seconds: float) -> None:
        super().__init__()
        self._options = LoadOptions(
            target=Target(url=url, timeout_s=60), rate=20, seconds=seconds, warm_up_s=0
        )
        self.report: LoadReport

    def run(self) -> None:
        self.report = run_load(self._options, BODIES)


def test_a_store_that_dies_and_comes_back_fails_no_request(url, redis):
    before = until(url, away=False)
    load = Load(url, seconds=12)
    load.start()
    redis.kill()
    for _ in range(ASKED_WHILE_AWAY):
        until(url, away=True)
    redis.start()
    after = until(url, away=False)
    load.join()
    assert load.report.errors == 0, load.report.answers
    assert 0 < load.report.degraded["user_unavailable"] < load.report.requests
    assert after == before


def test_a_store_that_hangs_fails_no_request(url, redis):
    until(url, away=False)
    load = Load(url, seconds=6)
    load.start()
    redis.send_signal(signal.SIGSTOP)
    for _ in range(ASKED_WHILE_AWAY):
        answer = until(url, away=True)
    # Ranked as somebody of whom nothing is known, by the same release.
    assert answer["missing"] == {"user": True, "tracks": []}
    assert all(result["score"] is not None for result in answer["results"])
    redis.send_signal(signal.SIGCONT)
    until(url, away=False)
    load.join()
    assert load.report.errors == 0, load.report.answers
    assert load.report.degraded["user_unavailable"] > 0


def scraped(url: str, sample: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as metrics:
        lines = metrics.read().decode().splitlines()
    (value,) = [float(line.split()[1]) for line in lines if line.startswith(f"{sample} ")]
    return value


def test_what_was_degraded_is_counted(url, redis):
    assert scraped(url, 'crescendo_degradations_total{reason="user_unavailable"}') > 0


def test_a_store_that_lost_its_rows_knows_nobody_until_they_are_written_again(
    url, workspace, redis
):
    before = until(url, away=False)
    unknown = scraped(url, "crescendo_unknown_users_total")
    redis.empty()
    answer = asked(url)
    assert answer["missing"] == {"user": True, "tracks": []}
    assert len(answer["results"]) == 3
    # What CrescendoUsersUnknown (deploy/prometheus) goes by.
    assert scraped(url, "crescendo_unknown_users_total") == unknown + 1
    crescendo = [Path(sys.executable).parent / "crescendo", "--workspace", workspace.root]
    started = subprocess.run(
        [*crescendo, "serve", "--uvicorn", "--port", str(free_port())],
        capture_output=True,
        text=True,
    )
    assert started.returncode != 0
    assert "the online store holds no track of generation" in started.stderr
    assert "publish --generation" in started.stderr
    subprocess.run([*crescendo, "materialize", "--full"], check=True, capture_output=True)
    assert until(url, away=False) == before
