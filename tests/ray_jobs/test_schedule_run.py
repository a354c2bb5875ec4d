"""A job of the schedule as real processes: order, attempts, timeouts, locks, stops."""

import fcntl
import signal
import subprocess
import sys
import threading
from datetime import datetime

from ray_jobs.run_log import read_runs
from ray_jobs.schedule_run import JobRunner
from tests.ray_jobs.scheduled import PATIENCE_S, gone, job, logged

pytest_plugins = ["tests.ray_jobs.scheduled"]


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
