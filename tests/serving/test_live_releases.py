"""What serves follows the workspace's files, and stays as it was where that is not possible."""

import asyncio
import gc
import json
import logging
import threading
import weakref

import pytest

from feature_repo.errors import ArtifactError
from serving.live_releases import LiveReleases
from serving.ranker import ReleaseRanker
from serving.releases import (
    CANARY,
    CURRENT,
    SHADOW,
    live_release,
    make_release,
    promote,
    rollback,
    withdraw,
)
from tests.serving.broken_releases import BREAKAGES, flip_byte, missing_service
from tests.serving.release_world import copied_model

USERS = range(200)
NEVER_S = 3600.0
"""The thread does not look by itself: `look` is called where the test wants it."""


class Loader:
    """Builds rankers and keeps account of them."""

    def __init__(self, workspace) -> None:
        self.workspace = workspace
        self.asked: list[str] = []
        self.error: Exception | None = None

    def __call__(self, release):
        self.asked.append(release.release_id)
        if self.error is not None:
            raise self.error
        return ReleaseRanker(self.workspace, release)


@pytest.fixture
def load(world):
    return Loader(world.workspace)


@pytest.fixture
def releases(world, load):
    """Started with the live release `old`."""
    make_release(world.workspace, world.old)
    live = LiveReleases(world.workspace, load, poll_s=NEVER_S)
    live.start()
    yield live
    live.stop()


def live_model(releases):
    return releases.current.release.model_id


def test_a_start_needs_a_live_release_that_loads(world, load):
    live = LiveReleases(world.workspace, load, poll_s=NEVER_S)
    with pytest.raises(ArtifactError, match=r"no release is live .*crescendo release"):
        live.start()
    model_id = copied_model(world.workspace, world.old, "model-broken")
    make_release(world.workspace, model_id)
    flip_byte(world.workspace.models / model_id / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"model.safetensors was changed"):
        live.start()


def test_canary_and_shadow_that_do_not_load_do_not_stop_a_start(world, load):
    make_release(world.workspace, world.old)
    (world.workspace.releases / CANARY).write_text("{}")
    (world.workspace.releases / SHADOW).write_text("release-gone\n")
    live = LiveReleases(world.workspace, load, poll_s=NEVER_S)
    live.start()
    status = live.status()
    assert (status["canary"], status["shadow"], status["failed_loads"]) == (None, None, 2)
    assert "releases/SHADOW" in status["last_problem"]
    live.stop()


def test_a_new_release_takes_over_and_the_old_one_is_freed(world, releases, load):
    before = releases.current
    gone = weakref.ref(before)
    made = make_release(world.workspace, world.new)
    assert releases.current is before
    releases.look()
    assert releases.status()["live"] == made["release_id"]
    assert live_model(releases) == world.new
    assert before.rank(1, [1, 2, 3]).track_ids  # a request that took it goes on with it
    gc.disable()  # only references count: what is frozen is never collected
    try:
        del before
        assert gone() is None
    finally:
        gc.enable()
    releases.look()
    assert load.asked == [made["replaces"], made["release_id"]]


def test_a_rollback_takes_over_too(world, releases):
    make_release(world.workspace, world.new)
    releases.look()
    rollback(world.workspace)
    releases.look()
    assert live_model(releases) == world.old


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.__name__)
def test_a_release_that_does_not_load_leaves_the_old_one_serving(
    world, releases, load, breakage, caplog
):
    before = releases.current
    breakage(world)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            releases.look()
    assert releases.current is before
    assert before.rank(1, [1, 2, 3]).track_ids
    assert [BREAKAGES[breakage] in record.message for record in caplog.records] == [True]
    asked = len(load.asked)
    assert asked <= 2  # tried once, not at every look
    status = releases.status()
    assert (status["live"], status["failed_loads"]) == (before.release.release_id, 1)
    assert "releases/CURRENT names is not served (ArtifactError)" in status["last_problem"]
    assert "/" not in status["last_problem"].replace("releases/CURRENT", "")

    make_release(world.workspace, world.numbers)
    releases.look()
    assert live_model(releases) == world.numbers
    assert releases.status()["last_problem"] is None


@pytest.mark.parametrize("error", [MemoryError("out of it"), ConnectionError("redis"), KeyError(1)])
def test_whatever_a_load_raises_is_said_and_tried_again_when_the_file_is_written_again(
    world, releases, load, error, caplog
):
    load.error = error
    make_release(world.workspace, world.new)
    releases.look()
    assert live_model(releases) == world.old
    assert type(error).__name__ in releases.status()["last_problem"]
    assert caplog.records[-1].exc_info is not None  # not one of ours: with its stack
    load.error = None
    releases.look()
    assert live_model(releases) == world.old
    make_release(world.workspace, world.new)  # the same content
    releases.look()
    assert live_model(releases) == world.new


