"""The load test against servers that answer by script, on real sockets."""

import asyncio
import json
import ssl
import subprocess
import threading
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np
import pytest

from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from serving.load_client import Target
from serving.load_report import Objective
from serving.load_test import LoadOptions, degraded_reasons, load_test, run_closed, run_load

ANSWER = json.dumps(
    {"release_id": "release-a", "results": [{"track_id": 1, "score": 0.5}], "degraded": []}
).encode()


def http(body=ANSWER, status="200 OK", head=""):
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{head}\r\n".encode() + body


@contextmanager
def scripted(answer, tls=None):
    """The URL of a server. `await answer(number, request, writer)` gives the bytes of each answer.

    An answer of None ends the connection. `number` counts all requests from 0.
    """
    requests = []

    async def serve(reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                requests.append(head + await reader.readexactly(size))
                said = await answer(len(requests) - 1, requests[-1], writer)
                if said is None:
                    break
                writer.write(said)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    async def run():
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
        started.append((asyncio.get_running_loop(), server.sockets[0].getsockname()[1]))
        ready.set()
        await stop.wait()
        server.close()

    started, ready, stop = [], threading.Event(), asyncio.Event()
    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert ready.wait(60)
    (loop, port) = started[0]
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}", requests
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def by_turns(*answers):
    async def answer(number, request, writer):
        return answers[number % len(answers)]

    return answer


def options(url, **changes):
    of_target = {name: changes.pop(name) for name in ("token", "timeout_s", "connections", "route")
                 if name in changes}  # fmt: skip
    values = {"rate": 400.0, "seconds": 0.5, "warm_up_s": 0.0, **changes}
    return LoadOptions(target=Target(url=url, **of_target), **values)


BODIES = [b'{"user_id": 1, "candidates": [1, 2]}', b'{"user_id": 2, "candidates": [3]}']


def test_sends_all_that_is_due_and_counts_what_the_answers_say():
    odd = json.dumps({"release_id": "release-b", "results": [], "degraded": ["a", "b"]}).encode()
    with scripted(by_turns(http(), http(odd))) as (url, requests):
        report = run_load(options(url, token="secret", route="/v1/recommend"), BODIES)
    assert report.requests == len(requests) == report.answers["200"].count
    assert 100 < report.requests < 320  # 200 on average
    assert report.errors == 0
    assert set(report.releases) == {"release-a", "release-b"}
    assert sum(report.releases.values()) == report.requests
    assert report.degraded == dict.fromkeys("ab", report.releases["release-b"])
    assert report.goodput == report.requests / 0.5
    for request in requests:
        head, body = request.split(b"\r\n\r\n")
        assert head.startswith(b"POST /v1/recommend HTTP/1.1\r\n")
        assert b"Authorization: Bearer secret\r\n" in head
        assert body in BODIES
    json.dumps(asdict(report))


def test_the_same_seed_sends_at_the_same_moments_and_warm_up_is_not_counted():
    with scripted(by_turns(http())) as (url, requests):
        whole = run_load(options(url, seconds=0.5), BODIES).requests
        again = run_load(options(url, seconds=0.25, warm_up_s=0.25), BODIES).requests
        other = run_load(options(url, seconds=0.5, seed=1), BODIES).requests
    assert len(requests) == 2 * whole + other
    assert 0 < again < whole


def test_goes_on_while_nothing_is_answered_and_counts_the_wait_from_the_due_moment():
    """A loop that waits for its answers would never send the fiftieth request, and would hang."""
    held, release = [], asyncio.Event()

    async def answer(number, request, writer):
        held.append(number)
        if len(held) == 50:
            release.set()
        await release.wait()
        return http()

    with scripted(answer) as (url, _):
        report = run_load(options(url, timeout_s=60), BODIES)
    assert report.errors == 0
    # The same process, by numpy alone: the first request waits at least until the fiftieth is due.
    due = np.cumsum(np.random.default_rng(0).exponential(1 / 400, 300))
    assert report.answers["200"].max_ms >= 1e3 * (due[49] - due[0])


