"""Jobs of a schedule that talk to their test, for the tests of this folder.

Their commands are small Python programs that talk over a socket: a test waits for what they say,
never for time to pass. Fixtures: `workspace` (empty), `caller` (where they call in), `program`
(their command) and `runner` (runs them, and keeps each run in `seen`).
"""

import json
import socket
import sys
import textwrap
import urllib.request

import pytest

from feature_repo.workspace import Workspace
from ray_jobs.run_log import Run, read_runs
from ray_jobs.schedule_file import Job
from ray_jobs.schedule_run import JobRunner

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


def a_run(started="2026-03-31T23:59:59+00:00", **fields):
    return Run(
        **{"job": "j", "status": "ok", "started": started, "ended": started, "seconds": 1} | fields
    )


def scraped(port):
    url = f"http://127.0.0.1:{port}/metrics"
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        lines = answer.read().decode().splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
