"""What clients read when a request fails: one form, short, and nothing of our insides."""

import gzip
import json

import pytest
import structlog
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from pydantic import BaseModel, ConfigDict

from feature_repo.errors import ArtifactError, InputError, StoreUnavailableError
from feature_repo.live_events import LiveEvent
from serving.error_answers import ERROR_ANSWERS, ErrorAnswer, add_error_answers
from serving.request_limits import RequestLimits
from serving.schemas import RankRequest, RecommendRequest

JSON = {"content-type": "application/json"}
SECRET = "/srv/workspace/models/model-0123456789ab"
# Without `mtime` the bytes hold the time, and pytest-xdist's workers would name the test apart.
PACKED = gzip.compress(b'{"value": 7}', mtime=0)


class Number(BaseModel):
    model_config = ConfigDict(extra="forbid")

    value: int


def broken(error):
    async def route():
        raise error

    return route


@pytest.fixture
def client():
    app = FastAPI(responses=ERROR_ANSWERS)
    rejected = []
    add_error_answers(app, rejected=lambda *told: rejected.append(told))
    app.add_middleware(RequestLimits, rejected=lambda reason, said: None)
    for name, error in {
        "input": InputError(f"{SECRET} is not there; run `crescendo train`"),
        "artifact": ArtifactError(f"{SECRET} was changed"),
        "unexpected": KeyError(SECRET),
        "os": FileNotFoundError(2, "No such file", SECRET),
        "store": StoreUnavailableError(f"redis at {SECRET} does not answer"),
        "refused": HTTPException(409, "a swap is under way", {"Retry-After": "3"}),
    }.items():
        app.get(f"/{name}")(broken(error))

    @app.post("/number")
    async def number(body: Number):
        return {}

    @app.post("/rank")
    async def rank(body: RankRequest):
        return {}

    @app.post("/recommend")
    async def recommend(body: RecommendRequest):
        return {}

    @app.post("/event")
    async def event(body: LiveEvent):
        return {"played_ratio": body.played_ratio}

    client = TestClient(app, raise_server_exceptions=False)
    client.rejected = rejected
    return client


def post(client, path, content):
    """The answer to these bytes as JSON."""
    return client.post(path, content=content, headers=JSON)


@pytest.mark.parametrize("name", ["input", "artifact", "unexpected", "os"])
def test_what_failed_inside_is_in_the_log_and_not_in_the_answer(client, name):
    with structlog.testing.capture_logs() as logged:
        response = client.get(f"/{name}", headers={"X-Request-Id": "mine"})
    assert response.status_code == 500
    assert response.json() == {"error": "internal error", "request_id": "mine"}
    (line,) = logged
    assert (line["event"], line["request_id"]) == ("internal error", "mine")
    assert SECRET in line["trace"]
    assert "Traceback" in line["trace"]
    json.dumps(line)


def test_a_store_that_does_not_answer_is_503(client):
    with structlog.testing.capture_logs() as logged:
        response = client.get("/store")
    assert response.status_code == 503
    assert response.json() == {"error": "a store does not answer; try again"}
    assert int(response.headers["Retry-After"]) >= 1
    assert SECRET in logged[0]["problem"]


def test_refusals_keep_their_status_reason_and_headers(client):
    response = client.get("/refused")
    assert (response.status_code, response.json()) == (409, {"error": "a swap is under way"})
    assert response.headers["Retry-After"] == "3"
    assert client.get("/nowhere").json() == {"error": "Not Found"}
    wrong_method = client.get("/number")
    assert (wrong_method.status_code, wrong_method.headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "body: not JSON at character 1: Expecting property name"),
        (b"", "body: Field required"),
        (b"[]", "body: Input should be a valid dictionary"),
        (b'{"value": "a"}', "body.value: Input should be a valid integer"),
        (b'{"value": 1, "other": 2}', "body.other: Extra inputs"),
    ],
)
def test_a_body_of_the_wrong_form_gets_a_reason(client, body, reason):
    response = post(client, "/number", body)
    assert response.status_code == 422
    assert reason in ErrorAnswer(**response.json()).error
    assert client.rejected == [("form", response.json()["error"])]