def test_a_request_beyond_the_connections_waits_for_one():
    writers = set()

    async def answer(number, request, writer):
        writers.add(writer)
        return http()

    with scripted(answer) as (url, _):
        report = run_load(options(url, rate=4000, connections=2, timeout_s=60), BODIES)
    assert report.errors == 0
    assert len(writers) == 2


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (http(b"{}", "429 Too Many Requests", "Retry-After: 1\r\n"), "429"),
        (http(b"oh", "500 Internal Server Error"), "500"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", "timeout"),
        (b"nothing like HTTP\r\n\r\n", "bad_answer"),
        (None, "disconnected"),
    ],
)
def test_every_error_is_counted_and_ends_nothing(said, kind):
    with scripted(by_turns(http(), said)) as (url, requests):
        report = run_load(options(url, timeout_s=5.0, rate=100, seconds=0.3), BODIES)
    assert set(report.answers) <= {"200", kind}
    assert report.answers[kind].count == report.errors > 0
    assert sum(answers.count for answers in report.answers.values()) == report.requests
    assert len(requests) == report.requests  # nothing is sent twice


@pytest.mark.parametrize("unused_tcp_port", [1])  # nobody listens on tcpmux
def test_a_service_that_is_not_there_is_an_error_like_any_other(unused_tcp_port):
    report = run_load(
        options(f"http://127.0.0.1:{unused_tcp_port}", objectives=(Objective.parse("p50=1000"),)),
        BODIES,
    )
    assert report.answers.keys() == {"connect"}
    assert report.goodput == 0
    assert report.verdict == "missed"
    assert report.percentiles["p50"].at_most_ms is None


@pytest.mark.parametrize(
    "said",
    [
        http(head="Connection: close\r\n"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + f"{len(ANSWER):x}\r\n".encode()
        + ANSWER
        + b"\r\n0\r\n\r\n",
    ],
)
def test_other_forms_of_an_answer_are_read(said):
    with scripted(by_turns(said)) as (url, _):
        report = run_load(options(url), BODIES)
    assert report.errors == 0
    assert report.releases == {"release-a": report.requests}


def test_https_checks_the_certificate(tmp_path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with scripted(by_turns(http()), tls) as (url, _):
        unknown = run_load(options(url, rate=20), BODIES)
        assert unknown.answers.keys() == {"connect"}
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        report = run_load(options(url, rate=20), BODIES)
    assert report.answers.keys() == {"200"}


def test_a_closed_loop_has_one_request_a_client_on_its_way():
    writers = set()

    async def answer(number, request, writer):
        writers.add(writer)
        return http()

    with scripted(answer) as (url, requests):
        report = run_closed(Target(url=url), BODIES, clients=3, seconds=0.5, warm_up_s=0.1)
    assert len(writers) == 3
    assert report.errors == 0
    assert 0 < report.answers_per_s * 0.5 <= len(requests)
    assert report.p99_ms >= report.p50_ms > 0


def test_the_command_prints_tables_on_standard_error_alone(tmp_path, capsys):
    with scripted(by_turns(http())) as (url, requests):
        result = load_test(
            Workspace(tmp_path),
            options(url, objectives=(Objective.parse("p50=60000"), Objective.parse("p99.9=60000"))),
            candidates=4,
            users="7-9",
            tracks="1-20",
        )
    said = capsys.readouterr()
    assert said.out == ""
    assert "p50=60000: met" in said.err
    assert "needs 270,336" in said.err
    assert result["verdict"] == "undecided"  # too few requests for p99.9
    assert json.loads(json.dumps(result)) == result
    for request in requests:
        body = json.loads(request.split(b"\r\n\r\n")[1])
        assert body["user_id"] in (7, 8, 9)
        assert len(set(body["candidates"])) == 4
        assert set(body["candidates"]) <= set(range(1, 21))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": 0.0}, "rate must be above 0"),
        ({"seconds": float("nan")}, "seconds must be above 0"),
        ({"warm_up_s": -1.0}, "warm_up_s must not be negative"),
        ({"timeout_s": 0.0}, "timeout_s must be above 0"),
        ({"connections": 0}, "connections must lie between 1 and 900"),
    ],
)
def test_bad_options_are_named(change, message):
    with pytest.raises(InputError, match=message):
        options("http://127.0.0.1:1", **change)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://a", "http://", "http://a/v1/rank"])
def test_a_bad_url_is_named(url):
    with pytest.raises(InputError, match="url must be http://HOST:PORT"):
        Target(url=url)


def test_reasons_are_read_from_the_answers_end():
    body = json.dumps({"results": [{"sources": ["x"]}], "degraded": ["user_stale"], "user_id": 1})
    assert degraded_reasons(body.encode()) == ["user_stale"]
    assert degraded_reasons(b'{"degraded": [], "n": 1}') == []
    assert degraded_reasons(b"{}") == []
