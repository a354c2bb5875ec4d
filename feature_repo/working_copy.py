"""A workspace in an object store, worked on in a local copy.

    with working_copy("s3://bucket/prefix") as workspace:
        sequences(workspace, SequenceOptions())

The copy is brought up to date before the block and published after it; if the block fails it is
not, and what was done so far waits in the copy for the next run. Under the URI lie

    index.json        every file of the workspace with its sha256: the one object that is replaced
    objects/SHA256    the files, each under the hash of its content, never changed
    features/VIEW/    copies of the feature sources, for readers that go by the registry alone
    lock.json         who is writing (`write_lock.py`)

A reader follows the index that it has read, so it never sees a half published state, and a killed
upload changes nothing. The index is only written over the one that was read: a writer that was
overtaken fails. The copies under `features/` follow a moment later, each view's manifest last.

Local copies lie in `$XDG_CACHE_HOME/crescendo/` or ~/.cache/crescendo/ (`copy_slots.py`); deleting
that folder loses only what was never published.
"""

import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from feature_repo.artifacts import MANIFEST, file_sha256
from feature_repo.copy_slots import CopyState, copies_folder, free_copy
from feature_repo.errors import ArtifactError, InputError
from feature_repo.object_store import SCHEME, Changed, Found, Gone, ObjectStore
from feature_repo.workspace import LOCATION_FILE, READ_ONLY, Workspace
from feature_repo.workspace_files import Snapshot, merge, put, refuse_passwords
from feature_repo.write_lock import WriteLock, write_lock

INDEX = "index.json"
MIRROR = "features.json"
OBJECTS = "objects"
SOURCES = "features/"
INDEX_VERSION = 1
PULL_ATTEMPTS = 5

logger = logging.getLogger(__name__)
_sessions: dict[Path, "_Session"] = {}


@contextmanager
def working_copy(
    location: str | Path, *, read_only: bool = False, cache: Path | None = None
) -> Iterator[Workspace]:
    """The workspace at `location`, a folder or `s3://BUCKET/PREFIX`, to work on.

    With `read_only`, nothing is locked and nothing published; what is written is thrown away.
    Raises InputError while another run writes the workspace, or if the store cannot be used.
    """
    if not str(location).startswith(SCHEME):
        workspace = Workspace(Path(location))
        if not workspace.is_local:  # what is done in it behind its session's back is lost
            raise InputError(
                f"{location} is a copy of {workspace.location}; name that as the workspace"
            )
        yield workspace
        return
    objects = ObjectStore(str(location))
    folder = copies_folder(objects.uri, cache)
    with ExitStack() as stack:
        state = stack.enter_context(free_copy(folder, skip_unpublished=read_only))
        session = _Session(objects, state, read_only=read_only)
        if not read_only:
            session.lock = stack.enter_context(write_lock(objects, state.id))
        session.pull()
        workspace = Workspace(state.root)
        _sessions[state.root] = session
        try:
            yield workspace
            if read_only:
                session.warn_of_changes()
            else:
                session.commit()
        finally:
            del _sessions[state.root]


def publish_now(workspace: Workspace) -> None:
    """Publishes what a working copy holds so far, before others are told of it.

    Nothing to do for a local workspace. Raises InputError in a read-only session.
    """
    if workspace.is_local:
        return
    session = _sessions.get(workspace.root)
    if workspace.is_read_only or session is None:
        raise InputError(f"{workspace.location} is open for reading only; nothing was published")
    session.commit()


def bring_up_to_date(workspace: Workspace) -> bool:
    """Whether others published something since the copy was opened, or since the last call; then
    it is in the copy when this returns.

    For a process that reads the workspace for long: one small request where nothing changed. Files
    are replaced whole, manifests after what they list, and what names a release last. Nothing to
    do for a local workspace. Raises InputError in a session that writes, and where the store does
    not answer: the copy is then as it was, or is completed by the next call.
    """
    if workspace.is_local:
        return False
    session = _sessions.get(workspace.root)
    if session is None or not session.read_only:
        raise InputError(
            f"{workspace.location} is not open for reading only; a session that writes holds the "
            "lock, so nobody else can have changed it"
        )
    return session.pull_if_changed()


