"""Point-in-time joins: what the views said at each entity row's moment, streamed in row order.

Plain views join by DuckDB's ASOF LEFT JOIN, which sorts both sides once instead of pairing every
entity row with every row of its entity; all of them in one query, so that DuckDB's memory limit
holds for the whole. Sequence views are windows of their event log. Entity rows come back once
each, in their order, their own columns untouched.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo import schema
from feature_repo.errors import InputError
from feature_repo.stores.asof_entities import NEVER_US, EntityRows
from feature_repo.stores.asof_log import SortedLog
from feature_repo.stores.asof_sources import (
    SessionLimits,
    Source,
    explained,
    quoted,
    session,
)

BATCH_ROWS = 65_536
BATCH_VALUES = 2_000_000
"""List values of one feature in one batch: 16 MB."""
MOMENT, ROW = "__moment", "__row"


@dataclass(frozen=True, kw_only=True)
class ViewRead:
    """What one view gives to a join. Column names are those of the source, before any mapping."""

    name: str
    source: Source
    keys: tuple[tuple[str, str], ...]
    """(column of the entity rows, column of the source); none for a view without entities."""
    features: tuple[tuple[str, str], ...]
    """(column of the source, or list feature of a sequence view; name in the answer)."""
    timestamp: str
    created: str | None = None
    """Among rows of one entity and moment the newest by this column counts, nulls last."""
    ttl: timedelta | None = None
    """A row older than this at the moment counts as none."""
    length: int | None = None
    """N of a sequence view."""

    @property
    def ttl_us(self) -> int | None:
        return self.ttl // timedelta(microseconds=1) if self.ttl else None


def point_in_time(
    entities: EntityRows, views: Sequence[ViewRead], limits: SessionLimits
) -> Iterator[pa.Table]:
    """The entity rows with the views' features beside them, a part at a time; at least one part.

    Memory: DuckDB's limit, the entity rows, a sequence view's log and one batch.
    """
    plain = [view for view in views if view.length is None]
    sequences = [view for view in views if view.length is not None]
    sources = [view.source for view in views]
    longest = max((view.length or 1 for view in sequences), default=1)
    users = [_user_ids(entities, view) for view in sequences]
    batch_rows = max(1, min(BATCH_ROWS, BATCH_VALUES // longest))
    with ExitStack() as stack:
        connection, folder = stack.enter_context(session(limits, sources))
        _create_entity_table(connection, entities, views)
        logs = []
        for view in sequences:
            where = _wanted_rows(view, entities, quoted(schema.EVENT_TIMESTAMP))
            features = tuple(name for name, _ in view.features)
            log = SortedLog.read(
                connection,
                view.source,
                features,
                where=where,
                folder=folder,
                memory_mb=limits.memory_mb,
            )
            logs.append(log)
        for start, joined in _plain_batches(connection, entities, plain, batch_rows):
            rows = entities.table.slice(start, joined.num_rows)
            columns = {name: rows.column(name) for name in rows.column_names}
            for view in views:
                if view.length is None:
                    for _, name in view.features:
                        columns[name] = joined.column(joined.schema.get_field_index(name))
            for view, log, ids in zip(sequences, logs, users, strict=True):
                columns |= _windows(entities, view, log, ids, start, joined.num_rows)
            names = [*rows.column_names, *(name for view in views for _, name in view.features)]
            yield pa.table({name: columns[name] for name in names})


def _create_entity_table(connection: Any, entities: EntityRows, views: Sequence[ViewRead]) -> None:
    """`entities`: row number, moment, and the key columns that the views join on."""
    names = {entity: view.name for view in views for entity, _ in view.keys}
    columns = {
        ROW: pa.array(np.arange(entities.table.num_rows)),
        MOMENT: pc.cast(entities.moments_us, schema.TIMESTAMP),
        **{name: entities.column(name, view) for name, view in names.items()},
    }
    connection.register("given", pa.table(columns))
    with explained([]):
        connection.execute("CREATE TABLE entities AS FROM given")
    connection.unregister("given")


def _wanted_rows(view: ViewRead, entities: EntityRows, timestamp: str) -> str:
    """SQL: rows of the source that some entity row may see. Leaves out what none can."""
    moments_us = entities.moment_range_us()
    if moments_us is None:
        return "FALSE"
    first_us, last_us = moments_us
    conditions = [f"{timestamp} <= {moment(last_us)}"]
    if view.ttl_us is not None and view.length is None:
        conditions.append(f"{timestamp} >= {moment(first_us - view.ttl_us)}")
    conditions += [
        f"{quoted(column)} IN (SELECT {quoted(entity)} FROM entities)"
        for entity, column in view.keys
    ]
    return " AND ".join(conditions)


def moment(us: int) -> str:
    """A time in microseconds as SQL."""
    return f"make_timestamptz({us}::BIGINT)"


def utc(column: str) -> str:
    """A source's time column as SQL: naive ones are UTC."""
    return f"CAST({quoted(column)} AS TIMESTAMPTZ)"


