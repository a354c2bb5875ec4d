"""The files of a working copy: what is there, what has changed, and how two changes come together.

A snapshot is a dict from relative path to sha256. What changes as a whole is a unit: an artifact's
folder, the embedded stores with the settings that name them, or else a single file.
"""

import glob
import os
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from feature_repo.artifacts import MANIFEST, REPLACED, file_sha256, recover
from feature_repo.durable_files import sync
from feature_repo.errors import InputError
from feature_repo.store_settings import SETTINGS_FILE, WATERMARKS, has_password

Snapshot = dict[str, str]
STORES = "(stores)"
"""Unit of what lies directly in the workspace, and of the watermarks."""
SQLITE_SIDE_FILES = ("-wal", "-shm", "-journal")
RACY_NS = 2_000_000_000
"""A file written this shortly before a look may change again without a newer time."""


@dataclass
class Seen:
    """What an earlier look found, so that unchanged files are not read again."""

    looked_at_ns: int = 0
    files: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    """Path -> bytes, modification time in ns, sha256."""


def look(root: Path, earlier: Seen) -> Seen:
    """The files of a workspace that no other process is writing. Hidden ones do not count.

    First ends what a killed run left half done: replacements of artifacts, SQLite's logs.
    """
    _end_replacements(root)
    _end_sqlite_logs(root)
    seen = Seen(looked_at_ns=time.time_ns())
    for path, name in _files(root):
        status = path.stat()
        known = earlier.files.get(name)
        same = known is not None and known[:2] == (status.st_size, status.st_mtime_ns)
        if known is not None and same and known[1] < earlier.looked_at_ns - RACY_NS:
            seen.files[name] = known
        else:
            seen.files[name] = (status.st_size, status.st_mtime_ns, file_sha256(path))
    return seen


def snapshot(seen: Seen) -> Snapshot:
    return {name: sha256 for name, (_, _, sha256) in seen.files.items()}


def _files(root: Path) -> Iterator[tuple[Path, str]]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and not name.endswith(SQLITE_SIDE_FILES):
                path = Path(folder, name)
                yield path, path.relative_to(root).as_posix()


def _end_replacements(root: Path) -> None:
    for holder in glob.glob(f"{glob.escape(str(root))}/**/{REPLACED}*", recursive=True):
        for held in Path(holder).iterdir():
            recover(Path(holder).parent / held.name)


def _end_sqlite_logs(root: Path) -> None:
    """Brings what SQLite has only logged so far into the database files."""
    for log in root.rglob("*-wal"):
        database = log.with_name(log.name.removesuffix("-wal"))
        if log.stat().st_size == 0 or not database.exists():
            continue
        connection = sqlite3.connect(database, timeout=10)
        try:
            ((busy, _, _),) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            connection.close()
        if busy:
            raise InputError(f"{database} is being used by another process; end it and run again")


def unit_of(name: str, manifests: set[str]) -> str:
    """The unit that a file belongs to; `manifests` are the folders that have one."""
    folders = name.split("/")[:-1]
    if not folders or folders[0] == WATERMARKS:
        return STORES
    for depth in range(1, len(folders) + 1):
        folder = "/".join(folders[:depth])
        if folder in manifests:
            return folder
    return name


def merge(
    base: Snapshot, ours: Snapshot, theirs: Snapshot
) -> tuple[Snapshot, dict[str, list[str]]]:
    """What both have made of `base`, unit by unit.

    Where both have changed a unit, theirs is taken, which is published already; beside the result
    come those units, each with the names of our files that theirs overrules.
    """
    sides = (base, ours, theirs)
    manifests = {
        name.removesuffix(f"/{MANIFEST}")
        for side in sides
        for name in side
        if name.endswith(f"/{MANIFEST}")
    }
    units: dict[str, tuple[Snapshot, Snapshot, Snapshot]] = {}
    for position, side in enumerate(sides):
        for name, sha256 in side.items():
            unit = unit_of(name, manifests)
            units.setdefault(unit, ({}, {}, {}))[position][name] = sha256
    merged: Snapshot = {}
    overruled: dict[str, list[str]] = {}
    for unit, (was, is_ours, is_theirs) in sorted(units.items()):
        if is_theirs == was:
            merged |= is_ours
            continue
        merged |= is_theirs
        if is_ours not in (was, is_theirs):
            overruled[unit] = [name for name, sha in is_ours.items() if is_theirs.get(name) != sha]
    return merged, overruled


def put(root: Path, fetched: Path, names: Mapping[str, str], dropped: Iterable[str]) -> None:
    """Makes the workspace's files those of a snapshot.

    `fetched` holds the contents by sha256 and is used up; `names` says which file gets which. Who
    reads meanwhile finds what a file names: manifests come after the rest, pointers at the end.
    """
    old = time.time_ns() - 2 * RACY_NS  # so that the next look need not read them again
    for name in dropped:
        _forget_sqlite_log(root / name)
        (root / name).unlink(missing_ok=True)
        _remove_empty(root, (root / name).parent)
    uses = Counter(names.values())
    for name in put_order(names):
        sha256, target = names[name], root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        _forget_sqlite_log(target)
        content = fetched / sha256
        uses[sha256] -= 1
        if uses[sha256]:  # another file with the same content is still to come
            content = fetched / f"{sha256}.copy"
            shutil.copyfile(fetched / sha256, content)
        sync(content)  # before it is called ours, for a power cut's sake
        os.utime(content, ns=(old, old))
        os.replace(content, target)


def put_order(names: Iterable[str]) -> list[str]:
    """Content, then manifests, then pointers: files without a suffix (`releases/CURRENT`)."""
    paths = [Path(name) for name in sorted(names)]
    paths.sort(key=lambda path: (not path.suffix, path.name == MANIFEST))
    return [path.as_posix() for path in paths]


def _forget_sqlite_log(database: Path) -> None:
    """A log belongs to the database that is about to be replaced."""
    for suffix in SQLITE_SIDE_FILES:
        database.with_name(database.name + suffix).unlink(missing_ok=True)


def _remove_empty(root: Path, folder: Path) -> None:
    while folder != root and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def refuse_passwords(root: Path, uri: str) -> None:
    """Settings are published with the workspace, so no password may stand in them."""
    path = root / SETTINGS_FILE
    if path.exists() and has_password(path.read_text()):
        raise InputError(
            f"{path} holds a password, which would be stored in {uri}; write ${{NAME}} in its "
            "place and export NAME"
        )
