"""Artifacts: folders that are whole or absent, with a manifest that a reader verifies.

A folder is written under a temporary name and renamed; its `manifest.json`, written last, holds
id, parent ids, options, code version, row counts and the sha256 of each file. A reader that finds
a missing, foreign or changed file refuses (`ArtifactError`) and names the command that makes it.
"""

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

from feature_repo.errors import ArtifactError

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
    folder.parent.mkdir(parents=True, exist_ok=True)
    _recover(folder)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    partial.chmod(0o755)
    replaced: Path | None = None
    try:
        yield partial
        paths = sorted(path for path in partial.rglob("*") if path.is_file())
        manifest.files = {str(path.relative_to(partial)): file_sha256(path) for path in paths}
        manifest.code_version = version("crescendo")
        manifest.created_at = datetime.now(UTC).isoformat()
        write_json(partial / MANIFEST, asdict(manifest))
        if folder.exists():
            replaced = Path(tempfile.mkdtemp(prefix=REPLACED, dir=folder.parent))
            os.rename(folder, replaced / folder.name)
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        _recover(folder)
        raise
    if replaced is not None:
        shutil.rmtree(replaced)


def _recover(folder: Path) -> None:
    """Puts back a folder whose replacement was cut off between its two renames."""
    if not folder.exists():
        for earlier in folder.parent.glob(f"{REPLACED}*/{folder.name}"):
            os.rename(earlier, folder)
            earlier.parent.rmdir()
            return


def write_json(path: Path, value: object) -> None:
    """Writes JSON under a temporary name, syncs it and renames it over `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w") as stream:
        json.dump(value, stream, indent=2)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)


def read_manifest(folder: Path, *, kind: str, made_by: str, verify: bool = True) -> Manifest:
    """The manifest of a whole artifact of this kind, its files checked against their sha256.

    `made_by` is the `crescendo` command that makes such an artifact, for the error message.
    """
    fix = f"run `crescendo {made_by}` to make it again"
    _recover(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"no {kind} {folder.name}: {path} is missing; {fix}")
    try:
        manifest = Manifest(**json.loads(path.read_text()))
    except (json.JSONDecodeError, TypeError) as error:
        raise ArtifactError(f"{path} is not a manifest ({error}); {fix}") from error
    if (manifest.kind, manifest.id) != (kind, folder.name):
        raise ArtifactError(
            f"{folder} holds {manifest.kind} {manifest.id}; wanted {kind} {folder.name}; {fix}"
        )
    if verify:
        for name, expected in manifest.files.items():
            if not (folder / name).is_file():
                raise ArtifactError(f"{kind} {manifest.id} lacks its file {name}; {fix}")
            if file_sha256(folder / name) != expected:
                raise ArtifactError(f"{kind} {manifest.id}: {name} was changed; {fix}")
    return manifest


def parquet_files(folder: Path) -> list[Path]:
    """The parquet files of an artifact, in the order of their names."""
    return sorted(folder.glob("*.parquet"))


def newest(parent: Path, *, kind: str, made_by: str) -> Manifest:
    """The most recently made artifact under `parent`."""
    manifests = [
        read_manifest(path.parent, kind=kind, made_by=made_by, verify=False)
        for path in parent.glob(f"*/{MANIFEST}")
        if not path.parent.name.startswith(".")
    ]
    if not manifests:
        raise ArtifactError(f"no {kind} under {parent}; run `crescendo {made_by}` first")
    return max(manifests, key=lambda manifest: manifest.created_at)
