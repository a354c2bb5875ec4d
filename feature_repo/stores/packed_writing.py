"""Rows given to a packed store, as a table or as Feast's messages, to packed rows in chunks.

Shape suffixes: N rows given, U entities among them, U1 their boundaries.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from feature_repo import schema
from feature_repo.errors import InputError
from feature_repo.stores.packed_columns import Column, column_from_arrow
from feature_repo.stores.packed_layout import NO_CREATION
from feature_repo.stores.packed_protos import arrow_from_protos, microseconds
from feature_repo.stores.packed_sequences import SequenceRows, sequence_rows
from feature_repo.stores.packed_view import KEY_VERSION, Keys, PackedView

CHUNK_ENTITIES = 4096
"""Entities packed at a time: bounds the memory of a write."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """N rows of one view, several of one entity allowed; times in microseconds since 1970."""

    view: PackedView
    keys: Keys
    event_us_N: np.ndarray
    created_us_N: np.ndarray
    arrays: Mapping[str, pa.Array]

    def chunks(self) -> Iterator[tuple[Keys, list[bytes] | SequenceRows]]:
        """Entities and their rows, each entity once: its newest row, packed, or in a sequence
        view the windows of all its rows."""
        number_N, users = _numbers_of(self.keys)
        # Stable: of rows with equal times the last given wins.
        order = np.lexsort((self.created_us_N, self.event_us_N, number_N))
        starts_U1 = np.searchsorted(number_N[order], np.arange(users + 1))
        for start in range(0, users, CHUNK_ENTITIES):
            end = min(start + CHUNK_ENTITIES, users)
            newest_U = order[starts_U1[start + 1 : end + 1] - 1]
            keys = _pick_keys(self.keys, newest_U)
            if self.view.length is None:
                yield keys, self._packed(newest_U)
            else:
                rows = order[starts_U1[start] : starts_U1[end]]
                yield keys, self._windows(rows, number_N[rows] - start, end - start)

    def _packed(self, rows: np.ndarray) -> list[bytes]:
        columns = {
            name: _column(self.view, name, _pick(array, rows))
            for name, array in self.arrays.items()
        }
        return self.view.codec.pack(self.event_us_N[rows], self.created_us_N[rows], columns)

    def _windows(self, rows: np.ndarray, user_N: np.ndarray, users: int) -> SequenceRows:
        assert self.view.length is not None
        return sequence_rows(
            self.view.codec,
            self.view.length,
            user_N,
            users,
            self.event_us_N[rows],
            self.created_us_N[rows],
            {
                name: _column(self.view, name, _pick(array, rows))
                for name, array in self.arrays.items()
            },
        )


def batch_from_table(view: PackedView, table: pa.Table) -> Batch:
    """A table of the join key (int64), event_timestamp and all features; see `write_table`."""
    view.int64_template()
    (key,) = view.join_keys
    needed = [key, schema.EVENT_TIMESTAMP, *view.codec.kinds]
    missing = [name for name in needed if name not in table.column_names]
    if missing:
        raise InputError(
            f"view {view.name}: the table lacks the columns {missing}; it has {table.column_names}"
        )
    created = view.created_column
    if created is not None and created in table.column_names:
        created_us_N = _times(view, table, created)
    else:
        created_us_N = np.full(table.num_rows, NO_CREATION)
    arrays = {}
    for name, kind in view.codec.kinds.items():
        array = table[name].combine_chunks()
        if pa.types.is_floating(array.type):
            array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
        elif pa.types.is_null(array.type):
            array = array.cast(kind.arrow)
        arrays[name] = array
    return Batch(
        view=view,
        keys=_integers(view, key, table[key]),
        event_us_N=_times(view, table, schema.EVENT_TIMESTAMP),
        created_us_N=created_us_N,
        arrays=arrays,
    )


def batch_from_protos(
    view: PackedView,
    data: Sequence[tuple[EntityKey, Mapping[str, Value], datetime, datetime | None]],
) -> Batch:
    """Rows as Feast gives them to an online store: key, values, event time, creation time."""
    created = [NO_CREATION if made is None else microseconds(made) for _, _, _, made in data]
    return Batch(
        view=view,
        keys=keys_of(view, [key for key, _, _, _ in data]),
        event_us_N=np.array([microseconds(event) for _, _, event, _ in data], dtype="i8"),
        created_us_N=np.array(created, dtype="i8"),
        arrays={
            name: arrow_from_protos(name, kind, [values.get(name) for _, values, _, _ in data])
            for name, kind in view.codec.kinds.items()
        },
    )


def int64_ids(view: PackedView, values: Sequence[Value]) -> list[int]:
    """The ids that these messages say. Raises InputError for a message of another type."""
    kinds = {value.WhichOneof("val") for value in values}
    if kinds - {"int64_val"}:  # it would read as 0, which is somebody
        raise InputError(
            f"view {view.name}: values of {view.join_keys[0]} came as "
            f"{', '.join(sorted(map(str, kinds)))}, expected int64_val alone"
        )
    return [value.int64_val for value in values]


def keys_of(view: PackedView, entity_keys: Sequence[EntityKey]) -> Keys:
    """Feast's keys: as ids where that is all they are."""
    if view.template is not None:
        return np.array(int64_ids(view, [key.entity_values[0] for key in entity_keys]), dtype="i8")
    return [serialize_entity_key(key, KEY_VERSION) for key in entity_keys]


def _numbers_of(keys: Keys) -> tuple[np.ndarray, int]:
    """Each row's entity as a number from 0 on, and how many entities there are."""
    if isinstance(keys, np.ndarray):
        unique, number_N = np.unique(keys, return_inverse=True)
        return number_N, len(unique)
    numbers: dict[bytes, int] = {}
    number_N = np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype="i8")
    return number_N, len(numbers)


def _pick_keys(keys: Keys, rows: np.ndarray) -> Keys:
    return keys[rows] if isinstance(keys, np.ndarray) else [keys[row] for row in rows.tolist()]


def _pick(array: pa.Array, rows: np.ndarray) -> pa.Array:
    """Those rows; a run of rows is cut out, not copied."""
    first, count = int(rows[0]), len(rows)
    if int(rows[-1]) - first == count - 1 and (np.diff(rows) == 1).all():
        return array.slice(first, count)
    return array.take(pa.array(rows))


def _column(view: PackedView, name: str, array: pa.Array) -> Column:
    kind = view.codec.kinds[name]
    try:
        return column_from_arrow(kind, array)
    except (ValueError, pa.ArrowException) as error:
        raise InputError(
            f"view {view.name}: {name} came as {array.type}, which is no {kind.name}: {error}"
        ) from error


def _integers(view: PackedView, name: str, column: pa.ChunkedArray) -> np.ndarray:
    if column.null_count:
        raise InputError(f"view {view.name}: {column.null_count} rows have no {name}")
    try:
        return column.cast(pa.int64()).to_numpy()
    except pa.ArrowException as error:
        raise InputError(
            f"view {view.name}: {name} came as {column.type}, expected integers: {error}"
        ) from error


def _times(view: PackedView, table: pa.Table, name: str) -> np.ndarray:
    """A timestamp column in microseconds, finer ones cut."""
    column = table[name]
    if not pa.types.is_timestamp(column.type):
        raise InputError(f"view {view.name}: {name} came as {column.type}, expected timestamps")
    return _integers(view, name, column.cast(pa.timestamp("us", column.type.tz), safe=False))
