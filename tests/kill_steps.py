"""Kills a fork before a step of its work, for the programs that do so at every step.

A step is whatever changes the disk from Python: a file opened for writing, a rename, a removal, a
new folder, a sync. Nothing is imported that those programs might not need: a fork of a process
that holds torch costs more than most of the work that is killed.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

STEPS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def kill_before(step: int, root: Path) -> None:
    """From here on this process dies before its step of that number under `root`."""
    seen = 0

    def one_step() -> None:
        nonlocal seen
        seen += 1
        if seen == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        if (writes or event in STEPS) and str(arguments[0]).startswith(str(root)):
            one_step()

    sys.addaudithook(hook)
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        one_step()
        sync(descriptor)

    os.fsync = fsync


def forked(work: Callable[[], object]) -> int:
    """The wait status of a child that does `work`: 0 when it went well."""
    pid = os.fork()
    if pid == 0:
        ended = 1
        try:
            work()
            ended = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(ended)
    return os.waitpid(pid, 0)[1]
