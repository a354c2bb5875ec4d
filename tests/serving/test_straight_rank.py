"""A ranking is answered alike whether it takes the straight way or FastAPI's."""

import json

import pytest
from fastapi.testclient import TestClient

import serving.straight_rank
from serving.deployment import load_app
from serving.pressure import Overloaded, PressureOptions
from serving.releases import make_release

JSON = {"content-type": "application/json"}
GOOD = json.dumps({"user_id": 1, "candidates": [5, 3, 8, 777]})


@pytest.fixture(scope="module")
def client(trained):
    workspace, result = trained
    make_release(workspace, result["model_id"])
    patient = PressureOptions(deadline_ms=60_000, read_budget_ms=30_000)
    return TestClient(load_app(workspace, pressure=patient))


@pytest.fixture
def straight(monkeypatch):
    """How many requests were answered straight."""
    answered = []
    rank_body = serving.straight_rank.rank_body

    async def counted(*arguments):
        answered.append(arguments)
        return await rank_body(*arguments)

    monkeypatch.setattr(serving.straight_rank, "rank_body", counted)
    return answered


def post(client, content, **headers):
    return client.post("/v1/rank", content=content, headers={**JSON, **headers})


def test_both_ways_give_the_same_answer(client, straight):
    one = post(client, GOOD, **{"X-Deadline-Ms": "30000"})
    assert len(straight) == 1
    other = post(client, GOOD, **{"content-type": "application/vnd.crescendo+json"})
    assert len(straight) == 1
    assert one.status_code == other.status_code == 200
    assert one.json() == other.json()
    assert one.headers["content-type"] == other.headers["content-type"]
    assert one.headers["x-request-id"] != other.headers["x-request-id"]


@pytest.mark.parametrize("chunks", [[GOOD], [GOOD[:9], GOOD[9:]]])
def test_a_body_may_come_in_parts(client, straight, chunks):
    response = post(client, iter([chunk.encode() for chunk in chunks]))
    assert response.status_code == 200
    assert len(straight) == 1


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (GOOD[:-1], {}, 422),
        (GOOD, {"content-type": "text/plain"}, 422),
        (GOOD, {"X-Deadline-Ms": "0.5"}, 422),
        (GOOD, {"X-Deadline-Ms": "soon"}, 422),
        (GOOD, {"traceparent": "0" * 129}, 422),
        (json.dumps({"user_id": 1, "candidates": [True]}), {}, 422),
        ("\ufeff" + GOOD, {}, 200),
        (GOOD.encode("utf-16"), {}, 200),
    ],
)
def test_what_is_not_plain_is_fastapis_to_answer(client, straight, content, headers, status):
    response = post(client, content, **headers)
    assert response.status_code == status
    assert not straight
    assert ("error" in response.json()) == (status != 200)


def test_a_body_that_grows_too_large_is_refused(client, straight):
    response = post(client, iter([b" " * 100_000, b" " * 100_000]))
    assert response.status_code == 413
    assert not straight


def test_what_cannot_be_in_time_is_refused(client, monkeypatch):
    async def overloaded(*_):
        raise Overloaded("deadline", "the requests ahead of it fill its deadline")

    monkeypatch.setattr(serving.straight_rank, "rank_body", overloaded)
    response = post(client, GOOD)
    assert response.status_code == 503
    assert response.headers["retry-after"]
    assert "overloaded" in response.json()["error"]
