"""Ingest: source data -> the contract tables of a workspace.

    crescendo ingest --source hetrec-spotify --path DATA
    crescendo ingest --source table --path DATA --mapping columns.json

Reads a source by the adapter of its kind (`ray_jobs/adapters/`, one module each, whose docstring
says what it expects and what it makes of it) and writes `<workspace>/tables` by
`ray_jobs.contract`: tracks, events, rejected rows with reasons, id maps, manifest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feature_repo.artifacts import MANIFEST, read_manifest
from feature_repo.errors import ArtifactError, InputError
from feature_repo.workspace import Workspace
from ray_jobs.adapters import (
    amazon_beauty,
    demo_world,
    hetrec_spotify,
    music4all,
    table,
    thirty_music,
    tiktok_mm,
)
from ray_jobs.contract import SourceTables, write_contract_tables
from ray_jobs.progress import step

READERS: dict[str, Callable[[Path], SourceTables]] = {
    "demo-world": demo_world.read,
    "hetrec-spotify": hetrec_spotify.read,
    "30music-subset": thirty_music.read,
    "tiktok-mm": tiktok_mm.read,
    "music4all": music4all.read,
    "amazon-beauty": amazon_beauty.read,
}
MAPPED = "table"
SOURCES = (*READERS, MAPPED)


@dataclass(frozen=True, kw_only=True)
class IngestOptions:
    source: str
    """Kind of source, one of SOURCES."""
    path: Path
    """Folder of the source's files."""
    mapping: Path | None = None
    """Column mapping, for the kind `table`."""
    max_rejected_share: float = 0.05
    """Share of a table's rows that may break the contract; above it the ingest fails."""

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise InputError(f"source is {self.source!r}; expected one of {', '.join(SOURCES)}")
        if not 0 <= self.max_rejected_share <= 1:
            raise InputError(
                f"max_rejected_share is {self.max_rejected_share}; expected a share from 0 to 1"
            )
        if self.source == MAPPED and self.mapping is None:
            raise InputError("mapping is None; source table needs a JSON file that maps columns")
        if self.source != MAPPED and self.mapping is not None:
            raise InputError(
                f"mapping is {str(self.mapping)!r}; only source table takes one, "
                f"{self.source} knows its columns"
            )


def ingest(workspace: Workspace, options: IngestOptions) -> dict[str, Any]:
    """Returns tracks, events, users, rejected, rejected_by_reason and rows_in of both tables."""
    if not options.path.is_dir():
        raise InputError(
            f"path {options.path} is not a folder; expected the folder with the files of "
            f"{options.source}; correct --path"
        )
    _refuse_another_source(workspace, options)
    with step("ingest: read source", source=options.source, path=str(options.path)):
        if options.mapping is not None:
            source_tables = table.read(options.path, options.mapping)
        else:
            source_tables = READERS[options.source](options.path)
    return write_contract_tables(
        workspace,
        source_tables,
        source=options.source,
        max_rejected_share=options.max_rejected_share,
        options={
            "path": str(options.path.resolve()),
            "mapping": str(options.mapping.resolve()) if options.mapping else None,
        },
    )


def _refuse_another_source(workspace: Workspace, options: IngestOptions) -> None:
    """One workspace, one kind of source: the online store would keep the other one's users."""
    folder = workspace.tracks.parent
    if not (folder / MANIFEST).exists():
        return
    try:
        manifest = read_manifest(folder, kind="tables", made_by="ingest", verify=False)
    except ArtifactError:
        return  # damaged: this ingest replaces it
    if manifest.options.get("source") != options.source:
        raise InputError(
            f"workspace {workspace.root} holds {manifest.options.get('source')}, not "
            f"{options.source}; give another folder with `crescendo --workspace FOLDER ingest`"
        )
