"""Feast's own form of values, protobuf messages, to and from columns: its row interface.

Feast hands rows to `online_write_batch` and takes rows from `online_read` as messages, one a
value. This is the slow door, kept for every plain Feast caller; columns are the fast one.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
from feast.protos.feast.types.Value_pb2 import RepeatedValue, Value

from feature_repo.errors import InputError
from feature_repo.stores.packed_columns import Column, Kind

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


def add_messages(messages: Any, kind: Kind, values: Iterable[Any]) -> None:
    """Appends a message a value (as `Column.stored_values` gives them), an unset one for null.

    `messages` is a repeated field of Value. Each is filled where it lies: protobuf copies a message
    that is made first and appended then, by way of its bytes, at every level of nesting.
    """
    attribute, add = f"{kind.name.lower()}_val", messages.add
    for value in values:
        message = add()
        if value is None:
            continue
        if not kind.is_list:
            setattr(message, attribute, value)
        elif value:
            getattr(message, attribute).val.extend(value)
        else:
            getattr(message, attribute).SetInParent()  # an empty list is not a null


def rows_of_protos(columns: Mapping[str, Column]) -> list[dict[str, Value]]:
    """Row by row: feature name -> message."""
    if not columns:
        return []
    names = list(columns)
    by_feature = []
    for column in columns.values():
        holder = RepeatedValue()
        add_messages(holder.val, column.kind, column.stored_values())
        by_feature.append(holder.val)
    return [dict(zip(names, row, strict=True)) for row in zip(*by_feature, strict=True)]


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970; a moment without a zone is UTC, as everywhere in Feast."""
    aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return (aware - _EPOCH) // timedelta(microseconds=1)


def moment(microseconds_since: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds_since)
