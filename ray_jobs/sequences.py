"""Event log -> the sources of `user_sequence`, `user_stats` and `track_stats`.

    crescendo sequences --length 20

First folds the live events' journal into the log. Writes `features/user_sequence/part-*.parquet`,
the listens themselves, one row each, and `features/{user,track}_stats/part-*.parquet`. A row is
stamped with the first moment at which a reader may see it, so that Feast's point-in-time join,
which is `<=`, never shows a row its own event:

- an event becomes visible when it has happened AND reached the log: max(event, ingested);
- its row is stamped one microsecond later, so events of the same moment do not see each other,
  and a late arrival changes nothing before it arrived;
- a stats row counts whole days before the day it is stamped with.

The last N listens at a moment are built from the log when they are asked for
(feature_repo/stores/asof.py), so the size on disk grows with the events, not with N times them.
Events named in `tables/deletions/*.parquet` (column event_id), if there are any, are left out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import schema
from feature_repo.artifacts import (
    Manifest,
    content_id,
    file_sha256,
    parquet_files,
    write_artifact,
)
from feature_repo.errors import InputError
from feature_repo.event_journal import fold
from feature_repo.workspace import Workspace
from ray_jobs.progress import step
from ray_jobs.sequence_log import build_log
from ray_jobs.sequence_stats import write_stats


@dataclass(frozen=True, kw_only=True)
class SequenceOptions:
    length: int = schema.SEQUENCE_LENGTH
    """Listens shown per user: the tag of the view, which `publish` registers."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise InputError(f"length must be at least 1, got {self.length}")


def sequences(workspace: Workspace, options: SequenceOptions) -> dict[str, Any]:
    """Builds the three sources.

    Returns `users`, `rows` per view, `folded` (live events new in the log), `repeated` (second
    arrivals left out) and `deleted` (ids to leave out).
    """
    with step("fold live events"):
        folded = fold(workspace)
    workspace.require(workspace.events, "ingest --source KIND --path FOLDER")
    deleted = deletions(workspace)
    parents = {"events": events_id(workspace)}
    rows: dict[str, int] = {}
    with step("sequences"):
        folder = workspace.feature_source(schema.USER_SEQUENCE)
        manifest = Manifest(
            kind="feature_source",
            id=folder.name,
            parents=parents,
            options={"length": options.length},
        )
        with write_artifact(folder, manifest) as partial:
            built = build_log(workspace.events, deleted, partial)
            rows[folder.name] = built.listens
            manifest.rows = {"users": built.users, "rows": built.listens}
    for view, entity in ((schema.USER_STATS, "user"), (schema.TRACK_STATS, "track")):
        with step(view):
            folder = workspace.feature_source(view)
            manifest = Manifest(kind="feature_source", id=view, parents=parents)
            with write_artifact(folder, manifest) as partial:
                rows[view] = write_stats(
                    f"{workspace.events}/*.parquet",
                    pa.table({"event_id": deleted}),
                    partial,
                    entity,
                )
                manifest.rows = {"rows": rows[view]}
    return {
        "users": built.users,
        "rows": rows,
        "folded": folded,
        "repeated": built.repeated,
        "deleted": len(deleted),
    }


def events_id(workspace: Workspace) -> str:
    """Tells one state of the event log from another: derived from the files' content."""
    files = [*parquet_files(workspace.events), *parquet_files(deletions_folder(workspace))]
    names = {f"{path.parent.name}/{path.name}": file_sha256(path) for path in files}
    return content_id("events", names)


def deletions_folder(workspace: Workspace) -> Path:
    return workspace.events.parent / "deletions"


def deletions(workspace: Workspace) -> np.ndarray:
    """Ids (D,) int64 of events that the features must not have, sorted."""
    paths = parquet_files(deletions_folder(workspace))
    ids = [pq.read_table(path, columns=["event_id"])["event_id"].to_numpy() for path in paths]
    return np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *ids]))
