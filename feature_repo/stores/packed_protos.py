"""Feast's own form of values, protobuf messages, to and from columns: its row interface.

Feast hands rows to `online_write_batch` and takes rows from `online_read` as messages, one a
value. This is the slow door, kept for every plain Feast caller; columns are the fast one.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
from feast.protos.feast.types import Value_pb2
from feast.protos.feast.types.Value_pb2 import Value

from feature_repo.errors import InputError
from feature_repo.stores.packed_columns import Column, Kind

_LISTS = {
    "INT32_LIST": Value_pb2.Int32List,
    "INT64_LIST": Value_pb2.Int64List,
    "FLOAT_LIST": Value_pb2.FloatList,
    "DOUBLE_LIST": Value_pb2.DoubleList,
    "BOOL_LIST": Value_pb2.BoolList,
    "UNIX_TIMESTAMP_LIST": Value_pb2.Int64List,
    "STRING_LIST": Value_pb2.StringList,
    "BYTES_LIST": Value_pb2.BytesList,
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def arrow_from_protos(name: str, kind: Kind, values: Sequence[Value | None]) -> pa.Array:
    """The messages of one feature as Arrow; an unset message, or none at all, is a null.

    Raises InputError for a message of another type than the view says.
    """
    attribute = f"{kind.name.lower()}_val"
    out: list[Any] = []
    for value in values:
        which = None if value is None else value.WhichOneof("val")
        if which is None:
            out.append(None)
        elif which != attribute:
            raise InputError(f"feature {name} came as {which}, but its view says {attribute}")
        else:
            inner = getattr(value, attribute)
            out.append(list(inner.val) if kind.is_list else inner)
    return pa.array(out, type=kind.arrow)


def protos_from_column(column: Column) -> list[Value]:
    """One message a row; an unset one for null."""
    attribute = f"{column.kind.name.lower()}_val"
    values = column.stored_values()
    if not column.kind.is_list:
        return [Value() if v is None else Value(**{attribute: v}) for v in values]
    message = _LISTS[column.kind.name]
    return [Value() if v is None else Value(**{attribute: message(val=v)}) for v in values]


def rows_of_protos(columns: Mapping[str, Column]) -> list[dict[str, Value]]:
    """Row by row: feature name -> message."""
    if not columns:
        return []
    names = list(columns)
    by_feature = [protos_from_column(column) for column in columns.values()]
    return [dict(zip(names, row, strict=True)) for row in zip(*by_feature, strict=True)]


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970; a moment without a zone is UTC, as everywhere in Feast."""
    aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return (aware - _EPOCH) // timedelta(microseconds=1)


def moment(microseconds_since: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds_since)
