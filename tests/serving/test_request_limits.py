"""Body caps, stated or counted, and request ids, over a real FastAPI app."""

import asyncio
import json
import re

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from feature_repo.live_events import LiveEvent
from serving.error_answers import add_error_answers
from serving.events import MAX_EVENTS
from serving.request_limits import BODY_BYTES, EVENTS_BODY_BYTES, RequestLimits, request_id
from serving.schemas import MAX_CANDIDATES, RankRequest


@pytest.fixture
def rejected():
    return []


@pytest.fixture
def app(rejected):
    app = FastAPI()
    add_error_answers(app)
    app.add_middleware(RequestLimits, rejected=lambda *told: rejected.append(told))

    @app.post("/v1/events")
    @app.post("/v1/rank")
    async def size(request: Request):
        return {"bytes": len(await request.body()), "request_id": request_id.get()}

    @app.post("/parsed")
    async def parsed(request: RankRequest):
        return {"candidates": len(request.candidates)}

    @app.post("/fails")
    async def fails():
        raise RuntimeError("/secret/path")

    return app


@pytest.fixture
def client(app):
    return TestClient(app, raise_server_exceptions=False)


def pieces(size):
    """The body as chunks, so that no Content-Length is sent."""
    return (b"x" * min(10_000, size - start) for start in range(0, size, 10_000))


@pytest.mark.parametrize(
    ("path", "most"), [("/v1/rank", BODY_BYTES), ("/v1/events", EVENTS_BODY_BYTES)]
)
@pytest.mark.parametrize("in_pieces", [False, True])
def test_a_body_of_the_cap_is_taken_and_one_byte_more_is_not(
    client, rejected, path, most, in_pieces
):
    for size, status in ((most, 200), (most + 1, 413)):
        response = client.post(path, content=pieces(size) if in_pieces else b"x" * size)
        assert response.status_code == status
        if status == 200:
            assert response.json()["bytes"] == size
    assert response.json() == {"error": f"the body is larger than {most} bytes"}
    assert response.headers["connection"] == "close"
    assert rejected == [("body", f"the body is larger than {most} bytes")]


def test_a_parsed_body_over_the_cap_is_413_as_well(client):
    headers = {"content-type": "application/json"}
    response = client.post("/parsed", content=pieces(BODY_BYTES + 1), headers=headers)
    assert response.status_code == 413


async def exchange(app, headers, chunks):
    """The status of a request given to the app itself, and how many of its chunks were taken."""
    left, sent = list(chunks), []
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/rank",
        "raw_path": b"/v1/rank",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }

    async def receive():
        body = left.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], len(chunks) - len(left)


def test_no_more_is_read_than_it_takes_to_refuse(app):
    chunks = [b"x" * 65_536] * 50
    assert asyncio.run(exchange(app, [], chunks)) == (413, BODY_BYTES // 65_536 + 1)
    for stated in (b"131073", b"9" * 5000):
        headers = [(b"content-length", stated)]
        assert asyncio.run(exchange(app, headers, chunks)) == (413, 0)


@pytest.mark.parametrize("stated", [b"10", b"-5", b"ten", b"", "²".encode()])
def test_a_content_length_that_lies_does_not_help(app, stated):
    headers = [(b"content-length", stated)]
    assert asyncio.run(exchange(app, headers, [b"x" * 65_536] * 50)) == (413, 3)


def test_the_largest_good_requests_fit():
    """Every field at its longest, and indented."""
    low = -(2**63)
    rank = {"user_id": low, "candidates": [low] * MAX_CANDIDATES}
    assert len(json.dumps(rank, indent=8)) <= BODY_BYTES
    event = {
        "event_id": low,
        "user_id": low,
        "track_id": low,
        "event_timestamp": "2026-01-02T03:04:05.123456+00:00",
        "action": "favourite",
        "played_ratio": 0.30000000000000004,
        "session_id": low,
    }
    assert set(event) == set(LiveEvent.model_fields)
    assert len(json.dumps({"events": [event] * MAX_EVENTS}, indent=4)) <= EVENTS_BODY_BYTES


@pytest.mark.parametrize(
    "given", ["a", "4bf92f3577b34da6a3ce929d0e0e4736", "web:7.a_b-c", "x" * 64]
)
def test_a_sane_request_id_is_kept_and_returned(client, given):
    response = client.post("/v1/rank", headers={"X-Request-Id": given})
    assert response.headers["x-request-id"] == given
    assert response.json()["request_id"] == given


@pytest.mark.parametrize("given", [None, "", "x" * 65, "a b", "<b>", "a\nb: c", "\xe9", 'a"b'])
def test_any_other_is_replaced(client, given):
    headers = {} if given is None else {"X-Request-Id": given.encode("latin-1")}
    answers = [client.post("/v1/rank", headers=headers) for _ in range(2)]
    made = {answer.headers["x-request-id"] for answer in answers}
    assert len(made) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in made)
    assert {answer.json()["request_id"] for answer in answers} == made


def test_refusals_and_failures_name_the_request_too(client):
    for path, content, status in [
        ("/v1/rank", b"x" * (BODY_BYTES + 1), 413),
        ("/parsed", b"{", 422),
        ("/nowhere", b"", 404),
        ("/fails", b"", 500),
    ]:
        headers = {"X-Request-Id": "mine", "content-type": "application/json"}
        response = client.post(path, content=content, headers=headers)
        assert response.status_code == status
        assert response.headers.get_list("x-request-id") == ["mine"]
        assert "secret" not in response.text


def test_requests_at_once_keep_their_own_ids(app):
    """Each is in the middle of its body while the others begin."""

    async def one(number):
        own, seen = f"request-{number}", []
        scope_headers = [(b"x-request-id", own.encode())]

        async def slow(scope, receive, send):
            await asyncio.sleep(0)
            seen.append(request_id.get())

        limits = RequestLimits(slow, lambda reason, said: None)
        await limits({"type": "http", "path": "/", "headers": scope_headers}, None, None)
        return own, seen

    async def many():
        return await asyncio.gather(*(one(number) for number in range(20)))

    assert all(seen == [own] for own, seen in asyncio.run(many()))
