"""The journal of live events: where an event is safe before anybody is told that it was taken.

    append(workspace, events)   on the disk when it returns, with the moment it came (ingested_at)
    fold(workspace)             all of it into `tables/events`, each event_id once
    since(workspace, moment)    what came from then on, folded or not
    remove(workspace, ...)      forgets users or events

    journal/<writer>.jsonl             one file a writing process (journal_files.py)
    journal/sealed/<batch>/*.jsonl     taken from the writers by a fold
    journal/folded/<batch>.parquet     what a fold found in them
    tables/events/live-<batch>.parquet     what of that the log did not have yet

Records move downwards, and every step is a rename after which the step before is done again to no
effect: a kill anywhere loses nothing and counts nothing twice. A fold takes the files of live
writers too, so what was answered before it began is in the log when it ends. `journal/folded`
stays: an `ingest` replaces `tables/` as a whole, and the next fold brings the live events back.
It costs their size on disk a second time, some 25 bytes an event.
"""

import os
import shutil
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.artifacts import parquet_files
from feature_repo.durable_files import make_folder, sync
from feature_repo.errors import InputError
from feature_repo.journal_files import (
    SUFFIX,
    JournalWriter,
    Record,
    read_file,
    record_lines,
    take_file,
    to_records,
)
from feature_repo.live_parts import PARTIAL, add_live_parts
from feature_repo.schema import EVENTS, TIMESTAMP
from feature_repo.scratch import locked
from feature_repo.workspace import Workspace

_writers: dict[tuple[int, Path], JournalWriter] = {}


def journal_folder(workspace: Workspace) -> Path:
    return workspace.root / "journal"


def append(workspace: Workspace, events: pa.Table) -> pa.Table:
    """Makes the events safe, and returns them with `ingested_at` set to now.

    `events` has the columns of schema.EVENTS, of which `ingested_at` may be missing: the moment
    at which the journal takes an event is the journal's to say. One sync to disk serves all
    threads that call at the same time. Raises InputError for a null in a required column, and
    OSError if the disk did not take the events; they may be in the journal nevertheless, so the
    caller gives them again under the same ids.
    """
    events = _stamped(events)
    _write(workspace, to_records(events))
    return events


def append_records(workspace: Workspace, events: Sequence[Record]) -> None:
    """`append` of checked events one by one: sets `ingested_at` in each of them."""
    now_us = time.time_ns() // 1000
    for event in events:
        event["ingested_at"] = now_us
    _write(workspace, events)


def _write(workspace: Workspace, events: Sequence[Record]) -> None:
    if not events:
        return
    # A fork has its parent's dictionary, so the process id stands in the key.
    folder = journal_folder(workspace).absolute()
    key = (os.getpid(), folder)
    _writers.setdefault(key, JournalWriter(folder)).append(record_lines(events))


def _stamped(events: pa.Table) -> pa.Table:
    for field in EVENTS:
        nulls = events[field.name].null_count if field.name != "ingested_at" else 0
        if nulls and not field.nullable:
            raise InputError(
                f"{field.name} is null in {nulls} of {len(events)} live events; "
                "expected a value in each"
            )
    if "ingested_at" in events.column_names:
        events = events.drop_columns(["ingested_at"])
    now = pa.scalar(datetime.now(UTC), TIMESTAMP)
    events = events.append_column("ingested_at", pa.repeat(now, len(events)))
    return events.select(EVENTS.names).cast(EVENTS)


def fold(workspace: Workspace) -> int:
    """Moves what the journal holds into `tables/events`; returns how many rows that added.

    Of several records of one event_id the first to arrive is kept, and none where the log has
    that id already. Another fold of the same workspace is waited for.
    """
    folder = journal_folder(workspace)
    if not folder.is_dir():
        return 0
    with locked(folder):
        _collect(folder)
        return add_live_parts(workspace, parquet_files(folder / "folded"))


def since(workspace: Workspace, moment: datetime) -> pa.Table:
    """The events that the journal took at `moment` or later, folded or not, as schema.EVENTS.

    An event that is being folded meanwhile may come twice.
    """
    folder = journal_folder(workspace)
    # In the direction in which records move: what leaves one place is met again in the next.
    unfolded = [*_records(sorted(folder.glob(f"*{SUFFIX}")))]
    unfolded += _records(sorted(folder.glob(f"sealed/*/*{SUFFIX}")))
    start = pa.scalar(moment, TIMESTAMP)
    folded = [
        pq.read_table(part, schema=EVENTS, filters=pc.field("ingested_at") >= start)
        for part in parquet_files(folder / "folded")
    ]
    events = pa.concat_tables([EVENTS.empty_table(), *folded, *unfolded])
    return events.filter(pc.greater_equal(events["ingested_at"], start))


def remove(
    workspace: Workspace, *, user_ids: Sequence[int] = (), event_ids: Sequence[int] = ()
) -> int:
    """Forgets all events of these users, and these events; returns how many records there were.

    Only the journal's: the rows in `tables/events` are the caller's to remove, afterwards, so
    that no fold brings them back. A kill in the middle leaves some of them; it may run again.
    """
    folder = journal_folder(workspace)
    if not folder.is_dir():
        return 0
    users, events = pa.array(user_ids, pa.int64()), pa.array(event_ids, pa.int64())
    removed = 0
    with locked(folder):
        _collect(folder)
        for part in parquet_files(folder / "folded"):
            records = pq.read_table(part, schema=EVENTS)
            forgotten = pc.or_(
                pc.is_in(records["user_id"], users), pc.is_in(records["event_id"], events)
            )
            count = pc.sum(forgotten).as_py() or 0
            if count:
                # The empty rest of a part stays: it says that the batch was folded.
                _write_part(records.filter(pc.invert(forgotten)), part)
                removed += count
    return removed


def _collect(folder: Path) -> None:
    """Takes the writers' files and brings each batch into `folded`. Under the journal's lock."""
    for path in (folder / "folded").glob(f"*{PARTIAL}"):
        path.unlink()  # of a fold that was killed
    active = sorted(folder.glob(f"*{SUFFIX}"))
    if active:
        # Names in the order of time: of two records of one event_id, the first batch's is kept.
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{uuid4().hex[:8]}"
        batch = folder / "sealed" / name
        make_folder(batch)
        for path in active:
            take_file(path, batch / path.name)
        sync(batch)
        sync(folder)
    for batch in sorted((folder / "sealed").glob("*")):
        part = folder / "folded" / f"{batch.name}.parquet"
        if not part.exists():
            records = pa.concat_tables([EVENTS.empty_table(), *_records(sorted(batch.iterdir()))])
            if len(records):
                make_folder(part.parent)
                order = [("ingested_at", "ascending"), ("event_id", "ascending")]
                _write_part(records.sort_by(order), part)
        shutil.rmtree(batch)


def _records(paths: list[Path]) -> list[pa.Table]:
    """The records of these files; one that a fold has taken meanwhile has none here."""
    tables = []
    for path in paths:
        try:
            tables.append(read_file(path))
        except FileNotFoundError:
            continue
    return tables


def _write_part(records: pa.Table, part: Path) -> None:
    partial = part.with_name(f"{part.name}{PARTIAL}")
    pq.write_table(records, partial, coerce_timestamps="us")
    sync(partial)
    os.rename(partial, part)
    sync(part.parent)
