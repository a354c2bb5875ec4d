"""What runs of a schedule leave: the log, by month, and the metrics."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from feature_repo.errors import InputError
from ray_jobs.job_metrics import JobMetrics
from ray_jobs.run_log import append_run, read_runs
from ray_jobs.watermarks import Settled, Watermark, write_watermark
from tests.ray_jobs.scheduled import PATIENCE_S, a_run, job, scraped

pytest_plugins = ["tests.ray_jobs.scheduled"]


def test_the_run_log_goes_by_month_and_outlives_a_torn_line(workspace):
    append_run(workspace, a_run())
    append_run(workspace, a_run("2026-04-01T00:00:00+00:00"))
    path = workspace.root / "runs" / "2026-04.jsonl"
    with path.open("ab") as stream:
        stream.write(b'{"job": "j", "status": "o\xff')
    append_run(workspace, a_run("2026-04-02T00:00:00+00:00", error="naïve"))
    assert [run.started[:10] for run in read_runs(workspace)] == [
        "2026-03-31",
        "2026-04-01",
        "2026-04-02",
    ]
    assert path.read_bytes().count(b"\n") == 3


def test_many_processes_append_whole_lines(workspace):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from feature_repo.workspace import Workspace\n"
        "from ray_jobs.run_log import Run, append_run\n"
        "t = '2026-01-01T00:00:00+00:00'\n"
        "for n in range(50):\n"
        "    append_run(Workspace(Path(sys.argv[1])), Run(job=sys.argv[2], status='ok', started=t,"
        " ended=t, seconds=n, error='x' * 5000))\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(workspace.root), f"w{n}"])
        for n in range(3)
    ]
    assert [writer.wait(PATIENCE_S) for writer in writers] == [0, 0, 0]
    runs = list(read_runs(workspace))
    for n in range(3):
        assert [run.seconds for run in runs if run.job == f"w{n}"] == list(range(50))


def test_metrics_count_runs_and_remember_the_last_success(workspace, runner):
    append_run(workspace, a_run(job="job", started="2026-01-02T03:04:05+00:00"))
    with JobMetrics(workspace, ("job", "other"), 0) as metrics:
        runner._record = metrics.record
        before = scraped(metrics.port)
        name = 'crescendo_job_last_success_timestamp_seconds{job="%s"}'
        moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()
        assert float(before[name % "job"]) == moment
        assert float(before[name % "other"]) == 0
        runner.run(job("ok"))
        runner.run(job("fail 1", name="other", attempts=2))
        after = scraped(metrics.port)
        assert float(after['crescendo_job_runs_total{job="job",status="ok"}']) == 1
        assert float(after['crescendo_job_runs_total{job="other",status="failed"}']) == 2
        assert float(after['crescendo_job_duration_seconds_count{job="other"}']) == 2
        (run, *_) = [run for run in read_runs(workspace) if run.started > "2026-01-03"]
        ended = datetime.fromisoformat(run.ended).timestamp()
        assert float(after[name % "job"]) == pytest.approx(ended)
        with pytest.raises(InputError, match=r"metrics_port \d+ cannot be used"):
            JobMetrics(workspace, (), metrics.port).__enter__()


def test_metrics_say_how_old_every_watermark_is(workspace):
    moment = datetime.now(UTC) - timedelta(hours=30)
    write_watermark(
        workspace,
        Watermark(
            view="users",
            watermark=moment.isoformat(),
            source={},
            settled=Settled(until=moment.isoformat(), rows=0, checksum="0"),
            store="",
            entities=5,
            online=7,
            rows=3,
            late_rows=2,
            vanished=1,
        ),
    )
    (workspace.root / "materialization" / "torn.json").write_text("{")
    with JobMetrics(workspace, ("job",), 0) as metrics:
        read = scraped(metrics.port)
    age = float(read['crescendo_watermark_age_seconds{view="users"}'])
    assert 30 * 3600 <= age < 31 * 3600
    assert float(read['crescendo_watermark_age_seconds{view="torn"}']) == float("inf")
    names = ("online_entities", "materialized_rows", "late_rows", "vanished_entities")
    values = [float(read[f'crescendo_{name}{{view="users"}}']) for name in names]
    assert values == [7, 3, 2, 1]
