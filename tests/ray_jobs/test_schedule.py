"""The scheduler with real processes: order, attempts, timeouts, locks, stops, log and metrics.

The commands of the jobs are small Python programs that talk to the test over a socket: the test
waits for what they say, never for time to pass.
"""

import fcntl
import json
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import urllib.request
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from ray_jobs.job_metrics import JobMetrics
from ray_jobs.run_log import Run, append_run, read_runs
from ray_jobs.schedule import due_now
from ray_jobs.schedule_file import DEFAULT_FILE, Job, Schedule, read_schedule
from ray_jobs.schedule_run import JobRunner
from ray_jobs.watermarks import Settled, Watermark, write_watermark

PATIENCE_S = 60


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "workspace")


class Caller:
    """Where the commands of a test call in: `next()` waits for one and gives what it said."""

    def __init__(self):
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(PATIENCE_S)
        self.port = self._server.getsockname()[1]

    def next(self):
        connection, _ = self._server.accept()
        connection.settimeout(PATIENCE_S)
        said = connection.makefile("r").readline()
        return json.loads(said), connection

    def close(self):
        self._server.close()


@pytest.fixture
def caller():
    caller = Caller()
    yield caller
    caller.close()


PROGRAM = """
import json, os, signal, socket, subprocess, sys
words, port = sys.argv[2:], int(sys.argv[1])
what = words[0]
def call(s=None):
    s = s or socket.create_connection(("127.0.0.1", port))
    s.sendall((json.dumps({"what": words, "pid": os.getpid()}) + "\\n").encode())
    return s
if what == "ok":
    print("some text")
    print(json.dumps({"did": words}))
elif what == "fail":
    print("it broke", file=sys.stderr)
    sys.exit(int(words[1]))
elif what == "call":          # says that it runs, and ends when the test answers
    answer = call().recv(10).decode()
    sys.exit(int(answer))
elif what == "hang":          # says that it runs, and ends by a signal only
    connection = call()
    signal.pause()
elif what == "deaf":          # ignores SIGTERM, and has a child that does too
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = socket.create_connection(("127.0.0.1", port))
    subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.pause()"], pass_fds=[connection.fileno()]
    )
    call(connection)
    signal.pause()
elif what == "countdown":     # fails until its file counts down to zero
    left = int(open(words[1]).read())
    open(words[1], "w").write(str(left - 1))
    sys.exit(1 if left else 0)
"""


@pytest.fixture
def program(tmp_path, caller):
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(PROGRAM))
    return [sys.executable, str(path), str(caller.port)]


@pytest.fixture
def runner(workspace, program):
    seen = []
    runner = JobRunner(workspace, seen.append, program)
    runner.seen = seen
    return runner


def job(*lines, name="job", **fields):
    return Job(name=name, run=lines, **{"every_s": 3600, "backoff_s": 0, **fields})


def logged(workspace):
    return [(run.job, run.status, run.attempt) for run in read_runs(workspace)]


