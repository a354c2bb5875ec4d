"""Source tables -> contract tables: numbered ids, accepted rows, rejected rows with reasons.

`write_contract_tables(workspace, source_tables, ...)` is what every adapter ends in. It writes,
as one folder that is whole or absent (`<workspace>/tables`, an earlier one is replaced):

- `tracks/part-*.parquet` by track_id, `events/part-*.parquet` by event_timestamp and event_id
- `rejected/{tracks,events}.parquet`: the reason, and the source's row as JSON
- `id_maps/{users,tracks}.parquet`: source_id, id, where the source's ids are strings. Numbers
  stay the same when the same source is ingested again, and new ids get numbers after them.
- `manifest.json`: counts, source, options, sha256 of each file

When too many rows are rejected nothing of this changes, and the rejected rows go to
`<workspace>/reports/rejected_rows`.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.artifacts import Manifest, write_artifact
from feature_repo.errors import InputError
from feature_repo.schema import EVENTS, TRACKS
from feature_repo.workspace import Workspace
from ray_jobs.contract_checks import Verdict, check_events, check_tracks, comparable
from ray_jobs.contract_ids import NOTHING_KNOWN, TABLES, EventOrder, known_ids, numbered
from ray_jobs.forget_deliveries import without_forgotten
from ray_jobs.progress import step

REJECTED_ROWS = "rejected_rows"
ROWS_PER_FILE = 250_000
ROWS_PER_GROUP = 16_384
"""Whoever streams a file holds a row group of it: 25 MB of 384-dim vectors."""
EXAMPLE_CHARACTERS = 300
REASONS_SHOWN = 3
REQUIRED = {
    "tracks": ("track_id", "title"),
    "events": ("user_id", "track_id", "event_timestamp", "action"),
}


@dataclass(frozen=True, kw_only=True)
class SourceTables:
    """What a source holds, under the contract's column names, not yet checked.

    Ids may be integers or strings; `event_id` may be null or absent. Times may be ISO text
    (without an offset: UTC), numbers may be text. Columns that the contract lacks are shown in
    rejected rows and not kept.
    """

    tracks: pa.Table
    events: pa.Table
    expected_rejections: frozenset[str] = frozenset()
    """Reasons that are a known property of the source: not counted against the fatal share."""

    def __post_init__(self) -> None:
        for table, required in REQUIRED.items():
            found = getattr(self, table).column_names
            missing = [name for name in required if name not in found]
            if missing:
                raise InputError(f"{table} lack the columns {missing}; they have {found}")


def write_contract_tables(
    workspace: Workspace,
    source_tables: SourceTables,
    *,
    source: str,
    max_rejected_share: float,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Checks, numbers and writes. `options`: more for the manifest to record.

    Returns tracks, events, users, rejected (of both tables), rejected_by_reason and rows_in (of
    each table). In each table rows in = rows out + rows rejected.
    """
    remembered = without_forgotten(workspace, source_tables.events)
    source_tables = replace(source_tables, events=remembered)
    recorded = {"source": source, "max_rejected_share": max_rejected_share, **(options or {})}
    with step("ingest: check rows", source=source):
        tracks = check_tracks(source_tables.tracks)
        events = check_events(source_tables.events, tracks)
        known = known_ids(workspace, source)
        track_ids, track_map = numbered(tracks.accepted_column("track_id"), known["tracks"])
        log, user_map = _numbered_log(events, tracks, track_ids, known["users"])
        events_table = _ordered_events(events, log)
        tracks_table = _tracks_table(tracks, track_ids)
    verdicts = {"tracks": tracks, "events": events}
    _refuse_too_many(workspace, verdicts, source_tables.expected_rejections, recorded)

    result = {
        "tracks": len(tracks_table),
        "events": len(events_table),
        "users": pc.count_distinct(events_table["user_id"]).as_py(),
        "rejected": tracks.rejected + events.rejected,
        "rejected_by_reason": {name: v.rejected_by_reason() for name, v in verdicts.items()},
        "rows_in": {name: len(v.source) for name, v in verdicts.items()},
    }
    folder = workspace.tracks.parent
    manifest = Manifest(
        kind=TABLES,
        id=folder.name,
        options=recorded,
        rows={name: result[name] for name in ("tracks", "events", "users", "rejected")},
        info={
            "rows_in": result["rows_in"],
            "rejected_by_reason": result["rejected_by_reason"],
            "expected_rejections": sorted(source_tables.expected_rejections),
        },
    )
    with step("ingest: write tables", **manifest.rows), write_artifact(folder, manifest) as partial:
        _write_parts(tracks_table, partial / workspace.tracks.name)
        _write_parts(events_table, partial / workspace.events.name)
        _write_rejected(verdicts, partial / workspace.rejected.name)
        (partial / workspace.id_maps.name).mkdir()
        for name, id_map in (("tracks", track_map), ("users", user_map)):
            if id_map is not None:
                pq.write_table(id_map, partial / workspace.id_maps.name / f"{name}.parquet")
    return result


