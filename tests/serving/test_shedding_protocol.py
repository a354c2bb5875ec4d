"""Refusals in uvicorn's protocol: a real server in a thread, and plain sockets."""

import asyncio
import http.client
import re
import socket
import threading
from contextlib import contextmanager

import pytest
import uvicorn

from serving.pressure import Pressure, PressureOptions
from serving.shedding import BODY, UnreadRefusals
from serving.shedding_protocol import shedding_protocol

ASKED = b'{"user_id": 7, "candidates": [1, 2]}'


@pytest.fixture(scope="module")
def served():
    """The port, what fills the process for a while, the counted refusals, the paths that passed."""
    pressure = Pressure(PressureOptions(deadline_ms=10))
    rejected, reached = [], []
    held = threading.Event()

    async def app(scope, receive, send):
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        reached.append((scope["path"], body))
        while held.is_set():
            await asyncio.sleep(0)
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    @contextmanager
    def overloaded():
        pressure._request_s, usual = 60.0, pressure._request_s
        with pressure.arriving():
            yield
        pressure._request_s = usual

    protocol = shedding_protocol(pressure, UnreadRefusals(rejected.append))
    config = uvicorn.Config(app, http=protocol, lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()[1], overloaded, rejected, reached, held
        server.should_exit = True
        thread.join()


@contextmanager
def connected(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    yield connection
    connection.close()


def asked(connection, path="/v1/rank", **headers):
    connection.request("POST", path, ASKED, headers)
    answer = connection.getresponse()
    return answer, answer.read()


def test_rankings_are_refused_on_a_connection_that_goes_on(served):
    port, overloaded, rejected, reached, _ = served
    rejected.clear()
    reached.clear()
    with connected(port) as connection:
        with overloaded():
            for path in ("/v1/rank", "/v1/recommend"):
                answer, body = asked(connection, path, **{"X-Request-Id": "mine"})
                assert (answer.status, body) == (503, BODY)
                assert answer.headers["Retry-After"] == "1"
                assert answer.headers["Content-Type"] == "application/json"
                assert answer.headers["X-Request-Id"] == "mine"
            answer, _ = asked(connection, **{"X-Request-Id": "<not mine>"})
            assert len(answer.headers["X-Request-Id"]) == 32
            assert asked(connection, "/v1/events")[0].status == 200
        assert asked(connection)[0].status == 200
    assert rejected == ["deadline"] * 3
    assert reached == [("/v1/events", ASKED), ("/v1/rank", ASKED)]


def head(path=b"/v1/rank", version=b"1.1", length=len(ASKED), more=b""):
    return b"POST %b HTTP/%b\r\nHost: x\r\nContent-Length: %d\r\n%b\r\n" % (
        path, version, length, more,
    )  # fmt: skip


def statuses(connection, count):
    """Of so many answers that come one after the other."""
    found, buffer = [], b""
    while len(found) < count:
        part = connection.recv(65536)
        assert part, f"closed after {found}"
        buffer += part
        found = re.findall(rb"HTTP/1\.1 (\d{3}) ", buffer)
    return found


def test_a_refused_body_in_pieces_is_read_to_its_end(served):
    port, overloaded, rejected, _, _ = served
    rejected.clear()
    with overloaded(), socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in head():
            connection.send(bytes([byte]))
        connection.send(ASKED[:5])
        connection.send(ASKED[5:] + head(path=b"/healthz") + ASKED)
        assert statuses(connection, 2) == [b"503", b"200"]
    assert rejected == ["deadline"]


def test_answers_keep_the_order_of_their_requests(served):
    port, overloaded, rejected, _, held = served
    rejected.clear()
    held.set()
    with overloaded(), socket.create_connection(("127.0.0.1", port), 60) as connection:
        # The second comes while the first is answered: no refusal may overtake that.
        connection.send(head(path=b"/healthz") + ASKED + head() + ASKED)
        held.clear()
        assert statuses(connection, 2) == [b"200", b"200"]
    assert rejected == []  # the application refuses it: `serving.shedding`


@pytest.mark.parametrize(
    "request_head",
    [
        head(version=b"1.0"),
        head(more=b"Connection: close\r\n"),
        head(more=b"Expect: 100-continue\r\n"),
    ],
)
def test_what_is_no_ordinary_request_is_left_to_the_application(served, request_head):
    port, overloaded, rejected, _, _ = served
    rejected.clear()
    with overloaded(), socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.send(request_head + ASKED)
        assert statuses(connection, 1)[-1] in (b"100", b"200")
    assert rejected == []
