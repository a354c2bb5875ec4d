"""Releases change in a loop while requests go on: none fails, none is scored with two releases.

Good releases of three models, releases that are broken in six ways, canaries, promotions and
rollbacks. Every answer holds exactly the scores that the offline store gives for the model of the
release that it names.
"""

import asyncio
import signal
import socket
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime

import httpx
import numpy as np
import pytest

from ray_jobs.evaluate import OfflineRequest, score_offline
from serving.live_releases import LiveReleases
from serving.metrics import ServingMetrics
from serving.pressure import PressureOptions
from serving.ranker import ReleaseRanker
from serving.ranking_service import RankingService
from serving.releases import make_release, promote, read_release, rollback
from serving.request_log import RequestLog, RequestLogOptions
from serving.schemas import RankRequest
from tests.serving.broken_releases import BREAKAGES, flipped_byte, go_live, other_scores
from tests.trained import TRACKS

ALL_TRACKS = tuple(range(1, TRACKS + 1))
USERS = (1, 2, 17, 40, 987_654)
CLIENTS = 4
ROUNDS = 3
PATIENT = PressureOptions(deadline_ms=60_000, read_budget_ms=30_000)
"""A degraded answer has no scores to compare."""
ASK_AGAIN_S = 0.1


@pytest.fixture(scope="module")
def offline_scores(shared_release_world):
    """By model and user: scores of all tracks, in their order, from the offline store."""
    world = shared_release_world
    now = datetime.now(UTC)
    return {
        (model_id, user): score_offline(
            world.workspace,
            model_id,
            OfflineRequest(user_id=user, moment=now, candidates=ALL_TRACKS),
        )
        for model_id in (world.old, world.new, world.plain)
        for user in USERS
    }


def check(workspace, offline_scores, user, release_id, results):
    """`results`: (track id, score) pairs."""
    model_id = read_release(workspace, release_id).model_id
    tracks, scores = zip(*results, strict=True)
    expected = offline_scores[model_id, user][np.array(tracks) - 1]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)


def test_the_models_can_be_told_apart(shared_release_world, offline_scores):
    world = shared_release_world
    for user in USERS:
        scores = [offline_scores[model, user] for model in (world.old, world.new, world.plain)]
        for n, one in enumerate(scores):
            for other in scores[n + 1 :]:
                assert (np.abs(one - other) > 1e-4).mean() > 0.5


def test_releases_change_in_a_loop_without_a_failed_request(world, offline_scores):
    workspace = world.workspace
    make_release(workspace, world.old)
    broken = [breakage(world) for breakage in BREAKAGES]
    make_release(workspace, world.old)
    releases = LiveReleases(
        workspace, lambda release: ReleaseRanker(workspace, release), poll_s=0.01
    )
    releases.start()
    log = RequestLog(RequestLogOptions(share=0))
    service = RankingService(releases, ServingMetrics(), PATIENT, log)
    answers: Counter[str] = Counter()

    async def client(seed):
        random = np.random.default_rng(seed)
        while not finished.is_set():
            user = int(random.choice(USERS))
            candidates = random.choice(ALL_TRACKS, 20, replace=False).tolist()
            answer = await service.rank(RankRequest(user_id=user, candidates=candidates))
            assert set(answer.degraded) <= {"user_stale"}  # the log is of another year
            assert sorted(answer.ranking.track_ids) == sorted(candidates)
            results = zip(answer.ranking.track_ids, answer.ranking.scores, strict=True)
            release_id = answer.ranker.release.release_id
            check(workspace, offline_scores, user, release_id, results)
            answers[answer.ranker.release.model_id] += 1

    async def until(reached):
        """Answers go on until it is so, and some more."""
        while not reached():
            await asyncio.sleep(0)
        enough = answers.total() + 2 * CLIENTS
        while answers.total() < enough:
            await asyncio.sleep(0)

    async def goes_live(change, *arguments):
        made = await asyncio.to_thread(change, workspace, *arguments)

        def is_live():
            # After a broken one the release may be live before its file was looked at again.
            status = releases.status()
            return status["live"] == made["release_id"] and status["last_problem"] is None

        await until(is_live)

    async def fails(release_id):
        before = releases.status()
        go_live(world, release_id)
        await until(lambda: releases.status()["failed_loads"] == before["failed_loads"] + 1)
        assert releases.status()["live"] == before["live"]

    async def swaps():
        for number in range(ROUNDS):
            await goes_live(make_release, world.new)
            await fails(broken[2 * number])
            await fails(broken[2 * number + 1])
            await goes_live(make_release, world.new)
            await asyncio.to_thread(lambda: make_release(workspace, world.plain, canary_share=0.5))
            await until(lambda: releases.status()["canary"] is not None)
            await goes_live(promote)
            await goes_live(rollback)
            await goes_live(make_release, world.old)

    async def run():
        async with asyncio.timeout(240), asyncio.TaskGroup() as tasks:
            for seed in range(CLIENTS):
                tasks.create_task(client(seed))
            try:
                await swaps()
            finally:
                finished.set()

    finished = asyncio.Event()
    try:
        asyncio.run(run())
    finally:
        service.close()
    assert min(answers[model] for model in (world.old, world.new, world.plain)) >= 2 * CLIENTS
    assert set(answers) == {world.old, world.new, world.plain}
    assert releases.status()["failed_loads"] == len(BREAKAGES)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