def _numbered_log(
    events: Verdict, tracks: Verdict, numbers: pa.ChunkedArray, known_users: pa.Table
) -> tuple[pa.Table, pa.Table | None]:
    """The accepted events with numbered ids (`event_id` still the source's), and the user map."""
    listened, catalogue = comparable(
        events.accepted_column("track_id"), tracks.accepted_column("track_id")
    )
    users, user_map = numbered(events.accepted_column("user_id"), known_users)
    # A session's id only has to tell sessions apart, so its map is not kept.
    sessions, _ = numbered(events.accepted_column("session_id"), NOTHING_KNOWN)
    columns = {name: events.accepted_column(name) for name in EVENTS.names}
    columns["user_id"] = users
    columns["track_id"] = numbers.take(pc.index_in(listened, catalogue.combine_chunks()))
    columns["session_id"] = sessions
    return pa.table(columns), user_map


def _ordered_events(events: Verdict, log: pa.Table) -> pa.Table:
    """The events table; of two rows with one event_id the earlier in time stays."""
    order = EventOrder(log)
    repeated = order.repeated(log["event_id"])
    if repeated.any():
        events.reject_accepted(repeated, "duplicate_event_id")
        log = log.filter(pa.array(~repeated))
        order = EventOrder(log)
    event_ids = order.event_ids(log["event_id"])
    log = log.set_column(0, "event_id", pa.array(event_ids))
    return log.take(order.by_time(event_ids)).cast(EVENTS)


def _tracks_table(tracks: Verdict, numbers: pa.ChunkedArray) -> pa.Table:
    columns = {name: tracks.accepted_column(name) for name in tracks.columns}
    columns["track_id"] = numbers
    vectors = [pa.field(n, c.type) for n, c in columns.items() if n not in TRACKS.names]
    schema = pa.schema([*TRACKS, *vectors])
    table = pa.table([columns[name] for name in schema.names], schema=schema)
    return table.take(pc.sort_indices(numbers))


def _refuse_too_many(
    workspace: Workspace,
    verdicts: dict[str, Verdict],
    expected: frozenset[str],
    recorded: dict[str, Any],
) -> None:
    """Raises where a table's share of unexpectedly rejected rows is too high, or nothing is left.

    Expected rejections count neither as rejected nor as rows: they say nothing about the rest.
    A catalogue without any event is fine: its tracks can be embedded before anybody listens.
    """
    for name, verdict in verdicts.items():
        counts = {r: n for r, n in verdict.rejected_by_reason().items() if r not in expected}
        rejected = sum(counts.values())
        accepted = len(verdict.source) - verdict.rejected
        if not accepted and (name == "tracks" or len(verdict.source)):
            _refuse(workspace, verdicts, name, counts, "none is left", recorded)
        if rejected > recorded["max_rejected_share"] * (accepted + rejected):
            share = rejected / (accepted + rejected)
            why = f"{share:.1%} of those expected to be whole: more than max_rejected_share "
            why += f"{recorded['max_rejected_share']:g} allows"
            _refuse(workspace, verdicts, name, counts, why, recorded)


def _refuse(
    workspace: Workspace,
    verdicts: dict[str, Verdict],
    name: str,
    unexpected: dict[str, int],
    why: str,
    recorded: dict[str, Any],
) -> NoReturn:
    """Writes the rejected rows where they can be looked at, and raises."""
    report = workspace.reports / REJECTED_ROWS
    manifest = Manifest(kind=REJECTED_ROWS, id=report.name, options=recorded)
    with write_artifact(report, manifest) as partial:
        _write_rejected(verdicts, partial)
    verdict = verdicts[name]
    counts = unexpected or verdict.rejected_by_reason()
    shown = ", ".join(f"{r} {n:,}" for r, n in list(counts.items())[:REASONS_SHOWN])
    if counts:
        rows = verdict.rejected_rows()
        top = next(iter(counts))
        example = rows["row"].filter(pc.equal(rows["reason"], top))[0].as_py()
        shown += f"; for example {top}: {example[:EXAMPLE_CHARACTERS]}"
    raise InputError(
        f"{recorded['source']}: {verdict.rejected:,} of {len(verdict.source):,} {name} break the "
        f"data contract, {why}: {shown or 'there were no rows'}; all of them are in "
        f"{report / name}.parquet; correct the source, or raise --max-rejected-share"
    )


def _write_rejected(verdicts: dict[str, Verdict], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, verdict in verdicts.items():
        pq.write_table(verdict.rejected_rows(), folder / f"{name}.parquet")


def _write_parts(table: pa.Table, folder: Path) -> None:
    """Files of a size that Ray Data reads in parallel; one empty file for an empty table."""
    folder.mkdir()
    for part, start in enumerate(range(0, max(len(table), 1), ROWS_PER_FILE)):
        path = folder / f"part-{part:05d}.parquet"
        pq.write_table(
            table.slice(start, ROWS_PER_FILE),
            path,
            coerce_timestamps="us",
            row_group_size=ROWS_PER_GROUP,
        )
