"""Who and what was forgotten, so that a late delivery does not bring it back.

Writes `<workspace>/forgotten/`: `users.parquet` (digest, until_us), `events.parquet` (event_id) and
`key`. A user stands there as a keyed hash of the number and, where the source's ids are strings, of
that string: the list can be searched for a user one knows of, but without the key, which only the
workspace's owner can read, it does not say who was forgotten.

Whatever takes events in asks `hidden` and drops what it says: an event of a forgotten user that
happened up to the moment of forgetting, and an event that was forgotten itself. The same person may
come back later, as somebody new. The list outlives `tables/`, which every ingest replaces.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.durable_files import replacing
from feature_repo.errors import ArtifactError
from feature_repo.scratch import locked
from feature_repo.workspace import Workspace

FOLDER = "forgotten"
KEY, USERS, EVENTS = "key", "users.parquet", "events.parquet"
KEY_BYTES = 32
DIGEST_BYTES = 16
USERS_SCHEMA = pa.schema(
    [
        pa.field("digest", pa.binary(DIGEST_BYTES), nullable=False),
        pa.field("until_us", pa.int64(), nullable=False),
    ]
)
EVENTS_SCHEMA = pa.schema([pa.field("event_id", pa.int64(), nullable=False)])


def folder(workspace: Workspace) -> Path:
    return workspace.root / FOLDER


@dataclass(frozen=True, kw_only=True)
class Tombstones:
    """One state of the list. Empty where nothing was forgotten yet."""

    key: bytes
    until_us: dict[bytes, int]
    """Digest of a user -> microseconds since 1970 up to which the user's events are dropped."""
    event_ids: np.ndarray
    """Forgotten events, sorted int64."""

    def hidden(
        self, user_ids: np.ndarray, event_ids: np.ndarray, happened_us: np.ndarray
    ) -> np.ndarray:
        """For N events, which of them must not come in: (N,) bool.

        Numbers are int64, or strings for a source's own user ids; times in microseconds since 1970.
        """
        hidden = np.isin(event_ids, self.event_ids)
        if self.until_us:
            users, row_of_user = np.unique(user_ids, return_inverse=True)
            until = [self.until_us.get(digest(self.key, user)) for user in users.tolist()]
            gone = np.array([moment is not None for moment in until], bool)[row_of_user]
            until_us = np.array([moment or 0 for moment in until], np.int64)[row_of_user]
            hidden |= gone & (happened_us <= until_us)
        return hidden

    def covers(self, user: int | str) -> bool:
        """True if this user was forgotten once."""
        return digest(self.key, user) in self.until_us


NOTHING = Tombstones(key=b"", until_us={}, event_ids=np.zeros(0, np.int64))


class TombstoneList:
    """The list as it is now, read again only when it has changed: for servers and readers."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._stamp: object = None
        self._held = NOTHING

    def now(self) -> Tombstones:
        """Costs one `stat` a file while nothing changes."""
        stamp = [_stamp(folder(self._workspace) / name) for name in (KEY, USERS, EVENTS)]
        if stamp != self._stamp:
            self._held = read_tombstones(self._workspace)
            self._stamp = stamp
        return self._held


def read_tombstones(workspace: Workspace) -> Tombstones:
    """The list as it is on the disk. ArtifactError where it lacks its key."""
    parent = folder(workspace)
    users = _read(parent / USERS, USERS_SCHEMA)
    events = _read(parent / EVENTS, EVENTS_SCHEMA)
    if not (parent / KEY).exists():
        if len(users):
            raise ArtifactError(
                f"{parent / KEY} is missing, so nobody can tell whom {parent / USERS} names; bring "
                "the key back from where the workspace is kept"
            )
        key = b""
    else:
        key = (parent / KEY).read_bytes()
    rows = zip(users["digest"].to_pylist(), users["until_us"].to_pylist(), strict=True)
    return Tombstones(
        key=key, until_us=dict(rows), event_ids=np.sort(events["event_id"].to_numpy())
    )


def forget_users(workspace: Workspace, users: Iterable[int | str], until_us: int) -> None:
    """Adds users, by number or by the source's string; a later moment replaces an earlier one."""
    parent = folder(workspace)
    parent.mkdir(parents=True, exist_ok=True)
    with locked(parent):
        _make_key(parent)
        held = read_tombstones(workspace)
        until = dict(held.until_us)
        for user in users:
            name = digest(held.key, user)
            until[name] = max(until_us, until.get(name, until_us))
        table = pa.table([list(until), list(until.values())], schema=USERS_SCHEMA)
        _write(table, parent / USERS)


def forget_events(workspace: Workspace, event_ids: Iterable[int]) -> None:
    """Adds events."""
    parent = folder(workspace)
    parent.mkdir(parents=True, exist_ok=True)
    with locked(parent):
        held = read_tombstones(workspace).event_ids
        table = pa.table([np.union1d(held, np.array(list(event_ids), np.int64))], EVENTS_SCHEMA)
        _write(table, parent / EVENTS)


def digest(key: bytes, user: int | str) -> bytes:
    """Keyed hash (BLAKE2b) of a user: a number and the string that spells it are two users."""
    return hashlib.blake2b(
        f"{type(user).__name__}:{user}".encode(), key=key, digest_size=DIGEST_BYTES
    ).digest()


def _make_key(parent: Path) -> None:
    path = parent / KEY
    if path.exists():
        return
    with replacing(path, mode=0o600) as stream:
        stream.write(os.urandom(KEY_BYTES))


def _read(path: Path, columns: pa.Schema) -> pa.Table:
    if not path.exists():
        return columns.empty_table()
    try:
        return pq.read_table(path, schema=columns)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(
            f"{path} cannot be read ({error}); bring it back: without it, forgotten events return"
        ) from error


def _write(table: pa.Table, path: Path) -> None:
    with replacing(path) as stream:
        pq.write_table(table, stream)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
