"""Tells a read that came while an event was on its way from one that is wrong.

An event counts from the moment at which the journal has it; it is online some milliseconds later.
A read in between lacks it, rightly. Such a read is explained if events that became visible within
the grace before it can be left out so that offline gives exactly what was served: then what was
served is a state that the store has been in. Nothing else explains a difference, above all no
event that is missing for longer, none that comes twice, and none that is not visible yet. In a
plain view, such a read shows an earlier row of the grace, or the one before it.
"""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo import schema
from feature_repo.read_log import READ_AT

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView

MEMORY_MB = 1024
"""Of the queries over a source."""
MICROSECOND = timedelta(microseconds=1)


def explained_by_events_in_flight(
    store: "FeatureStore",
    view: "FeatureView",
    served: pa.Table,
    before: pa.Table,
    features: list[str],
    grace: timedelta,
) -> np.ndarray:
    """Which of the reads are explained: bool, one a row of `served`.

    `before` has the offline row of each read as it was `grace` earlier (in a view of sequences
    all of its lists); `features` are those that were served.
    """
    (key,) = view.join_keys
    length = int(view.tags.get(schema.SEQUENCE_LENGTH_TAG, 0))  # 0: no sequences
    rows = _rows_that_came(store, view, served, grace)
    explained = np.zeros(served.num_rows, dtype=bool)
    pairs = zip(served.to_pylist(), before.to_pylist(), strict=True)
    for read, (was, old) in enumerate(pairs):
        came = [
            row
            for row in rows.get(was[key], [])
            if was[READ_AT] - grace < row[schema.EVENT_TIMESTAMP] <= was[READ_AT]
        ]
        if length:
            explained[read] = bool(came) and may_have_been(length, was, old, came, features)
        else:
            explained[read] = any(
                all(state[name] == was[name] for name in features) for state in [old, *came]
            )
    return explained


def may_have_been(
    length: int,
    was: dict[str, Any],
    old: dict[str, Any],
    came: list[dict[str, Any]],
    features: list[str],
) -> bool:
    """Whether a row of the last `length` listens may have been `was` while `came` arrived.

    That is lastN(A u S) for the row A from before the grace (`old`), which stands for all before
    it, and some S of the events that came. Walks through A and all that came, newest first, and
    keeps every number of served places that can have been matched: one of A has to be the next
    place, one that came may be, N places are enough.
    """
    lists = [was[name] for name in features]
    if any(values is None for values in lists):
        return all(values is None for values in lists) and old[features[0]] is None
    places = [*zip(*lists, strict=False)][::-1]
    if not places or any(len(values) != len(places) for values in lists):
        return False
    before = zip(*(old[name] or [] for name in schema.SEQUENCE_COLUMNS), strict=True)
    listens = [(dict(zip(schema.SEQUENCE_COLUMNS, listen, strict=True)), True) for listen in before]
    listens += [(_listen(row), False) for row in came]
    order = (schema.SEQUENCE_TIMESTAMPS, schema.SEQUENCE_EVENT_IDS)
    listens.sort(key=lambda listen: tuple(listen[0][name] for name in order), reverse=True)
    matched = {0}
    for listen, was_there in listens:
        if length in matched:
            break
        values = tuple(listen[name] for name in features)
        with_it = {n + 1 for n in matched if n < len(places) and places[n] == values}
        matched = with_it if was_there else with_it | matched
    return len(places) in matched


def _listen(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the event log as one place of the parallel lists."""
    return {
        schema.SEQUENCE_TRACK_IDS: row[schema.TRACK_ID],
        schema.SEQUENCE_TIMESTAMPS: row["listened_us"],
        schema.SEQUENCE_ACTIONS: row["action"],
        schema.SEQUENCE_EVENT_IDS: row["event_id"],
    }


def _rows_that_came(
    store: "FeatureStore", view: "FeatureView", served: pa.Table, grace: timedelta
) -> dict[int, list[dict[str, Any]]]:
    """Rows of the view's source within the grace before a read, oldest first, by entity."""
    (key,) = view.join_keys
    stamp = view.batch_source.timestamp_field
    reads = pa.table(
        {
            "entity": served[key],
            "until": served[READ_AT],
            "since": pc.subtract(served[READ_AT], pa.scalar(grace, pa.duration("us"))),
        }
    )
    listened = (
        f", epoch_us({schema.LISTENED_AT}) AS listened_us"
        if schema.SEQUENCE_LENGTH_TAG in view.tags
        else ""
    )
    query = f"""
        SELECT *{listened} FROM source AS came WHERE EXISTS (
            SELECT 1 FROM reads WHERE reads.entity = came.{key}
            AND came.{stamp} > reads.since AND came.{stamp} <= reads.until
        ) ORDER BY {stamp}
    """
    table = _query(store, view, query, reads=reads)
    rows: dict[int, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        row[schema.EVENT_TIMESTAMP] = row[stamp]
        rows.setdefault(row[key], []).append(row)
    return rows


def newest_row(store: "FeatureStore", view: "FeatureView") -> datetime | None:
    """Event time of the newest row of the view's source, None if it is empty."""
    query = f"SELECT epoch_us(max({view.batch_source.timestamp_field})) AS us FROM source"
    (newest_us,) = _query(store, view, query)["us"].to_pylist()
    return None if newest_us is None else datetime.fromtimestamp(0, UTC) + newest_us * MICROSECOND


def _query(store: "FeatureStore", view: "FeatureView", query: str, **tables: pa.Table) -> pa.Table:
    """The rows that DuckDB answers, where `source` stands for the view's source."""
    from feature_repo.stores.asof_sources import SessionLimits, Source, explained, session

    source = Source.of(view.batch_source, store.repo_path)
    limits = SessionLimits(memory_mb=MEMORY_MB, threads=1, temp_directory=None)
    with session(limits, [source]) as (connection, _), explained([source]):
        for name, table in tables.items():
            connection.register(name, table)
        query = f"WITH source AS (FROM {source.sql}) {query}"
        return connection.sql(query).to_arrow_table()
