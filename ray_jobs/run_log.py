"""The run log of the scheduler: one JSON line for every attempt of a job, in monthly files.

Written to `<workspace>/runs/YYYY-MM.jsonl` (UTC month of the start). Nothing else refers to the
files: old months may be deleted. Several schedulers may write; a line torn by a crash is skipped
by readers and never joined with the next one.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from feature_repo.workspace import Workspace

STATUSES = ("ok", "failed", "timeout", "stopped", "skipped", "missed")
"""ok and failed: by the exit code. timeout, stopped: ended by the scheduler, past the job's time or
because it was told to stop. skipped: the job was still running. missed: it came too late."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One attempt of a job, or the reason why there was none."""

    job: str
    status: str
    started: str
    """ISO time in UTC, as are all times here."""
    ended: str
    seconds: float
    attempt: int = 1
    command: str = ""
    """The command of the job that ended it: the last one, or the one that failed."""
    exit_code: int | None = None
    answer: dict[str, Any] | None = None
    """The last JSON line of that command."""
    error: str = ""
    """The end of its standard error where it failed, or the reason why there was no run."""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, got {self.status!r}")


def append_run(workspace: Workspace, run: Run) -> None:
    """Adds one line, synced to the disk before this returns."""
    folder = workspace.root / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    line = (json.dumps(asdict(run)) + "\n").encode()
    descriptor = os.open(folder / f"{run.started[:7]}.jsonl", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line  # the last writer died inside its line
        os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_runs(workspace: Workspace) -> Iterator[Run]:
    """Every run of the log in the order of writing, month by month; torn lines are left out."""
    for path in sorted((workspace.root / "runs").glob("????-??.jsonl")):
        with path.open("rb") as stream:
            for line in stream:
                try:
                    yield Run(**json.loads(line))
                except (json.JSONDecodeError, UnicodeDecodeError, TypeError):
                    continue
