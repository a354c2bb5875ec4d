"""What tests of forgetting look at: all tables, online rows and manifests of a world."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import schema
from feature_repo.artifacts import read_manifest
from feature_repo.store import open_store
from feature_repo.workspace import Workspace
from tests.ray_jobs.forget_world import (
    all_events,
)

ADA, BOB = 1, 2


@dataclass(frozen=True)
class Forgotten:
    """A world before and after `forget --user ada`."""

    before: Workspace
    after: Workspace
    answer: dict


def tables(workspace: Workspace) -> Iterator[tuple[str, pa.Table]]:
    for path in sorted(workspace.root.rglob("*.parquet")):
        name = str(path.relative_to(workspace.root))
        if not name.startswith(("journal/", "forgotten/")):
            yield name, pq.read_table(path)


def rows_of_others(workspace: Workspace, user: int, source_id: str, event_ids: set) -> dict:
    """Every table less the rows of one user, by plain Python: the oracle of what has to stay."""
    kept = {}
    for name, table in tables(workspace):
        rows = table.to_pylist()
        if "id_maps/users" in name:
            rows = [row for row in rows if row["id"] != user]
        elif "rejected/" in name:
            rows = [row for row in rows if json.loads(row["row"]).get("user_id") != source_id]
        elif "user_id" in table.column_names:
            rows = [row for row in rows if row["user_id"] != user]
        elif "event_id" in table.column_names:
            rows = [row for row in rows if row["event_id"] not in event_ids]
        kept[name] = (table.schema, rows)
    return kept


def online_rows(workspace: Workspace) -> dict:
    store = open_store(workspace)
    names = [f"{schema.USER_SEQUENCE}:{name}" for name in schema.SEQUENCE_COLUMNS]
    names.append(f"{schema.USER_STATS}:user_plays_7d")
    rows = [{"user_id": user} for user in range(1, 6)]
    return store.get_online_features(features=names, entity_rows=rows).to_dict()


def manifests_are_whole(workspace: Workspace) -> None:
    """Every artifact that is to be seen is one, and lists the files that are to be seen."""
    for path in workspace.root.rglob("manifest.json"):
        if any(part.startswith(".") for part in path.relative_to(workspace.root).parts):
            continue
        kind = json.loads(path.read_text())["kind"]
        manifest = read_manifest(path.parent, kind=kind, made_by="train")
        seen = [file for file in path.parent.rglob("[!.]*") if file.is_file()]
        listed = {str(file.relative_to(path.parent)) for file in seen}
        assert set(manifest.files) == listed - {"manifest.json"}


def events_of(workspace: Workspace, user: int) -> set[int]:
    return {event["event_id"] for event in all_events(workspace) if event["user_id"] == user}
