"""The scheduler: which jobs are due, and the whole of it as a process."""

import json
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from ray_jobs.run_log import append_run, read_runs
from ray_jobs.schedule import due_now
from ray_jobs.schedule_file import Job, Schedule
from tests.ray_jobs.scheduled import PATIENCE_S, a_run, logged, scraped

pytest_plugins = ["tests.ray_jobs.scheduled"]


def plan(**fields):
    return Schedule(jobs=(Job(**{"name": "j", "run": ("sequences",), **fields}),))


def test_a_start_that_no_scheduler_saw_is_made_up_for_within_the_misfire_time(workspace):
    now = datetime.now(UTC)
    daily = plan(cron=f"{(now - timedelta(hours=1)):%M %H} * * *", misfire_s=2 * 3600)
    assert not due_now(workspace, daily, daily.jobs[0])  # it never ran: it waits for its moment
    append_run(workspace, a_run((now - timedelta(hours=20)).isoformat()))
    assert due_now(workspace, daily, daily.jobs[0])
    short = plan(cron=daily.jobs[0].cron, misfire_s=600)
    assert not due_now(workspace, short, short.jobs[0])
    append_run(workspace, a_run((now - timedelta(minutes=30)).isoformat()))
    assert not due_now(workspace, daily, daily.jobs[0])


def test_an_interval_goes_on_where_it_was(workspace):
    every = plan(every_s=900)
    append_run(workspace, a_run((datetime.now(UTC) - timedelta(seconds=600)).isoformat()))
    assert not due_now(workspace, every, every.jobs[0])
    every = plan(every_s=300)
    assert due_now(workspace, every, every.jobs[0])


def scheduler_process(workspace, file):
    """A real scheduler whose jobs are real `crescendo` commands."""
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from feature_repo.workspace import Workspace\n"
        "from ray_jobs.progress import configure_logging\n"
        "from ray_jobs.schedule import ScheduleOptions, schedule\n"
        "configure_logging()\n"
        "workspace = Workspace(Path(sys.argv[1]))\n"
        "print(json.dumps(schedule(workspace, ScheduleOptions(file=Path(sys.argv[2])))))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(workspace.root), str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines_until(stream, text):
    """Reads log lines until one holds `text`; gives that one."""
    for line in stream:
        if text in line:
            return line
    raise AssertionError(f"the process ended without {text!r}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_scheduler_runs_crescendo_and_stops_on_a_signal(workspace, tmp_path, number):
    workspace.root.mkdir()
    file = tmp_path / "schedule.yaml"
    jobs = {"broken": {"every_s": 1, "run": ["ingest --source nowhere --path ."], "attempts": 1}}
    file.write_text(yaml.safe_dump({"metrics_port": 0, "jobs": jobs}))
    process = scheduler_process(workspace, file)
    port = json.loads(lines_until(process.stderr, "schedule: running"))["metrics"]
    lines_until(process.stderr, "broken: failed")
    metrics = scraped(int(port.split(":")[2].split("/")[0]))
    assert float(metrics['crescendo_job_runs_total{job="broken",status="failed"}']) >= 1
    process.send_signal(number)
    lines_until(process.stderr, "schedule: stopping")
    rest = process.stderr.read()
    answer = json.loads(process.stdout.read().splitlines()[-1])
    assert process.wait(PATIENCE_S) == 0, rest
    runs = list(read_runs(workspace))
    first = next(run for run in runs if run.status != "skipped")  # a second is short for one run
    assert (first.job, first.status, first.exit_code) == ("broken", "failed", 2)
    assert "nowhere" in first.error  # what the command told its user
    counted = answer["runs"]["broken"]
    assert sum(counted.values()) == len(runs)


def test_once_runs_a_job_through_the_command_line(workspace, tmp_path):
    """As a CronJob calls it: its exit code is that of the job, its last line the job's answer."""
    file = tmp_path / "schedule.yaml"
    run = ["ingest --source nowhere --path ."]
    file.write_text(yaml.safe_dump({"jobs": {"n": {"every_s": 9, "run": run, "attempts": 1}}}))
    words = ["--workspace", str(workspace.root), "schedule", "--file", str(file), "--once"]
    ended = subprocess.run(
        [sys.executable, "-m", "ray_jobs.cli", *words, "n"], capture_output=True, text=True
    )
    assert ended.returncode == 1, ended.stderr
    answer = json.loads(ended.stdout.splitlines()[-1])
    assert (answer["job"], answer["status"], answer["exit_code"]) == ("n", "failed", 2)
    assert "nowhere" in ended.stderr  # the command's own words came through
    assert logged(workspace) == [("n", "failed", 1)]
    ended = subprocess.run(
        [sys.executable, "-m", "ray_jobs.cli", *words, "m"], capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert "the schedule has no job 'm'" in ended.stderr
