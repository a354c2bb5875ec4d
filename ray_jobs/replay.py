"""Replays a listening log through the real-time path and audits every read on the way.

    crescendo replay [--reads 200000] [--stores redis://HOST:PORT/DB]

The log of the workspace becomes a stream with late, repeated and tied events
(`ray_jobs/replay_stream.py`). In a workspace of its own, temporary unless a folder is given, the
stream is pushed at virtual time by the code that takes live events, and users' rows are read
between the pushes by the code that serves them. Then the nightly job builds the event log from the
journal, and `crescendo audit` recomputes every read from it. None may differ: nothing is in flight
between two pushes, so the grace is zero.

The answer has what was pushed and read, the audit's report and `passed`.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import schema
from feature_repo.artifacts import parquet_files
from feature_repo.errors import InputError
from feature_repo.event_journal import journal_folder
from feature_repo.journal_files import JournalWriter, to_lines
from feature_repo.read_log import ReadLog, ReadLogOptions
from feature_repo.workspace import Workspace
from ray_jobs.audit import AuditOptions, audit
from ray_jobs.progress import step, track
from ray_jobs.replay_stream import Push, StreamOptions, plan_stream, read_moments
from ray_jobs.sequences import SequenceOptions, sequences

if TYPE_CHECKING:
    from feature_repo.stores.packed_columns import Columns

Take = Callable[[Push], None]
"""Takes the events of a push at its clock, as the service does."""
Read = Callable[[np.ndarray], "Columns"]
"""Reads the rows of these users (int64), as the ranker does."""


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    stream: StreamOptions = field(default_factory=StreamOptions)
    reads: int = 200_000
    """Rows read and audited."""
    events: int | None = None
    """The first events of the log only; all when not given."""
    length: int = schema.SEQUENCE_LENGTH
    """Listens kept per user."""
    stores: str | None = None
    """`redis://HOST:PORT/DB`: rows go under a project of their own, which is emptied at the end.
    Embedded SQLite when not given."""
    folder: Path | None = None
    """Empty or missing folder to work in; a temporary one when not given."""

    def __post_init__(self) -> None:
        for name in ("reads", "length", "events"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; expected at least 1")
        if self.stores is not None and not self.stores.startswith(("redis://", "rediss://")):
            raise InputError(f"stores is {self.stores!r}; expected redis://HOST:PORT/DB")
        if self.stores is not None and "?" in self.stores:
            raise InputError(f"stores is {self.stores!r}; a replay has a project of its own")
        if self.folder is not None and self.folder.exists() and any(self.folder.iterdir()):
            raise InputError(f"folder {self.folder} is not empty; give another one")


def replay(workspace: Workspace, options: ReplayOptions) -> dict[str, Any]:
    """Returns `passed`, events, what was planted, pushes, reads, `seconds` of each step, and the
    audit's report of `user_sequence`."""
    workspace.require(workspace.events, "ingest --source KIND --path FOLDER")
    log = pa.concat_tables(
        pq.read_table(part, schema=schema.EVENTS) for part in parquet_files(workspace.events)
    )
    if options.events is not None:
        first = log.sort_by([("event_timestamp", "ascending"), ("event_id", "ascending")])
        log = first.slice(0, options.events)
    if len(log) == 0:
        raise InputError(f"{workspace.events} holds no event; expected at least 1")
    pushes, planted = plan_stream(log, options.stream)
    users = np.unique(log["user_id"].to_numpy())
    with _working_folder(options) as folder, replayed_service(folder, options) as service:
        started = time.monotonic()
        with step("replay", pushes=len(pushes), reads=options.reads):
            stream(service, pushes, users, options)
        streamed = time.monotonic()
        sequences(service.workspace, SequenceOptions(length=options.length))
        built = time.monotonic()
        report = audit(service.workspace, audit_options())
        audited = time.monotonic()
    return {
        "passed": report["passed"],
        "events": len(log),
        "planted": vars(planted),
        "pushes": len(pushes),
        "reads": options.reads,
        "seconds": {
            "stream": round(streamed - started, 1),
            "sequences": round(built - streamed, 1),
            "audit": round(audited - built, 1),
        },
        "audit": report["views"][schema.USER_SEQUENCE],
    }