def _plain_batches(
    connection: Any, entities: EntityRows, views: Sequence[ViewRead], batch_rows: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(first row, features of the rows from there on) of the views that store rows."""
    total = entities.table.num_rows
    if not views or total == 0:
        empty = _empty_features(connection, views)
        for start in range(0, max(total, 1), batch_rows):
            count = min(batch_rows, total - start)
            yield start, empty if total == 0 else _columnless(count)
        return
    selected, joins = [f"e.{ROW}"], []
    for number, view in enumerate(views):
        alias = f"v{number}"
        selected += _selected(view, alias)
        equal = [f"e.{quoted(entity)} = {alias}.{quoted(column)}" for entity, column in view.keys]
        condition = " AND ".join([*equal, f"e.{MOMENT} >= {alias}.{MOMENT}"])
        rows = _newest_of_ties(view, _wanted_rows(view, entities, utc(view.timestamp)))
        joins.append(f"ASOF LEFT JOIN ({rows}) {alias} ON {condition}")
    query = f"SELECT {', '.join(selected)} FROM entities e {' '.join(joins)} ORDER BY e.{ROW}"
    start = 0
    with explained([view.source for view in views]):
        for batch in connection.sql(query).to_arrow_reader(batch_rows):
            rows_found = batch.column(0).to_numpy()
            expected = np.arange(start, start + batch.num_rows)
            if not np.array_equal(rows_found, expected):
                raise RuntimeError(f"the join lost or repeated an entity row near row {start}")
            yield start, batch
            start += batch.num_rows
    if start != total:
        raise RuntimeError(f"the join gave {start} rows for {total} entity rows")


def _selected(view: ViewRead, alias: str) -> list[str]:
    """The view's features as SQL. Expired rows count as none: ts + ttl < moment."""
    ttl = f"to_microseconds({view.ttl_us}::BIGINT)"
    fresh = f"{alias}.{MOMENT} + {ttl} >= e.{MOMENT}"
    return [
        (
            f"CASE WHEN {fresh} THEN {alias}.{quoted(column)} END AS {quoted(name)}"
            if view.ttl_us is not None
            else f"{alias}.{quoted(column)} AS {quoted(name)}"
        )
        for column, name in view.features
    ]


def _newest_of_ties(view: ViewRead, where: str) -> str:
    """The view's rows as SQL, one for each entity and moment where `created` tells them apart."""
    keys = [quoted(column) for _, column in view.keys]
    features = dict.fromkeys(quoted(column) for column, _ in view.features)
    columns = ", ".join([*keys, *(name for name in features if name not in keys)])
    stamp = f"{utc(view.timestamp)} AS {MOMENT}"
    newest = ""
    if view.created:
        same = ", ".join([*keys, utc(view.timestamp)])
        newest = f"""QUALIFY row_number() OVER (PARTITION BY {same}
            ORDER BY {quoted(view.created)} DESC NULLS LAST) = 1"""
    return f"SELECT {columns}, {stamp} FROM {view.source.sql} WHERE {where} {newest}"


def _empty_features(connection: Any, views: Sequence[ViewRead]) -> pa.RecordBatch:
    """No rows of the plain views' features, in their types."""
    columns: dict[str, pa.Array] = {}
    for view in views:
        with explained([view.source]):
            found = connection.sql(f"SELECT * FROM {view.source.sql} LIMIT 0").to_arrow_table()
        for column, name in view.features:
            columns[name] = pa.array([], type=found.schema.field(column).type)
    return pa.RecordBatch.from_pydict(columns) if columns else _columnless(0)


def _columnless(rows: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({ROW: pa.nulls(rows)})


def _user_ids(entities: EntityRows, view: ViewRead) -> pa.Array:
    """The entity rows' users as int64."""
    ((entity, _),) = view.keys
    column = entities.column(entity, view.name)
    try:
        return pc.cast(column, pa.int64())
    except pa.ArrowException as error:
        raise InputError(
            f"view {view.name} joins on int64 ids; {entity} of the entity rows is {column.type}: "
            f"{error}"
        ) from error


def _windows(
    entities: EntityRows, view: ViewRead, log: SortedLog, users: pa.Array, start: int, count: int
) -> dict[str, pa.Array]:
    """List columns of one sequence view for the entity rows [start, start + count)."""
    assert view.length is not None
    ids, moments = users.slice(start, count), entities.moments_us.slice(start, count)
    # A row without user or moment is answered as from before the first event: null.
    nobody = pc.or_(pc.is_null(ids), pc.is_null(moments)).to_numpy(zero_copy_only=False)
    users_Q = ids.fill_null(0).to_numpy()
    moments_us_Q = np.where(nobody, NEVER_US, moments.fill_null(0).to_numpy())
    if view.ttl_us is not None:
        seen_us_Q = log.index.seen_us(users_Q, moments_us_Q)
        moments_us_Q = np.where(seen_us_Q + view.ttl_us < moments_us_Q, NEVER_US, moments_us_Q)
    windows = log.index.last(users_Q, moments_us_Q, view.length)
    lists = log.lists(windows, tuple(name for name, _ in view.features))
    return {name: array for (_, name), array in zip(view.features, lists, strict=True)}
