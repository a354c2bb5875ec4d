"""Prometheus metrics of the scheduler, served on loopback.

Counts and times of runs start from the run log, so a restart of the scheduler does not look like a
night without a success. The state of each view is read from its watermark file at every scrape: it
is right whoever materialized. `deploy/prometheus/alerts.yaml` names these metrics.
"""

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from types import TracebackType

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from feature_repo.errors import ArtifactError, InputError
from feature_repo.workspace import Workspace
from ray_jobs.run_log import STATUSES, Run, read_runs
from ray_jobs.watermarks import read_watermark, watermark_names

LOOPBACK = "127.0.0.1"
DURATION_BUCKETS_S = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600)


class JobMetrics:
    """Runs of jobs, and the age of every view's watermark. A context manager: serves inside it."""

    def __init__(self, workspace: Workspace, jobs: tuple[str, ...], port: int) -> None:
        self.port = port
        """After entering: the port that it listens on."""
        self.registry = CollectorRegistry()
        registry = self.registry
        self._runs = Counter(
            "crescendo_job_runs", "Attempts by outcome", ["job", "status"], registry=registry
        )
        self._seconds = Histogram(
            "crescendo_job_duration_seconds",
            "Wall time of attempts",
            ["job"],
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self._success = Gauge(
            "crescendo_job_last_success_timestamp_seconds",
            "End of the last successful run, 0 if there was none",
            ["job"],
            registry=registry,
        )
        self._running = Gauge("crescendo_job_running", "1 in a run", ["job"], registry=registry)
        for job in jobs:
            self._success.labels(job).set(0)
            self._running.labels(job).set(0)
            for status in STATUSES:
                self._runs.labels(job, status)
        for run in read_runs(workspace):
            if run.job in jobs and run.status == "ok":
                self._success.labels(run.job).set(_epoch(run.ended))
        registry.register(_Watermarks(workspace))

    def started(self, job: str) -> None:
        self._running.labels(job).set(1)

    def ended(self, job: str) -> None:
        self._running.labels(job).set(0)

    def record(self, run: Run) -> None:
        self._runs.labels(run.job, run.status).inc()
        if run.status not in ("skipped", "missed"):
            self._seconds.labels(run.job).observe(run.seconds)
        if run.status == "ok":
            self._success.labels(run.job).set(_epoch(run.ended))

    def __enter__(self) -> "JobMetrics":
        try:
            self._server, self._thread = start_http_server(self.port, LOOPBACK, self.registry)
        except OSError as error:
            raise InputError(
                f"metrics_port {self.port} cannot be used ({error.strerror}); is another scheduler "
                "running? Set another port in the schedule"
            ) from error
        self.port = self._server.server_port
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Watermarks(Collector):
    """The state of every view, read when it is asked for."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def collect(self) -> Iterator[GaugeMetricFamily]:
        def family(name: str, text: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"crescendo_{name}", text, labels=["view"])

        age = family("watermark_age_seconds", "Now less the moment up to which a view is online")
        entities = family("online_entities", "Online rows after the last materialization")
        rows = family("materialized_rows", "Rows written by the last materialization")
        late = family("late_rows", "Source rows of the last run from before its lateness bound")
        vanished = family("vanished_entities", "Online rows whose entity the source lost")
        now = datetime.now(UTC)
        for name in watermark_names(self._workspace):
            try:
                mark = read_watermark(self._workspace, name)
            except ArtifactError:
                age.add_metric([name], math.inf)  # nobody knows: as bad as never
                continue
            if mark is None:
                continue
            age.add_metric([mark.view], (now - mark.moment).total_seconds())
            entities.add_metric([mark.view], mark.online)
            rows.add_metric([mark.view], mark.rows)
            late.add_metric([mark.view], mark.late_rows)
            vanished.add_metric([mark.view], mark.vanished)
        yield from (age, entities, rows, late, vanished)


def _epoch(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
