"""Releases that name a retriever model: run in the replica or read with the user's row."""

import asyncio
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from fastapi.testclient import TestClient

from feature_repo import schema
from feature_repo.errors import InputError
from feature_repo.store import open_store, read_online
from serving.deployment import load_app
from serving.live_releases import LiveReleases
from serving.metrics import ServingMetrics
from serving.ranker import ReleaseRanker
from serving.ranking_service import RankingService
from serving.recommendation import STALE_US, has_stale_candidates, retrieve
from serving.releases import (
    live_release,
    make_release,
    promote,
    read_canary,
    read_release,
    rollback,
)
from serving.request_log import RequestLog, RequestLogOptions
from serving.retrieval.options import WITH_MME_SID
from serving.schemas import RecommendRequest
from serving.user_rows import made_up_user
from tests.retrievers import brute_force
from tests.serving.broken_releases import go_live
from tests.serving.retriever_world import OLD_TRACKS, PATIENT
from tests.trained import TRACKS

USERS = (1, 2, 17, 40)


def loaded(workspace) -> ReleaseRanker:
    ranker = ReleaseRanker(workspace, live_release(workspace))
    ranker.load_retriever()
    return ranker


def expected_tracks(found) -> set[int]:
    return {
        track
        for place, track in enumerate(found.track_ids_C.tolist())
        if "mme_sid" in found.sources(place)
    }


def in_generation(tracks) -> list[int]:
    return [track for track in tracks if track not in OLD_TRACKS]


def test_the_replica_runs_a_model_whose_candidates_nobody_scored(world, retrievers):
    workspace, (live, _, _) = world.workspace, retrievers
    made = make_release(workspace, world.new, retriever_model_id=live)
    assert (made["retriever_model_id"], made["candidates_view"]) == (live, None)
    ranker, expected = loaded(workspace), brute_force(workspace, live)
    for user in ranker.user_rows.read(USERS):
        found = retrieve(ranker, user, RecommendRequest(user_id=1))
        tracks, _ = expected(user.track_ids_L.tolist())
        assert expected_tracks(found) == set(in_generation(tracks)[: WITH_MME_SID["mme_sid"]])
        assert len(found.track_ids_C) == len(set(found.track_ids_C.tolist()))
        assert not found.hurried
    made_up = made_up_user([3, 9, 4], 0)
    found = retrieve(ranker, made_up, RecommendRequest(history=[3, 9, 4]))
    assert expected_tracks(found) == set(in_generation(expected([3, 9, 4])[0]))


def test_candidates_that_were_scored_are_read_with_the_row(world, retrievers):
    workspace, (_, batch, _) = world.workspace, retrievers
    made = make_release(workspace, world.numbers, retriever_model_id=batch)
    view = schema.candidates_view_name(batch)
    assert made["candidates_view"] == view
    ranker, expected = loaded(workspace), brute_force(workspace, batch)
    assert ranker.retriever.mme_sid is None  # nothing is run
    users = ranker.user_rows.read(USERS)
    name = f"{view}:{schema.CANDIDATE_TRACK_IDS}"
    stored = read_online(open_store(workspace), schema.USER_ID, USERS, [name])
    for place, user in enumerate(users):
        assert user.expected_N.tolist() == stored[schema.CANDIDATE_TRACK_IDS][place]
        assert user.expected_N.tolist() == expected(user.track_ids_L.tolist())[0][:30]
        assert user.counts.keys() == set(schema.stats_columns("user"))
        found = retrieve(ranker, user, RecommendRequest(user_id=1))
        assert expected_tracks(found) == set(in_generation(user.expected_N.tolist()))
    (stranger,) = ranker.user_rows.read([987_654])
    assert (stranger.expected_N.tolist(), stranger.expected_us) == ([], 0)


def test_nobody_knows_what_to_expect_of_users_without_listens(world, retrievers):
    workspace, (live, batch, _) = world.workspace, retrievers
    make_release(workspace, world.new)
    plain = loaded(workspace)
    for retriever in (live, batch):
        make_release(workspace, world.new, retriever_model_id=retriever)
        ranker = loaded(workspace)
        for request in (RecommendRequest(user_id=987_654), RecommendRequest(history=[])):
            user = made_up_user([], 0)
            theirs, ours = (retrieve(one, user, request) for one in (plain, ranker))
            np.testing.assert_array_equal(ours.track_ids_C, theirs.track_ids_C)
            np.testing.assert_array_equal(ours.sources_C, theirs.sources_C)


def test_candidates_are_stale_when_the_user_listened_on(world):
    user = replace(made_up_user([3], STALE_US + 10), expected_us=10, expected_N=np.array([7]))
    assert not has_stale_candidates(user)
    assert has_stale_candidates(replace(user, newest_us=STALE_US + 11))
    assert not has_stale_candidates(replace(user, newest_us=1))  # nothing new: as good as today's
    assert not has_stale_candidates(made_up_user([3], 2 * STALE_US))  # there are none


def test_a_pass_that_does_not_fit_is_left_out_and_said(world, retrievers, service_of):
    workspace, (live, _, _) = world.workspace, retrievers
    make_release(workspace, world.new, retriever_model_id=live)
    service = service_of(workspace)
    request = RecommendRequest(user_id=1, count=200)
    source = service.live.current.retriever.mme_sid

    def recommend():
        answer = asyncio.run(service.recommend(request))
        service._turns._is_taken = False  # of the loop that has ended
        sources = {name for sources in answer.shown.sources for name in sources}
        return answer.degraded, sources

    degraded, sources = recommend()
    assert "fewer_candidates" not in degraded
    assert "mme_sid" in sources
    source._expected_s = source._fastest_s = 31.0  # of a deadline of a minute
    degraded, sources = recommend()
    assert degraded.count("fewer_candidates") == 1
    assert "mme_sid" not in sources


