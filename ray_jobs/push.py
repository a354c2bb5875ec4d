"""Events from a file or standard input into the running feature store.

    crescendo push --path events.jsonl      also .csv, .parquet; without --path: JSON lines from
                                            standard input

A row has the contract's columns (feature_repo.live_events.LiveEvent): event_id, user_id, track_id,
event_timestamp with its time zone, action; played_ratio and session_id may be missing. A column
`ingested_at` is left out, because the journal says when an event came. Writes the journal and the
users' online rows, as `POST /v1/events` does; a file may be pushed again, to no effect.
"""

import csv
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.parquet

from feature_repo import schema
from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from ray_jobs.progress import step

if TYPE_CHECKING:  # importing Feast takes seconds: only when there is something to push
    from pydantic import ValidationError

    from feature_repo.live_events import LiveEvent, LiveEvents
    from feature_repo.online import OnlineReader

EXAMPLES = 5
READ_BACK_S = 5.0
"""A row that does not show its listens after so long never will: another writer replaced it."""
VIEW = schema.USER_SEQUENCE
READ_BACK = (schema.SEQUENCE_TIMESTAMPS, schema.SEQUENCE_EVENT_IDS)
ARRIVAL = "ingested_at"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SUFFIXES = (".jsonl", ".ndjson", ".csv", ".parquet")


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    path: Path | None = None
    """File of events; None reads JSON lines from standard input."""
    batch: int = 200
    """Events that share a sync to disk and a round trip."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise InputError(f"batch must be at least 1, got {self.batch}")
        if self.path is not None and self.path.suffix not in SUFFIXES:
            raise InputError(f"path is {self.path}; expected a file {', '.join(SUFFIXES)}")
        if self.path is not None and not self.path.is_file():
            raise InputError(f"path {self.path} is no file; correct --path")


def push(workspace: Workspace, options: PushOptions) -> dict[str, Any]:
    """Returns events (read), accepted, pending, rejected, rejected_by_reason, rejected_examples.

    And `visible_after_ms`: p50 and p95, over the accepted listens, of the time from handing them
    over until a read of the user's row shows them; null where there was none. `behind`: the online
    store did not answer at the end, so what is pending waits for the next push or server.
    """
    with step("import feast"):
        from feature_repo.live_events import LiveEvents
        from feature_repo.online import OnlineReader
        from feature_repo.store import open_store
    store = open_store(workspace)
    source = str(options.path or "standard input")
    with step("push", source=source), closing(LiveEvents(workspace, store)) as live:
        pushed = _Pushed(live, OnlineReader(store, [f"{VIEW}:{name}" for name in READ_BACK]))
        rows = iter(_rows(options.path))
        while batch := list(islice(rows, options.batch)):
            pushed.add(batch)
        behind = not live.online.catch_up()
    return {**pushed.answer(), "behind": behind}


class _Pushed:
    """Takes batches and counts what became of them."""

    def __init__(self, live: "LiveEvents", reader: "OnlineReader") -> None:
        self._live = live
        self._reader = reader
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._examples: list[dict[str, Any]] = []
        self._visible_after_ms: list[float] = []

    def add(self, batch: list["_Row"]) -> None:
        events = []
        for row in batch:
            if row.event is None:
                self._reject(row.number, row.problem)
            else:
                events.append(row)
        started = time.perf_counter()
        receipts = self._live.take([row.event for row in events if row.event is not None])
        seen: list[LiveEvent] = []
        for row, receipt in zip(events, receipts, strict=True):
            if receipt.status == "rejected":
                self._reject(row.number, receipt.reason or "")
            else:
                self._counts[receipt.status] += 1
            if row.event is None or row.event.action not in schema.LISTEN_ACTIONS:
                continue
            if receipt.status == "accepted":
                seen.append(row.event)
        if seen and _shows(self._reader, seen, until=started + READ_BACK_S):
            elapsed_ms = (time.perf_counter() - started) * 1000
            self._visible_after_ms += [elapsed_ms] * len(seen)

    def _reject(self, number: int, problem: str) -> None:
        self._counts["rejected"] += 1
        self._reasons[problem] += 1
        if len(self._examples) < EXAMPLES:
            self._examples.append({"row": number, "reason": problem})

    def answer(self) -> dict[str, Any]:
        after_ms = self._visible_after_ms
        return {
            "events": self._counts.total(),
            **{name: self._counts[name] for name in ("accepted", "pending", "rejected")},
            "rejected_by_reason": dict(self._reasons.most_common()),
            "rejected_examples": self._examples,
            "visible_after_ms": {
                f"p{percent}": round(float(np.percentile(after_ms, percent)), 2)
                if after_ms
                else None
                for percent in (50, 95)
            },
        }


def _shows(reader: "OnlineReader", listens: list["LiveEvent"], until: float) -> bool:
    """Whether the users' rows show these listens before `until` (perf_counter seconds).

    A listen that is older than the oldest of its user's row has made room for newer ones.
    """
    users = np.unique([event.user_id for event in listens])
    while time.perf_counter() < until:
        columns = reader.read(users)
        times, ids = (columns[f"{VIEW}:{name}"].to_pylist() for name in READ_BACK)
        rows = {
            user: list(zip(times[n] or [], ids[n] or [], strict=True))
            for n, user in enumerate(users.tolist())
        }
        if all(_is_in(rows[event.user_id], event) for event in listens):
            return True
    return False


def _is_in(row: list[tuple[int, int]], event: "LiveEvent") -> bool:
    if any(event_id == event.event_id for _, event_id in row):
        return True
    happened_us = (event.event_timestamp - EPOCH) // timedelta(microseconds=1)
    return bool(row) and (happened_us, event.event_id) < row[0]


class _Row(NamedTuple):
    number: int
    """Counted from 1, the header of a CSV file not among them."""
    event: "LiveEvent | None"
    problem: str


def _rows(path: Path | None) -> Iterator[_Row]:
    """Every row of the source, read as an event or with the reason why it is none."""
    if path is None:
        return _parsed_lines(sys.stdin.buffer)
    if path.suffix == ".parquet":
        return _parsed_rows(_parquet_rows(path), strings=False)
    if path.suffix == ".csv":
        return _parsed_rows(_csv_rows(path), strings=True)
    return _parsed_lines(_lines(path))


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        yield from stream


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
        yield from batch.to_pylist()


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream, restkey="cells beyond the header"):
            yield {name: cell for name, cell in row.items() if cell not in ("", None)}


def _parsed_lines(lines: Iterable[bytes]) -> Iterator[_Row]:
    from pydantic import ValidationError

    from feature_repo.live_events import LiveEvent

    for number, line in enumerate((line for line in lines if line.strip()), start=1):
        try:
            yield _Row(number, LiveEvent.model_validate_json(_without_arrival(line)), "")
        except ValidationError as error:
            yield _Row(number, None, _problem(error))


def _parsed_rows(rows: Iterable[dict[str, Any]], *, strings: bool) -> Iterator[_Row]:
    from pydantic import ValidationError

    from feature_repo.live_events import LiveEvent

    for number, row in enumerate(rows, start=1):
        row.pop(ARRIVAL, None)
        try:
            event = (
                LiveEvent.model_validate_strings(row) if strings else LiveEvent.model_validate(row)
            )
            yield _Row(number, event, "")
        except ValidationError as error:
            yield _Row(number, None, _problem(error))


def _without_arrival(line: bytes) -> bytes:
    if ARRIVAL.encode() not in line:
        return line
    try:
        row = json.loads(line)
    except ValueError:
        return line
    if isinstance(row, dict):
        row.pop(ARRIVAL, None)
    return json.dumps(row).encode()


def _problem(error: "ValidationError") -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]
