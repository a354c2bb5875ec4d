"""The files of the event journal: one a writing process, JSON lines, on the disk before an answer.

    {"event_id":1,"user_id":7,...,"event_timestamp":1767225600000000,...,"crc32":2774461329}

Times are microseconds since 1970; `crc32` is that of the line up to the comma before it. A writer
appends whole lines and syncs them; concurrent appends share one sync. What a kill or a full disk
cuts off is the end of a file, which nobody was told was safe: readers leave it out. A bad line
before a good one is damage, and an error.

A writer holds its file's lock (flock: one machine) only while it writes, and then looks whether
the file is still in its place. So whoever collects the files takes one at any moment, by renaming
it under its lock: all that was answered is in it, and the writer starts another.
"""

import fcntl
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.json as pj

from feature_repo.durable_files import make_folder, sync
from feature_repo.errors import ArtifactError
from feature_repo.group_commit import GroupCommit
from feature_repo.schema import EVENTS, TIMESTAMP

SUFFIX = ".jsonl"
CHECKSUM = b',"crc32":'
LINES = pa.schema(
    [field.with_type(pa.int64()) if field.type == TIMESTAMP else field for field in EVENTS]
)
"""EVENTS as the lines spell it."""


Record = dict[str, Any]
"""One event: the columns of LINES, in their order."""

_encode = json.JSONEncoder(separators=(",", ":")).encode


def to_records(events: pa.Table) -> list[Record]:
    """Events of schema.EVENTS, one by one."""
    return events.cast(LINES).to_pylist()


def to_lines(events: pa.Table) -> bytes:
    """One line an event of schema.EVENTS."""
    return record_lines(to_records(events))


def record_lines(events: Sequence[Record]) -> bytes:
    """One line an event."""
    lines = []
    for event in events:
        body = _encode(event)[:-1].encode()
        lines.append(b"%b%b%d}\n" % (body, CHECKSUM, zlib.crc32(body)))
    return b"".join(lines)


def read_file(path: Path) -> pa.Table:
    """The whole records of one file, as schema.EVENTS. Its torn end, if any, is left out.

    ArtifactError where a damaged line stands before a whole one.
    """
    lines = path.read_bytes().split(b"\n")
    whole = [*map(_is_whole, lines[:-1]), False]  # a line without its newline is torn
    kept = whole.index(False)
    if any(whole[kept:]):
        raise ArtifactError(
            f"{path}: line {kept + 1} is damaged, and whole lines follow; expected a damaged line "
            "at the end only; bring the file back from a backup, or remove the line to lose the "
            "one event in it, and run `crescendo sequences` again"
        )
    if not kept:
        return EVENTS.empty_table()
    return _parsed(b"\n".join(lines[:kept]))


def _is_whole(line: bytes) -> bool:
    body, _, checksum = line.rpartition(CHECKSUM)
    return bool(body) and checksum == b"%d}" % zlib.crc32(body)


def _parsed(lines: bytes) -> pa.Table:
    parse = pj.ParseOptions(explicit_schema=LINES, unexpected_field_behavior="ignore")
    # A block has to hold a line; larger ones are parsed by fewer, longer tasks.
    read = pj.ReadOptions(block_size=1 << 22)
    return pj.read_json(BytesIO(lines), read_options=read, parse_options=parse).cast(EVENTS)


class JournalWriter:
    """Appends to a file of its own in `folder`, which is made when something is written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder
        self._descriptor: int | None = None
        self._commits: GroupCommit[bytes, None] = GroupCommit(self._write)

    def append(self, lines: bytes) -> None:
        """Returns once the lines are on the disk. After an error some of them may be."""
        self._commits.do(lines)

    def _write(self, waiting: list[bytes]) -> Sequence[None]:
        with self._file_in_place() as descriptor:
            try:
                rest = memoryview(b"".join(waiting))
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                os.fsync(descriptor)
            except BaseException:
                # Nothing may follow a torn line, nor a sync that failed: the next call finds the
                # descriptor gone and starts another file.
                self._descriptor = None
                raise
        return [None] * len(waiting)

    @contextmanager
    def _file_in_place(self) -> Iterator[int]:
        """The locked descriptor of a file that nobody has taken away."""
        while True:
            if self._descriptor is None:
                self._start_file()
            descriptor = self._descriptor
            assert descriptor is not None
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(descriptor, self._path):
                break
            os.close(descriptor)  # which ends the lock as well
            self._descriptor = None
        try:
            yield descriptor
        finally:
            if self._descriptor is None:
                os.close(descriptor)
            else:
                fcntl.flock(descriptor, fcntl.LOCK_UN)

    def _start_file(self) -> None:
        make_folder(self._folder)
        self._path = self._folder / f"{uuid4().hex}{SUFFIX}"
        self._descriptor = os.open(
            self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644
        )
        sync(self._folder)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def take_file(path: Path, target: Path) -> None:
    """Renames a file that may be written to, between two writes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.rename(path, target)
    finally:
        os.close(descriptor)
