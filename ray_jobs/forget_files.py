"""Takes rows out of the workspace's files, and looks for them afterwards.

Every parquet file is looked at, wherever it lies, by the columns that tell whose rows it holds
(`forget_rows.Target`). An artifact is written anew as a whole, with the files that do not change
linked and not copied, and with its manifest's hashes and counts; a loose file is replaced by a
rename. Rows keep their order, row groups and values. A kill leaves each artifact as it was or done.
"""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.artifacts import MANIFEST, REPLACED, Manifest, recover, write_artifact, write_json
from feature_repo.durable_files import sync
from feature_repo.errors import ArtifactError
from feature_repo.parquet_form import parquet_settings
from feature_repo.scratch import only_writer, scratch_folder
from feature_repo.workspace import Workspace
from ray_jobs.forget_manifest import count_out
from ray_jobs.forget_rows import Target, without

TEXTS = (".json", ".jsonl", ".html", ".txt", ".log", ".md", ".yaml")
STORES = (".db", ".db-wal", ".db-shm", ".sqlite", ".db-journal")
"""Searched through the feature store, not as files."""
OWN_FOLDERS = ("journal", "forgotten")
"""Written under rules of their own: `event_journal.remove`, `tombstones`."""


@dataclass(kw_only=True)
class Found:
    """What a search of all files came upon."""

    rows: dict[Path, int] = field(default_factory=dict)
    """Parquet files with rows to forget."""
    texts: list[Path] = field(default_factory=list)
    """Reports and logs that name the user."""
    event_ids: set[int] = field(default_factory=set)
    """Of the rows found, in files that also say whose events they are."""
    not_searched: Counter[str] = field(default_factory=Counter)
    """Files of kinds that hold nothing about users, or that nobody here can read: by suffix."""

    @property
    def count(self) -> int:
        """Rows, and texts as one each."""
        return sum(self.rows.values()) + len(self.texts)

    def by_store(self, root: Path) -> Counter[str]:
        """`count` for each folder right under the workspace."""
        counts: Counter[str] = Counter()
        for path, rows in [*self.rows.items(), *((path, 1) for path in self.texts)]:
            counts[path.relative_to(root).parts[0]] += rows
        return counts


def end_what_was_cut_off(workspace: Workspace) -> None:
    """Ends the replacements of killed runs and removes their working folders.

    InputError while a live run works in such a folder: it may be copying what is to be forgotten.
    """
    for holder in sorted(workspace.root.rglob(f"{REPLACED}*")):
        for folder in list(holder.iterdir()) if holder.is_dir() else ():
            recover(holder.parent / folder.name)
    for parent, names, _ in os.walk(workspace.root):
        if Path(parent) == workspace.root:
            names[:] = [name for name in names if name not in OWN_FOLDERS]
        for name in [name for name in names if name.startswith(".")]:
            with only_writer(Path(parent) / name):
                shutil.rmtree(Path(parent) / name)
            names.remove(name)


def search(workspace: Workspace, target: Target) -> Found:
    """Looks through every file under the workspace, hidden ones too."""
    found = Found()
    for path in _files(workspace.root):
        if path.suffix == ".parquet":
            gone = rows_of(path, target)
            if gone.rows:
                found.rows[path] = gone.rows
                found.event_ids |= gone.event_ids
        elif path.suffix in TEXTS:
            if target.user_id is not None and _names_user(path, target):
                found.texts.append(path)
        elif path.suffix not in STORES:
            found.not_searched[path.suffix or path.name] += 1
    return found


@dataclass(frozen=True, kw_only=True)
class FileRows:
    rows: int
    event_ids: set[int]


def rows_of(path: Path, target: Target) -> FileRows:
    """How many rows of one parquet file go. Reads the telling columns, a row group at a time."""
    rows, event_ids = 0, set()
    try:
        parquet = pq.ParquetFile(path)
    except FileNotFoundError:
        return FileRows(rows=0, event_ids=set())  # replaced since it was listed
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(
            f"{path} cannot be read ({error}), so nobody can tell whom it names; bring it back, or "
            "remove it and run the command that makes it"
        ) from error
    with parquet:
        names = parquet.schema_arrow.names
        columns = target.columns(path.name, names)
        if columns:
            ids = ["event_id"] if target.user_id is not None and "event_id" in names else []
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group, columns=[*columns, *ids])
                gone = target.rows(table.select(columns))
                rows += int(gone.sum())
                if ids and "user_id" in columns:
                    mine = table["event_id"].filter(pa.array(gone)).to_pylist()
                    event_ids |= {event_id for event_id in mine if event_id is not None}
    return FileRows(rows=rows, event_ids=event_ids)


def remove(workspace: Workspace, target: Target, found: Found, made_at: dict[str, str]) -> None:
    """Takes what was found out of the files.

    `made_at`: when each artifact was made, which stays: the newest one has to stay the newest.
    """
    of_artifact: dict[Path, list[Path]] = {}
    for path in found.rows:
        folder = artifact_of(workspace, path)
        if folder is None:
            _replace_file(path, target)
        else:
            of_artifact.setdefault(folder, []).append(path)
    for folder, paths in of_artifact.items():
        _replace_artifact(workspace, folder, paths, target, made_at)
    for path in found.texts:
        _remove_text(workspace, path, target)


