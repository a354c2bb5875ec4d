"""Traces: nothing without being asked for; spans with the measured times and the client's trace.

What sends them, opentelemetry-exporter-otlp-proto-http, is an option of users; here a real server
sends to a collector.
"""

import gzip
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from feature_repo.errors import InputError
from serving.releases import make_release
from serving.tracing import ENDPOINT, Tracing
from tests.serving.serving_process import served

MS = 1_000_000


def spans(**changes):
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter)
    facts = {"release_id": "release-1", "request_id": "abc", "candidates": 500}
    times = {"queue_s": 0.0005, "read_s": 0.001, "score_s": 0.002, "total_s": 0.005}
    tracing.answered("rank", **facts, **times, **changes)
    tracing.close()
    return {span.name: span for span in exporter.get_finished_spans()}


def milliseconds(span):
    return (span.end_time - span.start_time) / MS


def test_without_an_endpoint_there_is_no_tracing(monkeypatch):
    monkeypatch.delenv(ENDPOINT, raising=False)
    assert Tracing.asked_for() is None


def test_an_endpoint_without_the_exporter_is_an_error_that_names_the_package(monkeypatch):
    # As an import finds what is not there.
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:4318")
    with pytest.raises(InputError, match="pip install opentelemetry-exporter-otlp-proto-http"):
        Tracing.asked_for()


def test_spans_have_the_measured_times():
    found = spans(degraded=["popularity"])
    assert list(found) == ["queue", "read user", "score", "POST /v1/rank"]
    request = found["POST /v1/rank"]
    assert [milliseconds(found[name]) for name in found] == pytest.approx([0.5, 1, 2, 5])
    assert found["queue"].start_time == request.start_time
    assert found["read user"].start_time == found["queue"].end_time
    assert found["score"].start_time == found["read user"].end_time
    for name in ("queue", "read user", "score"):
        assert found[name].parent.span_id == request.context.span_id
    assert dict(request.attributes) == {
        "crescendo.release_id": "release-1",
        "crescendo.request_id": "abc",
        "crescendo.candidates": 500,
        "crescendo.degraded": ("popularity",),
    }


def test_a_clients_trace_goes_on():
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    request = spans(traceparent=f"00-{trace_id}-{span_id}-01")["POST /v1/rank"]
    assert f"{request.context.trace_id:032x}" == trace_id
    assert f"{request.parent.span_id:016x}" == span_id


def test_what_a_client_decided_not_to_trace_is_not():
    assert spans(traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00") == {}


@pytest.mark.parametrize("traceparent", ["", "00-xyz", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_bad_header_begins_a_trace(traceparent):
    assert spans(traceparent=traceparent)["POST /v1/rank"].parent is None


@contextmanager
def collecting():
    """The address of a collector that speaks OTLP over HTTP, and the spans that it gets."""
    came = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces"
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    came.extend(scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", came
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.slow
def test_a_server_sends_its_spans_to_a_collector(world, monkeypatch):
    made = make_release(world.workspace, world.old)
    trace_id, parent_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    traceparent = {"traceparent": f"00-{trace_id}-{parent_id}-01"}
    with collecting() as (endpoint, came):
        monkeypatch.setenv(ENDPOINT, endpoint)
        with served(world.workspace) as url:
            asked = {"user_id": 1, "candidates": [1, 2, 3]}
            answer = httpx.post(f"{url}/v1/rank", json=asked, headers=traceparent, timeout=60)
            assert answer.status_code == 200
        # The end of the server has sent what was left.
    spans = {span.name: span for span in came}
    assert set(spans) == {"POST /v1/rank", "queue", "read user", "score"}
    request = spans["POST /v1/rank"]
    assert {span.trace_id.hex() for span in came} == {trace_id}
    assert request.parent_span_id.hex() == parent_id
    told = {one.key: one.value.string_value for one in request.attributes}
    assert told["crescendo.release_id"] == made["release_id"]
    assert told["crescendo.request_id"] == answer.headers["x-request-id"]


@pytest.mark.slow
def test_a_collector_that_is_not_there_takes_no_answer_with_it(world, monkeypatch):
    make_release(world.workspace, world.old)
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    with served(world.workspace) as url:
        for _ in range(20):
            asked = {"user_id": 1, "candidates": [1, 2, 3]}
            assert httpx.post(f"{url}/v1/rank", json=asked, timeout=60).status_code == 200