SERVER = """
import sys
from pathlib import Path
import uvicorn
from feature_repo.workspace import Workspace
from serving.deployment import load_app
from serving.pressure import PressureOptions
patient = PressureOptions(deadline_ms=60_000, read_budget_ms=30_000)
app = load_app(Workspace(Path(sys.argv[1])), pressure=patient)
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_server_changes_releases_without_a_failed_request(world, offline_scores, tmp_path):
    """The same over HTTP: real processes on both sides."""
    workspace = world.workspace
    make_release(workspace, world.old)
    broken = [flipped_byte(world), other_scores(world)]
    first = make_release(workspace, world.old)["release_id"]
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (tmp_path / "server.log").open("w") as log:
        command = [sys.executable, "-c", SERVER, str(workspace.root), str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
    answers: Counter[str] = Counter()
    finished = asyncio.Event()

    async def client(http, seed):
        random = np.random.default_rng(seed)
        while not finished.is_set():
            user = int(random.choice(USERS))
            candidates = random.choice(ALL_TRACKS, 20, replace=False).tolist()
            body = {"user_id": user, "candidates": candidates}
            answer = await http.post(f"{url}/v1/rank", json=body)
            assert answer.status_code == 200, answer.text
            ranked = answer.json()
            results = [(one["track_id"], one["score"]) for one in ranked["results"]]
            check(workspace, offline_scores, user, ranked["release_id"], results)
            answers[ranked["release_id"]] += 1

    async def until(http, reached):
        while not reached((await http.get(f"{url}/readyz")).json()):
            await asyncio.sleep(ASK_AGAIN_S)

    async def run():
        async with httpx.AsyncClient(timeout=60) as http, asyncio.timeout(400):
            while server.poll() is None:
                try:
                    assert (await http.get(f"{url}/readyz")).json()["release_id"] == first
                    break
                except httpx.ConnectError:
                    await asyncio.sleep(ASK_AGAIN_S)  # the cores are the server's
            async with asyncio.TaskGroup() as tasks:
                for seed in range(2):
                    tasks.create_task(client(http, seed))
                try:
                    for failed, release_id in enumerate(broken, start=1):
                        go_live(world, release_id)
                        await until(http, lambda now, n=failed: now["failed_loads"] == n)
                    for model in (world.new, world.plain):
                        made = await asyncio.to_thread(make_release, workspace, model)
                        await until(http, lambda now, m=made: now["live"] == m["release_id"])
                    back = await asyncio.to_thread(rollback, workspace)
                    await until(http, lambda now: now["live"] == back["release_id"])
                finally:
                    finished.set()

    try:
        asyncio.run(run())
    finally:
        server.terminate()
        assert server.wait(timeout=60) in (0, -signal.SIGTERM), (
            tmp_path / "server.log"
        ).read_text()
    assert {read_release(workspace, one).model_id for one in answers} == {
        world.old,
        world.new,
        world.plain,
    }
