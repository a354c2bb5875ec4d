"""Runs the platform's commands on a schedule until it is told to stop.

    crescendo schedule [--file schedule.yaml] [--once JOB]

Writes the run log (`runs/YYYY-MM.jsonl`) and serves Prometheus metrics on loopback; the commands
write what they write. The format of the file: `schedule_file.py`.

Misfires: a start that comes later than the job's `misfire_s` is left out and logged as missed. The
same rule holds over a restart: what should have started while no scheduler ran is made up for once,
if it is not older than `misfire_s`.
"""

import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from apscheduler.events import (
    EVENT_JOB_MAX_INSTANCES,
    EVENT_JOB_MISSED,
    JobEvent,
)
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from ray_jobs.job_metrics import LOOPBACK, JobMetrics
from ray_jobs.progress import log
from ray_jobs.run_log import Run, read_runs
from ray_jobs.schedule_file import Job, Schedule, read_schedule
from ray_jobs.schedule_run import JobRunner


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    file: Path | None = None
    """The schedule; the default one, `ray_jobs/schedule.yaml`, where it is not given."""
    once: str | None = None
    """Run this job now, with its attempts, its lock and its log, and end."""


def schedule(workspace: Workspace, options: ScheduleOptions) -> dict[str, Any]:
    """Runs until SIGTERM or SIGINT. Returns `runs`: how many ended in each status, by job.

    With `once`: the `job`, and the `status`, `attempt`, `exit_code`, `answer` of its last attempt.
    """
    if not workspace.is_local:
        raise InputError(
            f"schedule runs on a local folder, not on {workspace.location}: every job there locks "
            "and publishes for itself; start them by cron, KubeRay or Airflow (deploy/)"
        )
    plan = read_schedule(options.file)
    if options.once is not None:
        return run_once(workspace, plan.job(options.once))
    counts: dict[str, Counter[str]] = {job.name: Counter() for job in plan.jobs}
    names = tuple(counts)
    with (
        _stop_signals() as told_to_stop,
        JobMetrics(workspace, names, plan.metrics_port) as metrics,
    ):

        def record(run: Run) -> None:
            counts[run.job][run.status] += 1
            metrics.record(run)

        runner = JobRunner(workspace, record)
        scheduler = _scheduler(workspace, plan, runner, metrics)
        scheduler.start()
        log.info(
            "schedule: running", jobs=names, metrics=f"http://{LOOPBACK}:{metrics.port}/metrics"
        )
        told_to_stop.wait()
        log.info("schedule: stopping")
        runner.stop()
        scheduler.shutdown(wait=True)
    return {"runs": {job: dict(statuses) for job, statuses in counts.items()}}


def run_once(workspace: Workspace, job: Job) -> dict[str, Any]:
    """One run of a job, now. SIGTERM and SIGINT end its command."""
    runner = JobRunner(workspace, lambda run: None)
    with _stop_signals() as told_to_stop:
        ended = threading.Event()

        def stop_when_told() -> None:
            told_to_stop.wait()
            if not ended.is_set():
                runner.stop()

        watcher = threading.Thread(target=stop_when_told)
        watcher.start()
        try:
            run = runner.run(job)
        finally:
            ended.set()
            told_to_stop.set()
            watcher.join()
    if run is None:
        return {"job": job.name, "status": "stopped", "attempt": 0}
    return {
        "job": job.name,
        "status": run.status,
        "attempt": run.attempt,
        "command": run.command,
        "exit_code": run.exit_code,
        "answer": run.answer,
    }


def _scheduler(
    workspace: Workspace, plan: Schedule, runner: JobRunner, metrics: JobMetrics
) -> BackgroundScheduler:
    # A thread a job: it only waits for a subprocess, and no job may delay another.
    scheduler = BackgroundScheduler(
        executors={"default": ThreadPoolExecutor(len(plan.jobs))}, timezone=plan.zone()
    )

    def work(job: Job) -> None:
        metrics.started(job.name)
        try:
            runner.run(job)
        finally:
            metrics.ended(job.name)

    for job in plan.jobs:
        due = due_now(workspace, plan, job)
        scheduler.add_job(
            work,
            job.trigger(plan.zone()),
            args=(job,),
            id=job.name,
            max_instances=1,
            coalesce=True,  # starts that piled up become one
            misfire_grace_time=max(1, round(job.misfire_s)),
            **({"next_run_time": datetime.now(plan.zone())} if due else {}),
        )

    def listener(event: JobEvent) -> None:
        missed = event.code == EVENT_JOB_MISSED
        reason = "its start came too late" if missed else "the job is still running"
        runner.note(plan.job(event.job_id), "missed" if missed else "skipped", reason)

    scheduler.add_listener(listener, EVENT_JOB_MISSED | EVENT_JOB_MAX_INSTANCES)
    return scheduler


def due_now(workspace: Workspace, plan: Schedule, job: Job) -> bool:
    """Whether a start of the last `misfire_s` did not happen, because no scheduler was running.

    A job that never ran is not due: a new schedule waits for its first moment.
    """
    now = datetime.now(plan.zone())
    starts = [run.started for run in read_runs(workspace) if run.job == job.name]
    if not starts:
        return False
    last = datetime.fromisoformat(max(starts))
    after = max(last, now - timedelta(seconds=job.misfire_s))
    if job.every_s is not None:
        return (now - last).total_seconds() >= job.every_s
    moment = job.trigger(plan.zone()).get_next_fire_time(None, after)
    return moment is not None and moment.astimezone(UTC) <= now.astimezone(UTC)


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set; the handlers before are put back at the end."""
    told = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: told.set())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
