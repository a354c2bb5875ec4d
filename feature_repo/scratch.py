"""Working folders that do not outlive their run, not even when it is killed.

A run works in a hidden folder beside the result, on the same disk. It holds a lock on it that ends
with the process, so whoever finds a folder without a lock may remove it, and a live run's folder
is never touched. Locks are flock's: they hold between the processes of one machine.
"""

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from feature_repo.errors import InputError


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """An empty folder `<parent>/<prefix>...`, removed at the end unless it was renamed away.

    First removes what killed runs left under the same prefix, which has to begin with a dot.
    """
    parent.mkdir(parents=True, exist_ok=True)
    # Under the parent's lock, nobody can see the new folder before it is locked.
    with locked(parent):
        _sweep(parent, prefix)
        made = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = os.open(made, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        made.chmod(0o755)
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Waits for, and holds, the lock of a folder that exists. For steps of milliseconds."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Refuses (InputError) if another run is about to replace `folder`, which has to exist."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Another folder by now: the run that replaced it ended between our open and our lock.
        free = os.path.samestat(os.fstat(lock), os.stat(folder))
    except BlockingIOError:
        free = False
    try:
        if not free:
            raise InputError(f"another run is writing {folder}; wait until it ends")
        yield
    finally:
        os.close(lock)


def _sweep(parent: Path, prefix: str) -> None:
    for path in parent.glob(f"{glob.escape(prefix)}*"):
        if not path.is_dir():
            continue
        lock = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path)
        except BlockingIOError:
            pass  # a live run's
        finally:
            os.close(lock)