def test_a_live_release_that_is_taken_away_goes_on(world, releases):
    (world.workspace.releases / CURRENT).unlink()
    releases.look()
    assert live_model(releases) == world.old
    assert "releases/CURRENT" in releases.status()["last_problem"]
    make_release(world.workspace, world.old)
    releases.look()
    assert releases.status()["last_problem"] is None


def test_going_back_from_a_release_that_did_not_load_loads_nothing(world, releases, load):
    before = releases.current
    missing_service(world)
    releases.look()
    asked = len(load.asked)
    rollback(world.workspace)
    releases.look()
    assert releases.current is before
    assert len(load.asked) == asked
    assert releases.status()["last_problem"] is None


def canary_users(releases, model_id):
    return {user for user in USERS if releases.for_user(user).release.model_id == model_id}


def test_a_canary_serves_its_share_of_the_users(world, releases, load):
    made = make_release(world.workspace, world.new, canary_share=0.2)
    releases.look()
    first = canary_users(releases, world.new)
    assert 20 <= len(first) <= 60  # of 200; 0.9996 of all binomial draws
    assert live_model(releases) == world.old
    assert releases.status()["canary"] == {"release_id": made["release_id"], "share": 0.2}

    asked = len(load.asked)
    make_release(world.workspace, world.new, canary_share=0.6)
    releases.look()
    assert first < canary_users(releases, world.new)

    promote(world.workspace)
    canary = releases.for_user(min(first))
    releases.look()
    assert releases.current is canary
    assert canary_users(releases, world.new) == set(USERS)
    assert releases.status()["canary"] is None
    assert len(load.asked) == asked  # neither a new share nor the promotion loads anything


def test_a_withdrawn_or_broken_canary_leaves_all_users_to_the_live_release(world, releases):
    make_release(world.workspace, world.new, canary_share=1.0)
    releases.look()
    assert canary_users(releases, world.new) == set(USERS)
    (world.workspace.releases / CANARY).write_text(json.dumps({"release_id": "x", "share": 7}))
    releases.look()
    assert canary_users(releases, world.old) == set(USERS)
    assert "releases/CANARY" in releases.status()["last_problem"]
    withdraw(world.workspace)
    releases.look()
    assert releases.status()["last_problem"] is None


def test_a_shadow_is_compared_with_what_the_live_release_answers(world, releases):
    make_release(world.workspace, world.new, shadow=True)
    releases.look()
    shadow = releases.shadow
    assert shadow.release.model_id == world.new

    async def answer(user, ranker):
        ranking = ranker.rank(user, range(1, 61))
        releases.compare(user, ranker, ranking)
        scorer = releases._loaded.shadow
        while scorer._busy:
            await asyncio.sleep(0)
        return ranking

    for user in (1, 2):
        asyncio.run(answer(user, releases.current))
    asyncio.run(answer(3, shadow))  # not an answer of the live release
    status = releases.status()["shadow"]
    assert status["release_id"] == shadow.release.release_id
    assert (status["rankings"], status["skipped"], status["failed"]) == (2, 0, 0)
    assert status["mean_difference"] > 0

    make_release(world.workspace, world.new)
    releases.look()
    assert releases.current is shadow  # nothing is loaded a second time
    assert releases.shadow is None
    asyncio.run(answer_without_shadow(releases))


async def answer_without_shadow(releases):
    ranker = releases.current
    releases.compare(1, ranker, ranker.rank(1, [1, 2]))


def test_a_withdrawn_shadow_is_gone(world, releases):
    make_release(world.workspace, world.new, shadow=True)
    releases.look()
    gone = weakref.ref(releases.shadow)
    withdraw(world.workspace)
    releases.look()
    assert releases.shadow is None
    assert gone() is None


def test_the_thread_looks_by_itself_and_ends(world, load):
    make_release(world.workspace, world.old)
    before, took_over = set(threading.enumerate()), threading.Event()

    def loading(release):
        ranker = load(release)
        took_over.set()
        return ranker

    live = LiveReleases(world.workspace, loading, poll_s=0.01)
    live.start()
    took_over.clear()
    make_release(world.workspace, world.new)
    assert took_over.wait(timeout=60)
    live.stop()  # waits for the load
    assert live_model(live) == world.new
    assert live_release(world.workspace).model_id == world.new
    started = set(threading.enumerate()) - before
    assert not any(thread.name == "live-releases" for thread in started)
