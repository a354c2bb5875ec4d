"""Rankings that come too late are refused before they are read; other routes never are."""

import asyncio
from contextlib import ExitStack

import pytest

from serving.pressure import Pressure, PressureOptions
from serving.shedding import Shedding


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

    middleware = Shedding(app, pressure, rejected.append)
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
        assert (rejected, reached) == (["deadline"], [])
        for open_path in ("/healthz", "/readyz", "/metrics", "/v1/events"):
            assert called(pressure, open_path)[0]["status"] == 200
    assert called(pressure, path)[0]["status"] == 200
