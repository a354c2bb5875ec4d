"""Rankings that come too late are refused before they are read; other routes never are."""

import asyncio
from contextlib import ExitStack

import pytest
import structlog
from fastapi import FastAPI
from fastapi.testclient import TestClient

from serving.metrics import ServingMetrics
from serving.pressure import Pressure, PressureOptions
from serving.request_limits import RequestLimits
from serving.shedding import START, Shedding, UnreadRefusals


@pytest.fixture
def pressure():
    return Pressure(PressureOptions(deadline_ms=10))


def called(pressure, path):
    """Status, headers and counts of one request, and how often the application was reached."""
    sent, rejected, reached = [], [], []

    async def app(scope, receive, send):
        reached.append(pressure._arrived)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive():
        raise AssertionError("nothing of the body is read")

    async def send(message):
        sent.append(message)

    middleware = Shedding(app, pressure, UnreadRefusals(rejected.append))
    asyncio.run(middleware({"type": "http", "path": path}, receive, send))
    return sent[0], rejected, reached


def test_a_request_passes_and_is_counted_while_it_is_here(pressure):
    start, rejected, reached = called(pressure, "/v1/rank")
    assert (start["status"], rejected, reached) == (200, [], [1])
    assert pressure._arrived == 0


@pytest.mark.parametrize("path", ["/v1/rank", "/v1/recommend"])
def test_a_full_process_refuses_rankings_at_once(pressure, path):
    with ExitStack() as here:
        for _ in range(1000):
            here.enter_context(pressure.arriving())
        start, rejected, reached = called(pressure, path)
        assert start["status"] == 503
        assert (b"retry-after", b"1") in start["headers"]
        assert (b"content-type", b"application/json") in start["headers"]
        assert (rejected, reached) == (["deadline"], [])
        for open_path in ("/healthz", "/readyz", "/metrics", "/v1/events"):
            assert called(pressure, open_path)[0]["status"] == 200
    assert called(pressure, path)[0]["status"] == 200


def test_refusals_carry_the_request_s_id_and_are_counted_in_one_line_a_second():
    pressure = Pressure(PressureOptions(deadline_ms=1e-6))
    metrics = ServingMetrics()
    app = FastAPI()
    app.add_middleware(Shedding, pressure=pressure, refusals=UnreadRefusals(metrics.rejected))
    app.add_middleware(RequestLimits, rejected=metrics.rejected)
    client = TestClient(app)
    with pressure.arriving(), structlog.testing.capture_logs() as logged:
        answers = [
            client.post("/v1/rank", content=b"not JSON", headers={"X-Request-Id": f"own-{n}"})
            for n in range(5)
        ]
        unnamed = client.post("/v1/recommend", content=b"{}")
    assert {answer.status_code for answer in answers} == {503}
    assert [answer.headers["x-request-id"] for answer in answers] == [f"own-{n}" for n in range(5)]
    assert len(unnamed.headers["x-request-id"]) == 32
    assert {answer.headers["retry-after"] for answer in answers} == {"1"}
    assert answers[0].json() == {
        "error": "overloaded: the requests ahead of it fill its deadline; try again"
    }
    assert "x-request-id" not in str(START)  # the first answer's id does not stay in what is shared
    assert b'crescendo_rejections_total{reason="deadline"} 6.0' in metrics.text()
    assert 1 <= len(logged) <= 2
    assert logged[0]["requests"] == 1
