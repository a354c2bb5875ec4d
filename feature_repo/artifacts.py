"""Artifacts: folders that are whole or absent, with a manifest that a reader verifies.

A folder is written under a temporary name and renamed; its `manifest.json`, written last, holds
id, parent ids, options, code version, row counts and the sha256 of each file. A reader that finds
a missing, foreign or changed file refuses (`ArtifactError`) and names the command that makes it.

A kill at any moment leaves the earlier folder whole. Between the two renames of a replacement it
lies under `.replaced.<name>...`, from where the next reader or writer puts it back.
"""

import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from feature_repo.durable_files import replacing, sync
from feature_repo.errors import ArtifactError
from feature_repo.scratch import locked, scratch_folder

MANIFEST = "manifest.json"
REPLACED = ".replaced."


@dataclass(kw_only=True)
class Manifest:
    """What `manifest.json` holds. The writer fills rows and info while it writes the files."""

    kind: str
    id: str
    parents: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    code_version: str = ""
    created_at: str = ""
    files: dict[str, str] = field(default_factory=dict)


def content_id(prefix: str, *parts: object) -> str:
    """`prefix-` and 12 hex digits of sha256 over the parts (bytes, or anything JSON can hold)."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return f"{prefix}-{digest.hexdigest()[:12]}"


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def write_artifact(folder: Path, manifest: Manifest) -> Iterator[Path]:
    """Yields an empty folder to write into; on success it becomes `folder`, manifest last.

    An error inside leaves `folder` as it was. An existing `folder` is replaced.
    """
    if not folder.exists():
        recover(folder)
    with scratch_folder(folder.parent, f".{folder.name}.") as partial:
        yield partial
        paths = sorted(path for path in partial.rglob("*") if path.is_file())
        manifest.files = {str(path.relative_to(partial)): file_sha256(path) for path in paths}
        manifest.code_version = version("crescendo")
        manifest.created_at = datetime.now(UTC).isoformat()
        write_json(partial / MANIFEST, asdict(manifest))
        for path in (*partial.rglob("*"), partial):  # before the renames, for a power cut's sake
            sync(path)
        with locked(folder.parent):
            _replace(folder, partial)


def _replace(folder: Path, partial: Path) -> None:
    """Renames `partial` to `folder`, the earlier one out of its way. Under the lock."""
    try:
        if folder.exists():
            holder = tempfile.mkdtemp(prefix=f"{REPLACED}{folder.name}.", dir=folder.parent)
            os.rename(folder, Path(holder) / folder.name)
        os.rename(partial, folder)
        sync(folder.parent)
    finally:
        _put_back(folder)


def _put_back(folder: Path) -> None:
    """Ends replacements that were cut off: puts the folder back or drops it. Under the lock."""
    parent, name = glob.escape(str(folder.parent)), glob.escape(folder.name)
    holders = {Path(path).parent for path in glob.glob(f"{parent}/{REPLACED}*/{name}")}
    holders |= {Path(path) for path in glob.glob(f"{parent}/{REPLACED}{name}.*")}
    for holder in sorted(holders):
        if any(path.name != folder.name for path in holder.iterdir()):
            continue  # of an artifact whose name begins with this one
        if not folder.exists() and (holder / folder.name).exists():
            os.rename(holder / folder.name, folder)
        _remove(holder)


def _remove(holder: Path) -> None:
    """Removes a replaced folder, its manifest first: the rest alone is no artifact."""
    for path in holder.glob(f"*/{MANIFEST}"):
        path.unlink()
    shutil.rmtree(holder)


def recover(folder: Path) -> None:
    """Ends a replacement that was cut off, whether the earlier folder or the new one is there.

    Writers do it by writing; this is for those that may find nothing to write.
    """
    if folder.parent.is_dir():
        with locked(folder.parent):
            _put_back(folder)


def write_json(path: Path, value: object) -> None:
    """Writes JSON under a temporary name, syncs it and renames it over `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        stream.write(json.dumps(value, indent=2).encode() + b"\n")


def read_manifest(folder: Path, *, kind: str, made_by: str, verify: bool = True) -> Manifest:
    """The manifest of a whole artifact of this kind, its files checked against their sha256.

    `made_by` is the `crescendo` command that makes such an artifact, for the error message.
    """
    fix = f"run `crescendo {made_by}` to make it again"
    path = folder / MANIFEST
    written = _manifest_text(folder)
    if written is None:
        raise ArtifactError(f"no {kind} {folder.name}: {path} is missing; {fix}")
    try:
        manifest = Manifest(**json.loads(written))
    except (json.JSONDecodeError, TypeError) as error:
        raise ArtifactError(f"{path} is not a manifest ({error}); {fix}") from error
    if (manifest.kind, manifest.id) != (kind, folder.name):
        raise ArtifactError(
            f"{folder} holds {manifest.kind} {manifest.id}; wanted {kind} {folder.name}; {fix}"
        )
    problem = _changed_file(folder, manifest) if verify else None
    if problem is None:
        return manifest
    if _manifest_text(folder) != written:  # replaced while we were reading
        return read_manifest(folder, kind=kind, made_by=made_by)
    raise ArtifactError(f"{kind} {manifest.id}{problem}; {fix}")


def is_whole(folder: Path, *, kind: str, made_by: str) -> bool:
    """Whether `read_manifest` would give it: a job makes what is missing or damaged again."""
    try:
        read_manifest(folder, kind=kind, made_by=made_by)
    except ArtifactError:
        return False
    return True


def _manifest_text(folder: Path) -> str | None:
    """What the manifest says, or None where there is none."""
    path = folder / MANIFEST
    try:
        return path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        if not folder.exists():  # it may be in the middle of a replacement
            recover(folder)
    return path.read_text() if path.is_file() else None


def _changed_file(folder: Path, manifest: Manifest) -> str | None:
    """The end of a sentence about the first file that is not as the manifest says."""
    for name, expected in manifest.files.items():
        try:
            found = file_sha256(folder / name)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return f" lacks its file {name}"
        if found != expected:
            return f": {name} was changed"
    return None


def parquet_files(folder: Path) -> list[Path]:
    """The parquet files of an artifact, in the order of their names."""
    return sorted(folder.glob("*.parquet"))


def newest(parent: Path, *, kind: str, made_by: str, option: str | None = None) -> Manifest:
    """The most recently made artifact under `parent`, of those with this option if one is given."""
    manifests = [
        read_manifest(folder, kind=kind, made_by=made_by, verify=False)
        for folder in _artifacts(parent)
    ]
    if option is not None:
        manifests = [manifest for manifest in manifests if option in manifest.options]
    if not manifests:
        raise ArtifactError(f"no {kind} under {parent}; run `crescendo {made_by}` first")
    return max(manifests, key=lambda manifest: manifest.created_at)


def _artifacts(parent: Path) -> list[Path]:
    """The artifacts' folders, those too whose replacement was cut off."""
    if not parent.is_dir():
        return []
    with locked(parent):
        for path in parent.glob(f"{REPLACED}*/*/{MANIFEST}"):
            if not (parent / path.parent.name).exists():
                _put_back(parent / path.parent.name)
        paths = parent.glob(f"*/{MANIFEST}")
        return [path.parent for path in paths if not path.parent.name.startswith(".")]