def artifact_of(workspace: Workspace, path: Path) -> Path | None:
    """The folder of the artifact whose manifest stands over this file, if there is one."""
    for folder in path.parents:
        if (folder / MANIFEST).is_file():
            return folder
        if folder == workspace.root:
            return None
    return None


def artifacts(workspace: Workspace) -> Iterator[tuple[str, Manifest]]:
    """Every artifact of the workspace: its folder, relative, and its manifest."""
    for path in sorted(workspace.root.rglob(MANIFEST)):
        if path.parent.name.startswith("."):
            continue
        try:
            manifest = Manifest(**json.loads(path.read_text()))
        except (json.JSONDecodeError, TypeError):
            continue  # of another kind of folder, whose files are loose ones to us
        yield str(path.parent.relative_to(workspace.root)), manifest


def _files(root: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(root):
        if Path(folder) == root:
            names[:] = [name for name in names if name not in OWN_FOLDERS]
        names.sort()
        yield from (Path(folder) / name for name in sorted(files))


def _replace_file(path: Path, target: Target) -> None:
    with scratch_folder(path.parent, f".{path.name}.forget.") as partial:
        _write_without(path, partial / path.name, target)
        sync(partial / path.name)
        os.replace(partial / path.name, path)
        sync(path.parent)


def _replace_artifact(
    workspace: Workspace, folder: Path, paths: list[Path], target: Target, made_at: dict[str, str]
) -> None:
    """Writes an artifact again without the rows; what does not change is linked."""
    recover(folder)
    removed: dict[str, int] = {}
    with only_writer(folder):
        manifest = Manifest(**json.loads((folder / MANIFEST).read_text()))
        created_at = made_at.get(str(folder.relative_to(workspace.root)), manifest.created_at)
        with write_artifact(folder, manifest) as partial:
            for source in sorted(folder.rglob("*")):
                name = source.relative_to(folder)
                if name.name.startswith("."):
                    continue  # half a file of a killed run: no part of the artifact
                if source.is_dir():
                    (partial / name).mkdir(exist_ok=True)
                elif source in paths:
                    removed[str(name)] = _write_without(source, partial / name, target)
                elif str(name) != MANIFEST:
                    os.link(source, partial / name)  # nobody writes into a file of an artifact
            count_out(manifest, partial, removed)
        manifest.created_at = created_at
        write_json(folder / MANIFEST, asdict(manifest))


def _write_without(source: Path, path: Path, target: Target) -> int:
    """Copies a parquet file less the rows that go: same columns, row groups and compression."""
    removed = 0
    with pq.ParquetFile(source) as parquet:
        columns = target.columns(source.name, parquet.schema_arrow.names)
        compression = {
            column.path_in_schema: column.compression.replace("UNCOMPRESSED", "NONE")
            for column in map(
                parquet.metadata.row_group(0).column, range(parquet.metadata.num_columns)
            )
        }
        form = parquet_settings(parquet.schema_arrow)
        form |= {"compression": compression, "compression_level": None}
        with pq.ParquetWriter(path, parquet.schema_arrow, **form) as writer:
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group)
                gone = target.rows(table.select(columns))
                removed += int(gone.sum())
                kept = without(table, gone) if gone.any() else table
                if len(kept):
                    writer.write_table(kept, row_group_size=len(kept))
    return removed


def _names_user(path: Path, target: Target) -> bool:
    """Whether a text names the user: `user` or `user_id`, and the number or the source's id."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return False
    return _pattern(target).search(text) is not None


def _pattern(target: Target) -> re.Pattern[str]:
    names = str(target.user_id)
    if target.source_id is not None:
        names = f"(?:{names}|{re.escape(target.source_id)})"
    return re.compile(rf"\buser(?:_?id)?[\"']?\s*[:=]\s*[\"']?{names}(?![\w.])")


def _remove_text(workspace: Workspace, path: Path, target: Target) -> None:
    """Lines of a log go one by one; a report goes as a whole, as `crescendo report` remakes it."""
    if path.suffix in (".jsonl", ".log"):
        pattern = _pattern(target)
        lines = path.read_text().splitlines(keepends=True)
        with scratch_folder(path.parent, f".{path.name}.forget.") as partial:
            (partial / path.name).write_text(
                "".join(line for line in lines if not pattern.search(line))
            )
            sync(partial / path.name)
            os.replace(partial / path.name, path)
    elif path.is_relative_to(workspace.reports) and artifact_of(workspace, path) is None:
        path.unlink(missing_ok=True)
    else:
        raise ArtifactError(
            f"{path} names the user and is no file that this platform writes rows to; remove it, "
            "or the name in it, and run `crescendo forget` again"
        )
