"""One run of a scheduled job: its commands as subprocesses, with attempts, a timeout and a lock.

Every command is a process of its own, so that the memory it took is given back, and leads a
process group, so that what it started ends with it. The lock file `<workspace>/runs/<job>.lock` is
held by the scheduler and by the command: two schedulers never run one job at a time, and a
scheduler that was killed leaves no second run beside the command that it left behind.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, Any

from feature_repo.workspace import Workspace
from ray_jobs.progress import log
from ray_jobs.run_log import Run, append_run
from ray_jobs.schedule_file import Job

ERROR_LINES = 20
"""Last lines of standard error that the run log keeps of a failed command."""
ERROR_LINE_CHARACTERS = 500
STOP_GRACE_S = 20.0
"""From SIGTERM to SIGKILL. Every command may be killed at any moment; this is politeness."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How one attempt went."""

    status: str
    command: str
    exit_code: int | None
    answer: dict[str, Any] | None
    error: str


class JobRunner:
    """Runs jobs, one at a time each; `stop` ends what runs and refuses what comes."""

    def __init__(
        self,
        workspace: Workspace,
        record: Callable[[Run], None],
        program: Sequence[str] | None = None,
    ) -> None:
        """`record` sees every run after it is in the log. `program` is what is put before the
        words of a command line; by default this workspace's `crescendo`."""
        self._workspace = workspace
        self._record = record
        self._program = list(
            program or (sys.executable, "-m", "ray_jobs.cli", "--workspace", workspace.location)
        )
        self._stopping = threading.Event()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._guard = threading.Lock()

    def run(self, job: Job) -> Run | None:
        """All attempts of one run; the last one. None where a stop came before the first."""
        last: Run | None = None
        with self._only_run(job) as lock:
            if lock is None:
                return self.note(job, "skipped", "the job is still running")
            for attempt in range(1, job.attempts + 1):
                if attempt > 1 and self._stopping.wait(job.backoff_s * 2 ** (attempt - 2)):
                    break
                if self._stopping.is_set():
                    break
                last = self._attempt(job, attempt, lock)
                if last.status in ("ok", "stopped"):
                    break
        return last

    def note(self, job: Job, status: str, reason: str) -> Run:
        """Logs why there was no run."""
        now = _now()
        run = Run(job=job.name, status=status, started=now, ended=now, seconds=0, error=reason)
        return self._log(run)

    def stop(self) -> None:
        """Ends every running command and waits for none: `run` returns soon after."""
        self._stopping.set()
        with self._guard:
            running = list(self._running)
        for process in running:
            _signal_group(process, signal.SIGTERM)

    @contextmanager
    def _only_run(self, job: Job) -> Iterator[int | None]:
        folder = self._workspace.root / "runs"
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / f"{job.name}.lock", os.O_RDWR | os.O_CREAT)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield lock
        finally:
            # Closed, not unlocked: a command that outlives us keeps the lock that it inherited.
            os.close(lock)

    def _attempt(self, job: Job, attempt: int, lock: int) -> Run:
        started, clock = _now(), time.monotonic()
        log.info(f"{job.name}: start", attempt=attempt, of=job.attempts)
        deadline = clock + job.timeout_s
        for words in job.commands():
            ended = self._command(job, words, lock, deadline)
            if ended.status != "ok":
                break
        run = Run(
            job=job.name,
            status=ended.status,
            started=started,
            ended=_now(),
            seconds=round(time.monotonic() - clock, 3),
            attempt=attempt,
            command=ended.command,
            exit_code=ended.exit_code,
            answer=ended.answer,
            error=ended.error,
        )
        return self._log(run)

    def _command(self, job: Job, words: list[str], lock: int, deadline: float) -> Ended:
        output: deque[bytes] = deque(maxlen=1)
        errors: deque[bytes] = deque(maxlen=ERROR_LINES)
        process = subprocess.Popen(
            [*self._program, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=(lock,),
        )
        with self._guard:
            self._running.add(process)
        if self._stopping.is_set():  # `stop` may have looked before the process was in the list
            _signal_group(process, signal.SIGTERM)
        readers = [
            threading.Thread(target=_keep, args=(process.stdout, output, None), daemon=True),
            threading.Thread(target=_keep, args=(process.stderr, errors, sys.stderr), daemon=True),
        ]
        for reader in readers:
            reader.start()
        timed_out = not self._wait(process, deadline)
        with self._guard:
            self._running.discard(process)
        for reader in readers:
            reader.join(timeout=STOP_GRACE_S)
        status = "ok" if process.returncode == 0 else "failed"
        if timed_out:
            status = "timeout"
        elif status == "failed" and self._stopping.is_set():
            status = "stopped"
        reason = b"".join(errors).decode(errors="replace").strip()
        if timed_out:
            reason = f"ended after timeout_s={job.timeout_s:g}\n{reason}".strip()
        return Ended(
            status=status,
            command=" ".join(words),
            exit_code=process.returncode,
            answer=_answer(output),
            error="" if status == "ok" else reason,
        )

    def _wait(self, process: subprocess.Popen[bytes], deadline: float) -> bool:
        """Waits for the end of a command and of its group; False if its time ran out first."""
        in_time = True
        while process.poll() is None:
            try:
                process.wait(timeout=max(0.0, min(deadline - time.monotonic(), 1.0)))
            except subprocess.TimeoutExpired:
                in_time = time.monotonic() < deadline
                if not in_time or self._stopping.is_set():
                    _end_group(process)
        _signal_group(process, signal.SIGKILL)  # whatever it left behind in its group
        return in_time

    def _log(self, run: Run) -> Run:
        append_run(self._workspace, run)
        self._record(run)
        level = log.info if run.status == "ok" else log.warning
        level(f"{run.job}: {run.status}", seconds=run.seconds, attempt=run.attempt, error=run.error)
        return run


def _end_group(process: subprocess.Popen[bytes]) -> None:
    _signal_group(process, signal.SIGTERM)
    try:
        process.wait(timeout=STOP_GRACE_S)
    except subprocess.TimeoutExpired:
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _keep(stream: IO[bytes], lines: deque[bytes], copy: IO[str] | None) -> None:
    """Reads to the end, keeps the last lines, and shows all of them on `copy`."""
    for line in stream:
        if line.strip():
            lines.append(line[:ERROR_LINE_CHARACTERS] if copy else line)
        if copy is not None:
            copy.write(line.decode(errors="replace"))
    stream.close()


def _answer(output: deque[bytes]) -> dict[str, Any] | None:
    """The JSON object of a command's last line, None where that is none."""
    try:
        answer = json.loads(output[-1]) if output else None
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _now() -> str:
    return datetime.now(UTC).isoformat()