def gone(pid):
    """Whether a process has ended: it may be a zombie that nobody waits for."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_commands_run_in_order_and_the_answer_is_the_last_json_line(workspace, runner):
    run = runner.run(job("ok one", "ok 'two words'"))
    assert (run.status, run.exit_code, run.answer) == ("ok", 0, {"did": ["ok", "two words"]})
    assert run.command == "ok two words"
    assert list(read_runs(workspace)) == [run] == runner.seen
    assert datetime.fromisoformat(run.ended) >= datetime.fromisoformat(run.started)


def test_the_first_failure_ends_an_attempt_and_attempts_are_limited(workspace, runner):
    run = runner.run(job("ok one", "fail 2", "ok never", attempts=2))
    assert (run.status, run.exit_code, run.attempt) == ("failed", 2, 2)
    assert run.command == "fail 2"
    assert run.error == "it broke"
    assert logged(workspace) == [("job", "failed", 1), ("job", "failed", 2)]


def test_a_later_attempt_may_succeed(workspace, runner, tmp_path):
    (tmp_path / "left").write_text("2")
    run = runner.run(job(f"countdown {tmp_path / 'left'}", attempts=5))
    assert (run.status, run.attempt) == ("ok", 3)
    assert [status for _, status, _ in logged(workspace)] == ["failed", "failed", "ok"]


def test_a_timeout_ends_the_command_and_what_it_started(workspace, program, caller, monkeypatch):
    monkeypatch.setattr("ray_jobs.schedule_run.STOP_GRACE_S", 0.2)
    runner = JobRunner(workspace, lambda run: None, program)
    threads = threading.Thread(
        target=runner.run, args=(job("deaf", timeout_s=3, attempts=1),), daemon=True
    )
    threads.start()
    said, connection = caller.next()
    assert connection.recv(1) == b""  # closed when both processes are gone
    threads.join(PATIENCE_S)
    (run,) = read_runs(workspace)
    assert run.status == "timeout"
    assert run.exit_code == -signal.SIGKILL
    assert "timeout_s=3" in run.error
    assert gone(said["pid"])


def test_a_job_that_still_runs_is_skipped_also_by_another_scheduler(workspace, program, caller):
    first, second = (JobRunner(workspace, lambda run: None, program) for _ in range(2))
    running = threading.Thread(target=first.run, args=(job("call"),))
    running.start()
    _, connection = caller.next()
    assert second.run(job("ok two")).status == "skipped"
    assert second.run(job("ok three", name="other")).status == "ok"
    connection.sendall(b"0")
    running.join(PATIENCE_S)
    assert second.run(job("ok four")).status == "ok"
    assert [status for _, status, _ in logged(workspace)] == ["skipped", "ok", "ok", "ok"]


def test_a_killed_scheduler_leaves_its_command_the_lock(workspace, program, caller):
    """The command goes on, and no other scheduler starts the job beside it."""
    code = (
        "import sys, json\n"
        "from pathlib import Path\n"
        "from feature_repo.workspace import Workspace\n"
        "from ray_jobs.schedule_file import Job\n"
        "from ray_jobs.schedule_run import JobRunner\n"
        f"runner = JobRunner(Workspace(Path({str(workspace.root)!r})), print, {program!r})\n"
        "runner.run(Job(name='job', run=('call',), every_s=3600))\n"
    )
    scheduler = subprocess.Popen([sys.executable, "-c", code])
    said, connection = caller.next()
    scheduler.kill()
    scheduler.wait()
    runner = JobRunner(workspace, lambda run: None, program)
    assert runner.run(job("ok")).status == "skipped"
    assert not gone(said["pid"])
    connection.sendall(b"0")
    assert connection.recv(1) == b""
    with open(workspace.root / "runs" / "job.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # free as soon as the command is gone
    assert runner.run(job("ok")).status == "ok"


def test_stop_ends_the_command_and_no_attempt_follows(workspace, program, caller):
    runner = JobRunner(workspace, lambda run: None, program)
    running = threading.Thread(target=runner.run, args=(job("hang", attempts=3),))
    running.start()
    said, _ = caller.next()
    runner.stop()
    running.join(PATIENCE_S)
    assert not running.is_alive()
    assert gone(said["pid"])
    assert logged(workspace) == [("job", "stopped", 1)]
    assert runner.run(job("ok")) is None


def test_stop_ends_the_wait_before_an_attempt(workspace, program):
    begun = threading.Event()
    runner = JobRunner(workspace, lambda run: begun.set(), program)
    running = threading.Thread(target=runner.run, args=(job("fail 1", backoff_s=10**6),))
    running.start()
    assert begun.wait(PATIENCE_S)
    runner.stop()
    running.join(PATIENCE_S)
    assert not running.is_alive()
    assert logged(workspace) == [("job", "failed", 1)]


def a_run(started="2026-03-31T23:59:59+00:00", **fields):
    return Run(
        **{"job": "j", "status": "ok", "started": started, "ended": started, "seconds": 1} | fields
    )


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


def scraped(port):
    url = f"http://127.0.0.1:{port}/metrics"
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        lines = answer.read().decode().splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


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


def test_the_default_schedule_is_read():
    default = read_schedule()
    assert {job.name for job in default.jobs} == {"nightly", "fresh"}
    assert default.job("nightly").cron == "30 0 * * *"
    with pytest.raises(InputError, match=r"no job 'weekly'; its jobs are nightly, fresh"):
        default.job("weekly")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cron": "61 0 * * *"}, "cron '61 0"),
        ({"cron": "0 0 * *"}, "five fields"),
        ({"cron": "0 0 * * 1"}, "weekday"),
        ({"every_s": 60}, "one of cron and every_s"),
        ({"cron": None}, "one of cron and every_s"),
        ({"run": "sequences"}, "run must be a list"),
        ({"run": []}, "run must list"),
        ({"run": ["sequences 'x"]}, "cannot split"),
        ({"attempts": 0}, "attempts must be at least 1"),
        ({"timeout_s": "long"}, "timeout_s must be a number of seconds, got 'long'"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"retries": 3}, "unknown field 'retries'"),
    ],
)
def test_a_wrong_schedule_names_file_field_and_value(tmp_path, change, reason):
    entry = {"cron": "0 3 * * *", "run": ["sequences"], **change}
    path = tmp_path / "schedule.yaml"
    path.write_text(yaml.safe_dump({"jobs": {"nightly": entry}}))
    with pytest.raises(InputError) as raised:
        read_schedule(path)
    assert reason in str(raised.value)
    assert str(path) in str(raised.value)
    assert str(DEFAULT_FILE) in str(raised.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("jobs: {}", "at least one job"),
        ("- a", "the file must be a mapping"),
        ("jobs: [a]", "jobs must be a mapping"),
        ("timezone: Mars\njobs: {a: {cron: 0 0 * * *, run: [x]}}", "timezone"),
        ("metrics_port: 70000\njobs: {a: {cron: 0 0 * * *, run: [x]}}", "metrics_port"),
        ("jobs: {'a/b': {cron: 0 0 * * *, run: [x]}}", "name may hold no"),
        ("{", "is not YAML"),
    ],
)
def test_a_wrong_schedule_file(tmp_path, text, reason):
    path = tmp_path / "schedule.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=reason):
        read_schedule(path)
    with pytest.raises(InputError, match="cannot read"):
        read_schedule(tmp_path / "none.yaml")


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