def test_the_server_says_which_tracks_the_model_proposed(world, retrievers):
    workspace, (live, batch, _) = world.workspace, retrievers
    for retriever in (live, batch):
        made = make_release(workspace, world.new, retriever_model_id=retriever)
        with TestClient(load_app(workspace, pressure=PATIENT)) as client:
            body = {"user_id": 17, "count": TRACKS}
            answer = client.post("/v1/recommend", json=body).json()
            ranked = client.post("/v1/rank", json={"user_id": 17, "candidates": [1, 2]}).json()
        assert answer["release_id"] == made["release_id"]
        assert len(ranked["results"]) == 2
        own = [one["track_id"] for one in answer["results"] if "mme_sid" in one["sources"]]
        expected = brute_force(workspace, retriever)
        (user,) = ReleaseRanker(workspace, live_release(workspace)).user_rows.read([17])
        tracks, _ = expected(user.track_ids_L.tolist())
        most = None if retriever == live else 30
        assert sorted(own) == sorted(in_generation(tracks[:most]))


# --- releases --------------------------------------------------------------------------------


def test_a_release_from_before_there_were_retrievers_is_read(world):
    workspace = world.workspace
    made = make_release(workspace, world.new)
    assert made["retriever_model_id"] is None
    path = workspace.releases / f"{made['release_id']}.json"
    old = {
        name: value
        for name, value in json.loads(path.read_text()).items()
        if name not in ("retriever_model_id", "retriever_sha256", "candidates_view")
    }
    path.write_text(json.dumps(old))
    release = live_release(workspace)
    assert asdict(release) == made
    assert loaded(workspace).retriever.mme_sid is None
    # Its id is what it was before: making it again finds it.
    assert make_release(workspace, world.new)["release_id"] == release.release_id


def test_the_newest_ranker_is_released_though_a_retriever_is_newer(world, retrievers):
    workspace, (live, _, _) = world.workspace, retrievers
    assert make_release(workspace, retriever_model_id=live)["model_id"] == world.plain
    with pytest.raises(InputError, match=f"ranks nothing.* as --retriever {live}"):
        make_release(workspace, live)


def test_canary_promotion_and_rollback_carry_the_retriever(world, retrievers):
    workspace, (live, batch, _) = world.workspace, retrievers
    first = make_release(workspace, world.new)
    canary = make_release(workspace, world.new, retriever_model_id=live, canary_share=0.5)
    other = make_release(workspace, world.new, retriever_model_id=batch, shadow=True)
    assert len({made["release_id"] for made in (first, canary, other)}) == 3
    assert read_release(workspace, read_canary(workspace).release_id).retriever_model_id == live
    assert promote(workspace)["retriever_model_id"] == live
    assert live_release(workspace).retriever_model_id == live
    assert rollback(workspace)["retriever_model_id"] is None


def test_the_same_model_is_loaded_once(world, retrievers):
    workspace, (live, _, _) = world.workspace, retrievers
    make_release(workspace, world.new, retriever_model_id=live)
    first = loaded(workspace)
    make_release(workspace, world.old, retriever_model_id=live)  # another generation
    second = ReleaseRanker(workspace, live_release(workspace))
    second.load_retriever(like=first)
    assert second.retriever.mme_sid is first.retriever.mme_sid is not None
    refreshed = second.retriever.refreshed(second.items)
    assert refreshed.mme_sid is first.retriever.mme_sid


def test_releases_with_and_without_retrievers_change_under_load(world, retrievers):
    """Each answer's sources are those of the release that it names, and none fails."""
    workspace, (live, batch, _) = world.workspace, retrievers
    ways = [None, live, batch]
    made = {way: make_release(workspace, world.new, retriever_model_id=way) for way in ways}
    retriever_of = {release["release_id"]: way for way, release in made.items()}
    make_release(workspace, world.new)
    previous: list[ReleaseRanker] = []

    def load(release):
        ranker = ReleaseRanker(workspace, release)
        ranker.load_retriever(like=previous[-1] if previous else None)
        previous.append(ranker)
        return ranker

    releases = LiveReleases(workspace, load, poll_s=0.01)
    releases.start()
    log = RequestLog(RequestLogOptions(share=0))
    service = RankingService(releases, ServingMetrics(), PATIENT, log)
    brute = {way: brute_force(workspace, way) for way in (live, batch)}
    (user,) = releases.current.user_rows.read([17])
    heard = user.track_ids_L.tolist()
    wanted = {
        None: set(),
        live: set(in_generation(brute[live](heard)[0])),
        batch: set(in_generation(brute[batch](heard)[0][:30])),
    }
    answers = dict.fromkeys(ways, 0)
    finished = asyncio.Event()

    async def client():
        while not finished.is_set():
            answer = await service.recommend(RecommendRequest(user_id=17, count=TRACKS))
            way = retriever_of[answer.ranker.release.release_id]
            places = zip(answer.shown.places, answer.shown.sources, strict=True)
            own = {answer.ranking.track_ids[n] for n, names in places if "mme_sid" in names}
            assert own == wanted[way]
            answers[way] += 1

    async def changes():
        for way in ways * 3:
            go_live(world, made[way]["release_id"])
            while releases.status()["live"] != made[way]["release_id"]:
                await asyncio.sleep(0)
            enough = answers[way] + 5
            while answers[way] < enough:
                await asyncio.sleep(0)
        finished.set()

    async def run():
        async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(client())
            tasks.create_task(changes())

    try:
        asyncio.run(run())
    finally:
        service.close()
    assert min(answers.values()) >= 15
    assert releases.status()["failed_loads"] == 0