class _Session:
    """One copy in use."""

    def __init__(self, objects: ObjectStore, state: CopyState, *, read_only: bool) -> None:
        self.objects = objects
        self.read_only = read_only
        self.lock: WriteLock | None = None
        self._state = state
        self._root = state.root
        self._index: Found | None = None
        self._root.mkdir(exist_ok=True)
        (self._root / LOCATION_FILE).write_text(
            f"{objects.uri}\n{READ_ONLY}\n" if read_only else f"{objects.uri}\n"
        )

    def _read_index(self) -> Snapshot:
        self._index = self.objects.read(INDEX)
        if self._index is None and self._state.base:
            raise ArtifactError(
                f"{self.objects.uri}/{INDEX} is gone, and this machine knows that it was there; "
                f"restore it, or delete {self._state.slot.parent} to begin an empty workspace"
            )
        if self._index is None:
            return {}
        if self._index.value.get("version") != INDEX_VERSION:
            raise ArtifactError(
                f"{self.objects.uri}/{INDEX} has version {self._index.value.get('version')}, "
                f"expected {INDEX_VERSION}; use the crescendo that wrote it"
            )
        return dict(self._index.value["files"])

    def pull(self) -> None:
        """Makes the local files those of the index, with the work that waits to be published."""
        state = self._state
        for _ in range(PULL_ATTEMPTS):
            theirs = self._read_index()
            files = state.look()
            # A pull that was killed left files of two states: they are nobody's work.
            ours = files if state.target is None else state.target
            if state.read_only or self.read_only:
                ours = state.base
            target, overruled = merge(state.base, ours, theirs)
            self._set_aside(overruled, files)
            state.base, state.target, state.read_only = theirs, target, self.read_only
            state.save()
            try:
                self._fetch(target, files)
            except Gone:
                continue  # a newer state was published, and this one's files dropped
            state.target = None
            state.save()
            return
        raise InputError(
            f"{self.objects.uri} names files that are not there, or changes faster than it can "
            "be read; try again, and restore it from a backup if that does not help"
        )

    def pull_if_changed(self) -> bool:
        """`pull`, unless the index is the one of the last pull that was ended."""
        known = self._index.etag if self._index else None
        if self._state.target is None and not self.objects.is_changed(INDEX, known):
            return False
        self.pull()
        return True

    def _fetch(self, target: Snapshot, files: Snapshot) -> None:
        wanted = {name: sha for name, sha in target.items() if files.get(name) != sha}
        fetched = self._state.slot / "fetched"
        fetched.mkdir(exist_ok=True)
        missing = sorted(sha for sha in set(wanted.values()) if not (fetched / sha).exists())
        partial = [(f"{OBJECTS}/{sha}", fetched / f"{sha}.partial") for sha in missing]
        self.objects.download(partial)
        for sha, (key, path) in zip(missing, partial, strict=True):
            if file_sha256(path) != sha:
                raise ArtifactError(
                    f"{self.objects.uri}/{key} was changed or is damaged; restore it from a "
                    "backup, or delete it and run the command that made it again"
                )
            os.replace(path, fetched / sha)
        put(self._root, fetched, wanted, [name for name in files if name not in target])
        shutil.rmtree(fetched)

    def _set_aside(self, overruled: dict[str, list[str]], files: Snapshot) -> None:
        names = [name for unit in overruled.values() for name in unit if name in files]
        if not names:
            return
        folder = (
            self._state.slot / f"set_aside-{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
        )
        for name in names:
            del files[name]
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self._root / name, target)
        logger.warning(
            "%s: another machine has published other versions of %s; what was made here and "
            "never published lies in %s",
            self.objects.uri,
            ", ".join(overruled),
            folder,
        )

    def warn_of_changes(self) -> None:
        base = self._state.base
        changed = {name for name, sha in self._state.look().items() if base.get(name) != sha}
        if changed:
            logger.warning(
                "%s was opened for reading only; these files were not published: %s",
                self.objects.uri,
                ", ".join(sorted(changed)),
            )

    def commit(self) -> None:
        """Publishes the local files: objects first, then the index, then what others read."""
        assert self.lock is not None
        refuse_passwords(self._root, self.objects.uri)
        files, base = self._state.look(), self._state.base
        # Held without a break since the index was read, or this raises: so it is still the same.
        self.lock.renew()
        if files != base:
            held = set(base.values())
            new = {sha: name for name, sha in files.items() if sha not in held}
            self.objects.upload(
                (f"{OBJECTS}/{sha}", self._root / name) for sha, name in sorted(new.items())
            )
            if self._state.look() != files:
                raise InputError(
                    f"{self._root} was written while it was published; nothing was published, "
                    "run the command again"
                )
            self._write_index(files)
            self._state.base = files
            self._state.save()
            self.lock.renew()
        self._mirror_sources(files)
        wanted = {f"{OBJECTS}/{sha}" for sha in files.values()}
        self.objects.delete([key for key in self.objects.keys(OBJECTS) if key not in wanted])

    def _write_index(self, files: Snapshot) -> None:
        commit = uuid.uuid4().hex
        value = {
            "version": INDEX_VERSION,
            "commit": commit,
            "written_at": datetime.now(UTC).isoformat(),
            "files": files,
        }
        try:
            self.objects.write(INDEX, value, over=self._index.etag if self._index else None)
        except Changed:
            found = self.objects.read(INDEX)
            # The client repeats a write whose answer was lost: then the index is ours already.
            if found is None or found.value.get("commit") != commit:
                raise InputError(
                    f"{self.objects.uri} was changed by another machine while this run worked; "
                    f"nothing was published, the work is kept in {self._root}; run it again"
                ) from None
        self._index = self.objects.read(INDEX)

    def _mirror_sources(self, files: Snapshot) -> None:
        """Brings `features/` to where the registry's readers look. Killed, the next run ends it."""
        found = self.objects.read(MIRROR)
        there: Snapshot = dict(found.value) if found else {}
        wanted = {name: sha for name, sha in files.items() if name.startswith(SOURCES)}
        if there == wanted:
            return
        changed = [name for name in wanted if there.get(name) != wanted[name]]
        manifests = [name for name in changed if name.endswith(f"/{MANIFEST}")]
        data = [name for name in changed if name not in manifests]
        self.objects.copy((f"{OBJECTS}/{wanted[name]}", name) for name in data)
        self.objects.delete([key for key in self.objects.keys(SOURCES[:-1]) if key not in wanted])
        self.objects.copy((f"{OBJECTS}/{wanted[name]}", name) for name in manifests)
        with suppress(Changed):  # by this very write, repeated: its answer was lost
            self.objects.write(MIRROR, wanted, over=found.etag if found else None)
