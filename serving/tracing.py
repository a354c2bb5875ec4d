"""OpenTelemetry traces of rankings, for those who ask for them.

    OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318 crescendo serve
    tracing = Tracing.asked_for()      # None without that variable: then nothing of this is paid
    tracing.answered("rank", traceparent=..., queue_s=..., read_s=..., ...)

Spans `POST /v1/rank`, `queue`, `read user` and `score` are made from times that were measured
anyway, after the answer: no context is carried through the request. They lie behind each other,
so what lies between them shows as part of the end. Which requests are traced is
OTEL_TRACES_SAMPLER's to say; a client's `traceparent` header is its parent.
"""

import os
import time
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from feature_repo.errors import InputError

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
NS = 1e9


class Tracing:
    """Sends spans to an exporter, in batches, from a thread of its own."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: "crescendo-serving"}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("crescendo.serving")
        self._parents = TraceContextTextMapPropagator()

    @classmethod
    def asked_for(cls) -> "Tracing | None":
        """Over OTLP if the environment names an endpoint; InputError without the exporter."""
        if not os.environ.get(ENDPOINT):
            return None
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError as error:
            raise InputError(
                f"{ENDPOINT} is set, but the exporter is not installed; run `pip install "
                "opentelemetry-exporter-otlp-proto-http`, or unset it"
            ) from error
        return cls(OTLPSpanExporter())

    def answered(
        self,
        route: str,
        *,
        release_id: str,
        request_id: str,
        candidates: int,
        queue_s: float,
        read_s: float,
        score_s: float,
        total_s: float,
        degraded: Sequence[str] = (),
        traceparent: str = "",
    ) -> None:
        """The request that has just been answered."""
        end_ns = time.time_ns()
        begin_ns = end_ns - round(total_s * NS)
        parent = self._parents.extract({"traceparent": traceparent})
        span = self._tracer.start_span(
            f"POST /v1/{route}",
            parent,
            trace.SpanKind.SERVER,
            {
                "crescendo.release_id": release_id,
                "crescendo.request_id": request_id,
                "crescendo.candidates": candidates,
                "crescendo.degraded": list(degraded),
            },
            start_time=begin_ns,
        )
        inside = trace.set_span_in_context(span)
        start_ns = begin_ns
        for name, seconds in (("queue", queue_s), ("read user", read_s), ("score", score_s)):
            child = self._tracer.start_span(name, inside, start_time=start_ns)
            start_ns += round(seconds * NS)
            child.end(start_ns)
        span.end(end_ns)

    def close(self) -> None:
        """Sends what is left; gives up after the exporter's own timeout."""
        self._provider.shutdown()
