"""What a packed store needs to know of one Feast view: its fields, its keys, its place.

Keys are Feast's own serialized entity keys. Those of a view with one int64 join key differ in
eight bytes only, so the keys of many entities are one array with those bytes filled in.

Shape suffixes: N entities, B bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
from feast import RepoConfig
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import compute_versioned_name
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.value_type import ValueType

from feature_repo import schema
from feature_repo.errors import InputError
from feature_repo.stores.packed_one_row import OneRow
from feature_repo.stores.packed_row import RowCodec

KEY_VERSION = 3
"""The serialization of entity keys that Feast 0.67 writes; older ones are refused."""

Keys = np.ndarray | list[bytes]
"""Entities of a call: int64 ids, or Feast's serialized entity keys."""


class KeyTemplate:
    """Entity keys of one int64 join key, between the bytes `before` and `after`."""

    def __init__(self, join_key: str, *, before: bytes = b"", after: bytes = b"") -> None:
        key = serialize_entity_key(
            EntityKey(join_keys=[join_key], entity_values=[Value(int64_val=0)]), KEY_VERSION
        )
        self.key_bytes = len(key)
        self._row = np.frombuffer(before + key + after, dtype="u1")
        self._at = len(before) + len(key) - 8  # the value comes last, little endian

    def matrix(self, ids_N: np.ndarray) -> np.ndarray:
        """The keys of these ids: (N, B) bytes."""
        keys_NB = np.empty((len(ids_N), len(self._row)), dtype="u1")
        keys_NB[:] = self._row
        ids = np.ascontiguousarray(ids_N, dtype="<i8")
        keys_NB[:, self._at : self._at + 8] = ids.view("u1").reshape(-1, 8)
        return keys_NB

    def keys(self, ids_N: np.ndarray) -> list[bytes]:
        data, size = self.matrix(ids_N).tobytes(), len(self._row)
        return [data[at : at + size] for at in range(0, len(data), size)]

    def ids(self, keys: Sequence[bytes]) -> np.ndarray:
        """The ids in those keys that are of this template: (N,) int64.

        Others lie under the same view if it had another join key before; nothing reads them.
        """
        size = len(self._row)
        keys = [key for key in keys if len(key) == size]
        keys_NB = np.frombuffer(b"".join(keys), dtype="u1").reshape(len(keys), size)
        same_NB = keys_NB == self._row
        same_NB[:, self._at : self._at + 8] = True
        ids_NB = keys_NB[same_NB.all(axis=1), self._at : self._at + 8]
        return np.ascontiguousarray(ids_NB).view("<i8")[:, 0]


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedView:
    """One Feast view as a packed store sees it.

    `name` carries Feast's version suffix; `tag` is a short name of (project, name); `template`
    is None unless the view has one int64 join key; `length` is the N of a sequence view.
    """

    project: str
    name: str
    codec: RowCodec
    join_keys: tuple[str, ...]
    created_column: str | None
    template: KeyTemplate | None
    length: int | None

    @cached_property
    def one_row(self) -> OneRow:
        """Reads its rows one at a time."""
        return OneRow(self.codec.layout)

    @cached_property
    def tag(self) -> str:
        full = f"{self.project}\0{self.name}".encode()
        return blake2b(full, digest_size=6).hexdigest()

    def int64_template(self) -> KeyTemplate:
        """Its keys as arrays. Raises InputError where they are no single int64."""
        if self.template is None:
            raise InputError(
                f"view {self.name} has join keys {list(self.join_keys)}; columns are read and "
                "written for one Int64 join key, use get_online_features for others"
            )
        return self.template


def packed_view(config: RepoConfig, view: Any) -> PackedView:
    """The view as `config`'s store keeps it.

    Raises InputError for a feature type that packed rows do not hold, for a sequence view that
    has other fields than schema.SEQUENCE_COLUMNS, and for old entity keys.
    """
    if config.entity_key_serialization_version != KEY_VERSION:
        raise InputError(
            "entity_key_serialization_version in feature_store.yaml is "
            f"{config.entity_key_serialization_version}, expected {KEY_VERSION}"
        )
    name = compute_versioned_name(view, config.registry.enable_online_feature_view_versioning)
    try:
        codec = RowCodec((f.name, f.dtype.to_value_type().name) for f in view.features)
    except InputError as error:
        raise InputError(f"view {name}: {error}") from error
    source = getattr(view, "batch_source", None)
    keys = [(column.name, column.dtype.to_value_type()) for column in view.entity_columns]
    one_int64 = len(keys) == 1 and keys[0][1] == ValueType.INT64
    return PackedView(
        project=config.project,
        name=name,
        codec=codec,
        join_keys=tuple(key for key, _ in keys),
        created_column=getattr(source, "created_timestamp_column", None) or None,
        template=KeyTemplate(keys[0][0]) if one_int64 else None,
        length=_sequence_length(name, view, codec),
    )


def _sequence_length(name: str, view: Any, codec: RowCodec) -> int | None:
    text = (view.tags or {}).get(schema.SEQUENCE_LENGTH_TAG)
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise InputError(
            f"view {name}: tag {schema.SEQUENCE_LENGTH_TAG} must be a whole number above 0, "
            f"got {text!r}"
        )
    expected = sorted((column, "INT64_LIST") for column in schema.SEQUENCE_COLUMNS)
    if list(codec.fields) != expected:
        raise InputError(
            f"view {name} has tag {schema.SEQUENCE_LENGTH_TAG} and fields {list(codec.fields)}; "
            f"a sequence view has exactly {expected}"
        )
    return int(text)
