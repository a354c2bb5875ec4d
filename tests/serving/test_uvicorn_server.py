"""`crescendo serve --uvicorn` as a process: where it listens, over TLS, and what its log keeps."""

import json
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import grpc
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.ranking_pb2 import RankRequest, RankResponse
from serving.releases import make_release
from serving.tokens import create_token, tokens_path
from tests.serving.serving_process import free_port, served
from tests.serving.test_listening import certificate_pair

BODY = {"user_id": 1, "candidates": [1, 2, 3]}


@pytest.fixture
def workspace(world):
    make_release(world.workspace, world.old)
    yield world.workspace
    tokens_path(world.workspace).unlink(missing_ok=True)


def refused(workspace, *options):
    """What a server says that does not start; nothing is loaded before."""
    command = [Path(sys.executable).parent / "crescendo", "--workspace", workspace.root, "serve"]
    ended = subprocess.run([*command, *options], capture_output=True, text=True)
    assert ended.returncode == 2, ended.stderr
    assert "is live" not in ended.stderr
    (problem,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    return problem


@pytest.mark.slow
def test_a_port_that_cannot_be_had_is_named_at_once(workspace):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = f"127.0.0.1, port {port} cannot be listened on (Address already in use); stop what"
        assert said in refused(workspace, "--uvicorn", "--port", str(port))
        grpc_taken = ("--uvicorn", "--port", str(free_port()), "--grpc-port", str(port))
        problem = refused(workspace, *grpc_taken)
        assert said in problem
        assert problem.endswith("give another --host or --grpc-port")
        assert said in refused(workspace, "--port", str(port))  # Ray Serve


@pytest.mark.slow
def test_over_tls_http_and_grpc_answer_those_who_trust_the_certificate(workspace, tmp_path):
    certificate, key = certificate_pair(tmp_path, "server")
    port = free_port()
    files = ("--certificate", str(certificate), "--key", str(key), "--grpc-port", str(port))
    with served(workspace, *files, scheme="https") as url:
        trusting = ssl.create_default_context(cafile=certificate)
        with httpx.Client(verify=trusting, timeout=60) as client:
            assert len(client.post(f"{url}/v1/rank", json=BODY).json()["results"]) == 3
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{url}/healthz")
        with pytest.raises(httpx.HTTPError):  # plain HTTP gets no answer there
            httpx.get(f"{url}/healthz".replace("https", "http"), timeout=60)
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        with grpc.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
            rank = channel.unary_unary(
                "/crescendo.v1.Ranking/Rank",
                request_serializer=RankRequest.SerializeToString,
                response_deserializer=RankResponse.FromString,
            )
            assert len(rank(RankRequest(**BODY), timeout=60).track_ids) == 3


@pytest.mark.slow
def test_whoever_is_refused_is_counted_and_finds_its_request_in_the_log(workspace):
    said: list[str] = []
    with served(workspace, said=said) as url:

        def ask(own_id, *, status, reason, content=json.dumps(BODY), path="/v1/rank", **headers):
            named = {"content-type": "application/json", "x-request-id": own_id, **headers}
            answer = httpx.post(f"{url}{path}", content=content, headers=named, timeout=60)
            assert answer.status_code == status, answer.text
            assert answer.headers.get_list("x-request-id") == [own_id]
            expected[own_id] = reason, answer.json()["error"]

        expected: dict[str, tuple[str, str]] = {}
        ask("name-1", status=400, reason="access", host="example.org")
        ask("form-1", status=422, reason="form", content="{")
        ask("size-1", status=413, reason="body", content="1" * 200_000)
        made = create_token(workspace, name="web", scopes=["rank"], requests_per_s=1e-3)
        bearer = {"authorization": f"Bearer {made['token']}"}
        # Tokens are looked at every second.
        while httpx.post(f"{url}/v1/rank", json=BODY, timeout=60).status_code == 200:
            pass
        ask("none-1", status=401, reason="access")
        ask("scope-1", status=403, reason="access", path="/v1/events", **bearer)
        first = httpx.post(f"{url}/v1/rank", json=BODY, headers=bearer, timeout=60)
        assert first.status_code == 200
        ask("rate-1", status=429, reason="rate", **bearer)
        scraped = httpx.get(f"{url}/metrics", timeout=60).text
    logged = {}
    for line in said:
        if line.startswith("{") and (entry := json.loads(line))["event"] == "refused":
            logged[entry["request_id"]] = entry["reason"], entry["said"]
    assert {own: told for own, told in logged.items() if own in expected} == expected
    counted = {
        sample.labels["reason"]: sample.value
        for family in text_string_to_metric_families(scraped)
        for sample in family.samples
        if sample.name == "crescendo_rejections_total"
    }
    assert (counted["form"], counted["body"], counted["rate"]) == (1, 1, 1)
    assert counted["access"] == 3 + 1  # and the one that saw the tokens come
    assert made["token"] not in "".join(said)