def audit_options() -> AuditOptions:
    """All reads, those too that come after the newest event of the log, and no grace."""
    return AuditOptions(view=schema.USER_SEQUENCE, grace_s=0.0, until=datetime.now(UTC))


@dataclass(kw_only=True)
class ReplayedService:
    """A workspace with an empty online store, and the two ways in which a service uses it."""

    workspace: Workspace
    journal: Take
    """Makes the events safe and nothing else: the first half of `take`."""
    take: Take
    read: Read


def stream(
    service: ReplayedService, pushes: list[Push], users: np.ndarray, options: ReplayOptions
) -> None:
    """Pushes everything and reads in between; the reads go into the service's read log.

    A user that the log does not have is among those read: nothing is what it must get.
    """
    stranger = np.append(users, users.max() + 1)
    log_options = ReadLogOptions(share=1.0, max_buffered_reads=10 * options.reads)
    read_log = ReadLog(service.workspace, schema.USER_SEQUENCE, schema.USER_ID, log_options)
    moments = read_moments(pushes, options.reads, stranger, options.stream.seed)
    for place, moments_us, ids in track(moments, "replay", total=len(pushes), unit="pushes"):
        service.take(pushes[place])
        if len(ids) == 0:
            continue
        # Nothing changes before the next push: one call reads for all moments until then.
        columns = service.read(ids)
        read_log.record(columns, moments_us)
    read_log.close()
    if read_log.dropped:
        raise RuntimeError(f"the read log dropped {read_log.dropped} of {options.reads} reads")


@contextmanager
def replayed_service(folder: Path, options: ReplayOptions) -> Iterator[ReplayedService]:
    """A published, empty workspace in `folder`. Its online rows are removed at the end."""
    with step("import feast"):
        from feature_repo import feature_definitions as definitions
        from feature_repo.live_rows import OnlineRows
        from feature_repo.online import OnlineReader, packed_store
        from feature_repo.published_stores import set_stores
        from feature_repo.store import apply, open_store
    workspace = Workspace(folder)
    if options.stores is not None:
        set_stores(workspace, f"{options.stores}?project=replay_{uuid4().hex[:12]}")
    workspace.events.mkdir(parents=True)
    pq.write_table(schema.EVENTS.empty_table(), workspace.events / "part-0.parquet")
    sequences(workspace, SequenceOptions(length=options.length))
    store = open_store(workspace, publishing=True)
    apply(
        store,
        [
            definitions.user,
            definitions.user_sequence_view(workspace.root / "features", options.length),
        ],
    )
    view = store.get_feature_view(schema.USER_SEQUENCE)
    reader = OnlineReader(store, [f"{view.name}:{name}" for name in schema.SEQUENCE_COLUMNS])
    journal, online = JournalWriter(journal_folder(workspace)), OnlineRows(workspace, store)

    def keep(push: Push) -> None:
        journal.append(to_lines(_received(push)))

    # The two halves of LiveEvents.take, which is given events by clients and so has the clock of
    # this machine.
    def take(push: Push) -> None:
        keep(push)
        if not online.merge(_received(push)):
            raise RuntimeError("the online store does not answer; a replay needs it all the time")

    try:
        yield ReplayedService(workspace=workspace, journal=keep, take=take, read=reader.read)
    finally:
        online.close()
        packed_store(store).teardown(store.config, [view], [])


def _received(push: Push) -> pa.Table:
    """The push as schema.EVENTS, received at its clock."""
    clock = pa.repeat(pa.scalar(push.clock_us).cast(schema.TIMESTAMP), len(push.events))
    events = push.events.append_column("ingested_at", clock)
    return events.select(schema.EVENTS.names).cast(schema.EVENTS)


@contextmanager
def _working_folder(options: ReplayOptions) -> Iterator[Path]:
    if options.folder is not None:
        yield options.folder.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="replay-") as folder:
        yield Path(folder)
