"""Files that are whole or absent, and that a power cut does not take back.

with replacing(path) as stream:
    stream.write(content)   # under another name: `path` is as it was until this is on the disk
sync(path.parent)           # where a power cut must not bring the earlier content back
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import gethostname
from threading import get_native_id
from typing import BinaryIO

NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL


@contextmanager
def replacing(path: Path, *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Yields a file to write, which becomes `path` when it is synced; an error leaves `path` alone.

    The folder must be there. `mode`: who may read it, less the umask, from its first byte on. A
    kill leaves a `.NAME.HOST.THREAD`, which only the same thread of that host writes over. Threads
    write files of their own, also those of two containers, which may well have one number but not
    one host name.
    """
    partial = path.with_name(f".{path.name}.{gethostname()}.{get_native_id()}")
    try:
        descriptor = os.open(partial, NEW, mode)
    except FileExistsError:  # of a killed one that had this number: with a mode of its own
        partial.unlink()
        descriptor = os.open(partial, NEW, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Makes a folder, and waits until its name is on the disk."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)
