"""The ranking application in process: answers, what is missing, bad input, offline equality."""

import json
from datetime import UTC, datetime

import numpy as np
import pytest
from fastapi.testclient import TestClient

from ray_jobs.evaluate import OfflineRequest, score_offline
from serving.deployment import load_app
from serving.pressure import PressureOptions
from serving.releases import live_release, make_release
from tests.trained import TRACKS


@pytest.fixture(scope="module")
def client(trained):
    workspace, result = trained
    make_release(workspace, result["model_id"])
    # On a busy machine nothing is given up: a degraded answer has no scores to compare.
    patient = PressureOptions(deadline_ms=60_000, read_budget_ms=30_000)
    return TestClient(load_app(workspace, pressure=patient))


def rank(client, **body):
    response = client.post("/v1/rank", json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.slow
def test_results_are_ordered_and_name_their_release(client, trained):
    answer = rank(client, user_id=1, candidates=[5, 3, 8, 1])
    scores = [result["score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert sorted(result["track_id"] for result in answer["results"]) == [1, 3, 5, 8]
    assert answer["release_id"] == live_release(trained[0]).release_id
    assert answer["missing"] == {"user": False, "tracks": []}


@pytest.mark.parametrize("user_id", [1, 2, 17, 40, 987_654])
def test_scores_equal_the_offline_scores(client, trained, user_id):
    workspace, result = trained
    candidates = tuple(range(1, TRACKS + 1))
    answer = rank(client, user_id=user_id, candidates=list(candidates))
    online = {item["track_id"]: item["score"] for item in answer["results"]}
    request = OfflineRequest(user_id=user_id, moment=datetime.now(UTC), candidates=candidates)
    offline = score_offline(workspace, result["model_id"], request)
    np.testing.assert_allclose([online[track] for track in candidates], offline, atol=1e-5)


def test_a_score_does_not_depend_on_the_other_candidates(client):
    together = {
        r["track_id"]: r["score"]
        for r in rank(client, user_id=3, candidates=list(range(1, TRACKS + 1)))["results"]
    }
    for track in (1, 30, TRACKS):
        (alone,) = rank(client, user_id=3, candidates=[track])["results"]
        assert alone["score"] == pytest.approx(together[track], abs=1e-6)


def test_unknown_user_and_tracks_get_an_answer_that_says_so(client):
    answer = rank(client, user_id=-5, candidates=[2, 777, 3, 888])
    assert [result["track_id"] for result in answer["results"]] != []
    assert answer["missing"] == {"user": True, "tracks": [777, 888]}
    nothing = rank(client, user_id=1, candidates=[777])
    assert nothing["results"] == []
    assert nothing["missing"]["tracks"] == [777]


def test_a_repeated_candidate_is_ranked_once(client):
    answer = rank(client, user_id=1, candidates=[4, 4, 4])
    assert [result["track_id"] for result in answer["results"]] == [4]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("not json", "body: not JSON at character 0: Expecting value"),
        (json.dumps({"user_id": 1}), "candidates: Field required"),
        (json.dumps({"user_id": "1", "candidates": [1]}), "user_id: Input should be a valid int"),
        (json.dumps({"user_id": 1, "candidates": ["a"]}), "candidates.0: Input should be a valid"),
        (json.dumps({"user_id": 1, "candidates": [1.5]}), "candidates.0"),
        (json.dumps({"user_id": 1, "candidates": [2**63]}), "candidates.0"),
        (json.dumps({"user_id": 1, "candidates": []}), "at least 1 item"),
        (json.dumps({"user_id": 1, "candidates": [1] * 2001}), "at most 2000 items"),
        (json.dumps({"user_id": 1, "candidates": [1], "k": 3}), "k: Extra inputs"),
    ],
)
def test_bad_input_gets_a_reason(client, body, reason):
    response = client.post("/v1/rank", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert reason in response.json()["error"]
    assert len(response.text) < 1000


def test_health_and_readiness(client, trained):
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json()["release_id"] == live_release(trained[0]).release_id