@pytest.mark.parametrize(
    ("body", "headers", "reason"),
    [
        (
            b'{"value": 7}',
            {},
            "Content-Type is ''; send the header `Content-Type: application/json`",
        ),
        (b'{"value": 7}', {"content-type": "text/plain"}, "the Content-Type is 'text/plain'; send"),
        (PACKED, JSON | {"content-encoding": "gzip"}, "Encoding is 'gzip'"),
        (b'{"value": "\xff"}', JSON, "body: it is not text in UTF-8"),
        (b"[" * 100_000, JSON, "body: it is nested too deeply"),
        (b'{"value": %s}' % (b"7" * 100_000), JSON, "a number of thousands of digits"),
    ],
    ids=["no type", "other type", "gzip", "not UTF-8", "nested", "long number"],
)
def test_a_body_that_is_not_read_gets_the_reason(client, body, headers, reason):
    response = client.post("/number", content=body, headers=headers)
    assert response.status_code in (400, 422)
    assert reason in ErrorAnswer(**response.json()).error
    assert client.rejected == [("form", response.json()["error"])]


def test_what_is_not_there_is_no_wrong_form(client):
    for path in ("/nowhere", "/number", "/unexpected", "/refused"):
        client.get(path)
    assert client.rejected == []


@pytest.mark.parametrize(
    "body",
    [
        b'{"value": 1, "%s": 2}' % (b"k" * 100_000),
        b"{%s}" % b",".join(b'"k%d": 1' % number for number in range(5000)),
        b'{"value": "%s"}' % (b"7" * 100_000),
        b'{"value": -%s.5}' % (b"7" * 4000),
        b'{"value": "\\ud800"}',
        b'{"\\ud800": 1, "value": 1}',
        b'{"\\udfff\\u0000": 1, "value": 1}',
        b'{"value": "\xff"}',
        b"\xff\xfe{\x00",
        b'{"value": %s}' % (b"7" * 100_000),
        b"[" * 100_000,
        b'{"value":' * 10_000,
    ],
)
def test_hostile_bodies_get_a_short_answer(client, body):
    """Among them: long names, halves of surrogate pairs, huge numbers, nesting bombs."""
    response = post(client, "/number", body)
    assert response.status_code in (400, 422)
    assert len(response.content) < 1000
    ErrorAnswer(**response.json())


EVENT = (
    b'{"event_id": 1, "user_id": 2, "track_id": 3, "action": "play",'
    b' "event_timestamp": "2026-01-02T03:04:05Z", "played_ratio": %s}'
)


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/number", b'{"value": %s}'),
        ("/event", EVENT),
        ("/event", EVENT.replace(b'"user_id": 2', b'"user_id": %s').replace(b"%s}", b"0.5}")),
        ("/rank", b'{"user_id": %s, "candidates": [1]}'),
        ("/rank", b'{"user_id": 1, "candidates": [%s]}'),
        ("/recommend", b'{"user_id": 1, "count": %s}'),
        ("/recommend", b'{"history": [1, %s]}'),
        ("/recommend", b'{"user_id": 1, "max_per_artist": %s}'),
        ("/recommend", b'{"user_id": 1, "include_seen": %s}'),
    ],
)
def test_numbers_that_are_not_finite_are_refused(client, path, body, number):
    """Python's JSON takes these words, and 1e999 is infinite in any."""
    response = post(client, path, body % number)
    assert response.status_code == 422, response.text
    assert len(response.content) < 1000


def test_good_bodies_are_taken(client):
    assert post(client, "/number", b'{"value": 7}').status_code == 200
    assert post(client, "/event", EVENT % b"0.5").json() == {"played_ratio": 0.5}
