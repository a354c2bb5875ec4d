"""What runs when: the schedule file of `crescendo schedule`, checked before anything starts.

timezone: UTC
metrics_port: 9464                # Prometheus, on loopback
jobs:
  nightly:
    cron: "30 0 * * *"            # minute hour day month weekday (mon-sun); or every_s: 900
    run: [sequences, publish]     # `crescendo` command lines, in order, up to the first failure
    timeout_s: 14400              # of one attempt, all its commands together
    attempts: 3
    backoff_s: 60                 # wait before the second attempt; doubles for each further one
    misfire_s: 21600              # a start later than this is left out and logged
"""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from feature_repo.errors import InputError

DEFAULT_FILE = Path(__file__).parent / "schedule.yaml"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One entry of `jobs`: either `cron` or `every_s` says when."""

    name: str
    run: tuple[str, ...]
    cron: str | None = None
    every_s: float | None = None
    timeout_s: float = 4 * 3600
    attempts: int = 3
    backoff_s: float = 60
    misfire_s: float = 3600

    def __post_init__(self) -> None:
        if not self.name or set(self.name) & set('/. \t\n"\\'):
            raise InputError(f"a job's name may hold no / . space or quote, got {self.name!r}")
        if not self.run or not all(isinstance(line, str) and line.strip() for line in self.run):
            raise InputError(f"{self.name}: run must list `crescendo` commands, got {self.run!r}")
        if (self.cron is None) == (self.every_s is None):
            raise InputError(
                f"{self.name}: give one of cron and every_s, got cron={self.cron!r} "
                f"and every_s={self.every_s!r}"
            )
        for name in ("every_s", "timeout_s", "backoff_s", "misfire_s"):
            value = getattr(self, name)
            if value is None and name == "every_s":
                continue
            if not _is_number(value) or value < 0 or (value == 0 and name != "backoff_s"):
                raise InputError(f"{self.name}: {name} must be a number of seconds, got {value!r}")
        if type(self.attempts) is not int or self.attempts < 1:
            raise InputError(f"{self.name}: attempts must be at least 1, got {self.attempts!r}")
        for line in self.run:
            _arguments(self.name, line)

    def commands(self) -> list[list[str]]:
        """The command lines, split as a shell would split them."""
        return [_arguments(self.name, line) for line in self.run]

    def trigger(self, zone: ZoneInfo) -> BaseTrigger:
        """When the job runs; raises InputError for what is no cron line."""
        if self.cron is None:
            return IntervalTrigger(seconds=self.every_s, timezone=zone)
        parts = self.cron.split() if isinstance(self.cron, str) else []
        if len(parts) != 5:
            raise InputError(
                f"{self.name}: cron must have five fields (minute hour day month weekday), "
                f"got {self.cron!r}"
            )
        if any(character.isdigit() for character in parts[4]):
            # APScheduler counts weekdays from Monday, cron from Sunday: a number is ambiguous.
            raise InputError(
                f"{self.name}: write the weekday of cron as mon, tue, ... sun, got {parts[4]!r}"
            )
        try:
            return CronTrigger.from_crontab(self.cron, timezone=zone)
        except ValueError as error:
            raise InputError(f"{self.name}: cron {self.cron!r} is wrong: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A whole schedule file."""

    jobs: tuple[Job, ...]
    timezone: str = "UTC"
    metrics_port: int = 9464
    """0 takes any free port, which the first log line names."""

    def __post_init__(self) -> None:
        if type(self.metrics_port) is not int or not 0 <= self.metrics_port <= 65535:
            raise InputError(f"metrics_port must be a port number, got {self.metrics_port!r}")
        if not self.jobs:
            raise InputError("jobs must name at least one job, got none")
        for job in self.jobs:
            job.trigger(self.zone())

    def zone(self) -> ZoneInfo:
        try:
            return ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError, TypeError) as error:
            raise InputError(
                f"timezone must be a name such as UTC or Europe/Berlin, got {self.timezone!r}"
            ) from error

    def job(self, name: str) -> Job:
        for job in self.jobs:
            if job.name == name:
                return job
        known = ", ".join(job.name for job in self.jobs)
        raise InputError(f"the schedule has no job {name!r}; its jobs are {known}")


def read_schedule(path: Path | None = None) -> Schedule:
    """The schedule of a file, or the default one; InputError names the file, field and value."""
    path = path or DEFAULT_FILE
    try:
        loaded = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read the schedule {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {error}") from error
    try:
        entries = _mapping("the file", loaded)
        jobs = tuple(
            _made(Job, f"job {name}", {**_mapping(f"job {name}", entry), "name": str(name)})
            for name, entry in _mapping("jobs", entries.get("jobs")).items()
        )
        return _made(Schedule, "the file", {**entries, "jobs": jobs})
    except InputError as error:
        raise InputError(f"{path}: {error}; an example is {DEFAULT_FILE}") from error


def _made(kind: Callable[..., T], where: str, values: Mapping[str, Any]) -> T:
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(str(name) for name in values if name not in known)
    if unknown:
        raise InputError(f"{where} has the unknown field {unknown[0]!r}")
    if isinstance(values.get("run"), list):
        values = {**values, "run": tuple(values["run"])}
    elif "name" in values:
        raise InputError(f"{where}: run must be a list of commands, got {values.get('run')!r}")
    return kind(**values)


def _mapping(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where} must be a mapping, got {value!r}")
    return value


def _arguments(name: str, line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise InputError(f"{name}: cannot split {line!r} into words: {error}") from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
