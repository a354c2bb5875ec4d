"""The live events' parts of the listening log: `tables/events/live-<batch>.parquet`.

`tables/` is an artifact that `ingest` replaces as a whole, and its manifest lists its files. A part
is renamed into it and then listed; between the two a reader finds one file more than the manifest
names, which is no error. Both steps hold the lock under which artifacts are replaced.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.artifacts import (
    MANIFEST,
    Manifest,
    file_sha256,
    parquet_files,
    recover,
    write_json,
)
from feature_repo.durable_files import make_folder, sync
from feature_repo.schema import EVENTS
from feature_repo.scratch import locked
from feature_repo.tombstones import read_tombstones
from feature_repo.workspace import Workspace

PREFIX = "live-"
PARTIAL = ".partial"
"""Ending of a file that is being written: no reader of parquet files takes it for one."""


def add_live_parts(workspace: Workspace, batches: list[Path]) -> int:
    """Adds what the log lacks of these folded batches, in their order; returns how many rows.

    A batch whose part the log has is done. Of several rows of one event_id the first stays.
    """
    recover(workspace.events.parent)
    added = sum(_add_live_part(workspace, batch) for batch in batches)
    _record_live_parts(workspace)
    return added


def _add_live_part(workspace: Workspace, batch: Path) -> int:
    part = workspace.events / f"{PREFIX}{batch.name}"
    while not part.exists():
        before = _log_state(workspace)
        rows = _new_rows(workspace, batch)
        partial = batch.with_name(f"{batch.name}{PARTIAL}")
        pq.write_table(rows, partial, coerce_timestamps="us")
        sync(partial)
        with locked(workspace.root):
            if _log_state(workspace) != before:
                continue  # replaced by an ingest since we looked for what is new
            make_folder(part.parent)
            os.rename(partial, part)
            sync(part.parent)
        return len(rows)
    return 0


def _record_live_parts(workspace: Workspace) -> None:
    """Lists the parts, and counts the log, in the tables' manifest, where there is one.

    A log that was written by hand has none.
    """
    folder = workspace.events.parent
    with locked(workspace.root):
        path = folder / MANIFEST
        if not path.is_file():
            return
        manifest = Manifest(**json.loads(path.read_text()))
        parts = {
            str(part.relative_to(folder)): part
            for part in workspace.events.glob(f"{PREFIX}*.parquet")
        }
        missing = parts.keys() - manifest.files.keys()
        if not missing:
            return
        manifest.files |= {name: file_sha256(parts[name]) for name in sorted(missing)}
        manifest.rows |= _counts(workspace)
        manifest.info["live_events"] = sum(
            pq.read_metadata(part).num_rows for part in parts.values()
        )
        write_json(path, asdict(manifest))


def _log_state(workspace: Workspace) -> list[tuple[str, int, int, int]]:
    """Tells one state of the log's files from another."""
    facts = [(path.name, path.stat()) for path in parquet_files(workspace.events)]
    return [(name, found.st_ino, found.st_size, found.st_mtime_ns) for name, found in facts]


def _new_rows(workspace: Workspace, batch: Path) -> pa.Table:
    """The batch's rows that the log lacks, by event_timestamp and event_id as in all its parts.

    Rows of users and events that were forgotten meanwhile are none.
    """
    rows = pq.read_table(batch, schema=EVENTS)
    hidden = read_tombstones(workspace).hidden(
        rows["user_id"].to_numpy(),
        rows["event_id"].to_numpy(),
        rows["event_timestamp"].cast(pa.int64()).to_numpy(),
    )
    rows = rows.filter(pa.array(~hidden))
    ids = rows["event_id"].to_numpy()
    _, first = np.unique(ids, return_index=True)  # a batch is in the order of arrival
    if parquet_files(workspace.events):
        # The batch's ids are the hash table and the log streams past: its size costs no memory.
        sql = f"""
            SELECT DISTINCT event_id FROM '{workspace.events}/*.parquet' AS log
            SEMI JOIN batch ON batch.event_id = log.event_id
        """
        with duckdb.connect() as connection:
            connection.register("batch", pa.table({"event_id": ids}))
            taken = connection.sql(sql).to_arrow_table()["event_id"].to_numpy()
        first = first[~np.isin(ids[first], taken)]
    return rows.take(first).sort_by([("event_timestamp", "ascending"), ("event_id", "ascending")])


def _counts(workspace: Workspace) -> dict[str, int]:
    sql = f"""
        SELECT count(*), count(DISTINCT user_id) FROM '{workspace.events}/*.parquet'
    """
    with duckdb.connect() as connection:
        ((events, users),) = connection.sql(sql).fetchall()
    return {"events": events, "users": users}
