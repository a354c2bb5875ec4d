"""Feast's online-store interface over packed rows, and the columnar one beside it.

One value an entity and view (`packed_layout`), under Feast's own entity keys, so that plain
`get_online_features`, `push` and `materialize` work as on any store. Two children keep the bytes:
`packed_redis` and `packed_sqlite`.

What every write promises: a row with an older (event time, creation time) never overwrites a
newer one, an equal one overwrites. In a view with the tag schema.SEQUENCE_LENGTH_TAG a write
merges: the newest N listens of both, each event once. Both in any order, from any number of
writers.

Shape suffixes: N rows, U entities.
"""

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
from feast import FeatureView, RepoConfig
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.supported_async_methods import SupportedAsyncMethods
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from feature_repo.errors import InputError
from feature_repo.stores.packed_asked import asked_entities
from feature_repo.stores.packed_columns import Column, Columns
from feature_repo.stores.packed_protos import moment, rows_of_protos
from feature_repo.stores.packed_reading import Codecs, ReadValues, read_rows, read_values
from feature_repo.stores.packed_response import add_to_response
from feature_repo.stores.packed_sequences import SequenceRows
from feature_repo.stores.packed_view import Keys, PackedView, packed_view
from feature_repo.stores.packed_writing import Batch, batch_from_protos, batch_from_table, keys_of

IDS_AT_ONCE = 1 << 16

Change = Callable[[np.ndarray, list[bytes | None]], list[bytes]]
"""(indices into the keys, what is stored of them) -> what is to be stored."""


class PackedOnlineStore(OnlineStore):
    """An online store whose rows are packed values. See the module's docstring."""

    def __init__(self) -> None:
        self._views: dict[int, tuple[Any, PackedView]] = {}
        self._codecs = Codecs(self._load_fields)

    @abstractmethod
    def _fetch(
        self, config: RepoConfig, asked: Sequence[tuple[PackedView, Keys]]
    ) -> list[list[bytes | None]]:
        """The packed rows of each asked view's entities, None where there is none."""

    @abstractmethod
    def _put(
        self, config: RepoConfig, view: PackedView, keys: Keys, rows: list[bytes], replace: bool
    ) -> None:
        """Stores rows unless what is there is newer; with `replace` whatever is there."""

    @abstractmethod
    def change_rows(self, config: RepoConfig, view: PackedView, keys: Keys, change: Change) -> None:
        """Replaces each row by what `change` makes of it, atomically; it may be called again."""

    @abstractmethod
    def _delete(self, config: RepoConfig, view: PackedView, keys: Keys) -> int:
        """Removes rows; returns how many there were."""

    @abstractmethod
    def _keys(self, config: RepoConfig, view: PackedView) -> Iterator[Keys]:
        """The entities that have a row, repeats allowed; one written meanwhile may be missing."""

    @abstractmethod
    def _create(self, config: RepoConfig, view: PackedView) -> None:
        """Makes a place for the view's rows; harmless if there is one."""

    @abstractmethod
    def _drop(self, config: RepoConfig, view: PackedView) -> None:
        """Removes the view's rows and its place."""

    @abstractmethod
    def _load_fields(self, config: RepoConfig, view: PackedView) -> list[str]:
        """The field lists (RowLayout.text) that the view's rows were ever packed from."""

    def write_table(
        self, config: RepoConfig, view: FeatureView, table: pa.Table, *, replace: bool = False
    ) -> int:
        """Writes rows given as columns: the join key (int64), event_timestamp, all features.

        As Feast does, a NaN among single numbers is stored as null and moments are cut to
        seconds. With `replace` a row is stored whatever is there. Returns the rows given. Raises
        InputError for missing columns, null keys or times, null items inside lists, and values
        that the view's types cannot hold.
        """
        packed = self.packed(config, view)
        self._write(config, batch_from_table(packed, table), replace)
        return table.num_rows

    def read_columns(
        self,
        config: RepoConfig,
        views_and_features: Sequence[tuple[FeatureView, Sequence[str]]],
        ids: np.ndarray,
    ) -> Columns:
        """Features of entities (int64 ids of N entities, any order, repeats allowed) as arrays.

        One round trip for all views. Columns are named `view:feature`, as Feast refers to them.
        """
        asked = [(self.packed(config, view), features) for view, features in views_and_features]
        names = [view.projection.name_to_use() for view, _ in views_and_features]
        return self.read_packed(config, list(zip(names, asked, strict=True)), ids)

    def read_packed(
        self,
        config: RepoConfig,
        asked: Sequence[tuple[str, tuple[PackedView, Sequence[str]]]],
        ids: np.ndarray,
    ) -> Columns:
        """`read_columns` of views that are resolved already: (name in the answer, what)."""
        ids_N = np.asarray(ids)
        if ids_N.ndim != 1 or ids_N.dtype.kind not in "iu":
            raise InputError(f"ids must be one row of integers, got {ids_N.dtype} {ids_N.shape}")
        ids_N = ids_N.astype("i8", copy=False)
        for _, (view, _) in asked:
            view.int64_template()
        fetched = self._fetch(config, [(view, ids_N) for _, (view, _) in asked])
        columns: dict[str, Column] = {}
        found, event_us = {}, {}
        for (name, (view, features)), rows in zip(asked, fetched, strict=True):
            read = read_rows(config, view, features, rows, self._codecs)
            columns.update((f"{name}:{feature}", c) for feature, c in read.columns.items())
            found[name], event_us[name] = read.found_N, read.event_us_N
        return Columns(ids_N=ids_N, columns=columns, found=found, event_us=event_us)

    def read_packed_values(
        self,
        config: RepoConfig,
        asked: Sequence[tuple[str, tuple[PackedView, Sequence[str]]]],
        ids_N: np.ndarray,
    ) -> dict[str, ReadValues]:
        """`read_packed` of few entities (N int64), as Python values by the name in the answer."""
        fetched = self._fetch(config, [(view, ids_N) for _, (view, _) in asked])
        return {
            name: read_values(config, view, features, rows, self._codecs)
            for (name, (view, features)), rows in zip(asked, fetched, strict=True)
        }

    def delete_rows(self, config: RepoConfig, view: FeatureView, ids: np.ndarray) -> int:
        """Removes the rows of these entities; returns how many there were."""
        packed = self.packed(config, view)
        packed.int64_template()
        return self._delete(config, packed, np.unique(np.asarray(ids, dtype="i8")))

    def entity_ids(self, config: RepoConfig, view: FeatureView) -> Iterator[np.ndarray]:
        """The ids that have a row, each once, ascending; one written meanwhile may be missing."""
        packed = self.packed(config, view)
        packed.int64_template()
        parts = list(self._keys(config, packed))
        ids = np.unique(np.concatenate(parts)) if parts else np.zeros(0, dtype="i8")
        for start in range(0, len(ids), IDS_AT_ONCE):
            yield ids[start : start + IDS_AT_ONCE]

    def count_rows(self, config: RepoConfig, view: FeatureView) -> int:
        """Entities that have a row in this view."""
        packed = self.packed(config, view)
        if packed.template is not None:
            return sum(len(ids) for ids in self.entity_ids(config, view))
        return len({key for keys in self._keys(config, packed) for key in keys})

    @property
    def async_supported(self) -> SupportedAsyncMethods:
        return SupportedAsyncMethods(read=True, write=True)

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[tuple[EntityKey, dict[str, Value], datetime, datetime | None]],
        progress: Callable[[int], Any] | None,
    ) -> None:
        batch = batch_from_protos(self.packed(config, table), data)
        self._write(config, batch, False)
        if progress:
            progress(len(data))

    async def online_write_batch_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[tuple[EntityKey, dict[str, Value], datetime, datetime | None]],
        progress: Callable[[int], Any] | None,
    ) -> None:
        await asyncio.to_thread(self.online_write_batch, config, table, data, progress)

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        packed = self.packed(config, table)
        (rows,) = self._fetch(config, [(packed, keys_of(packed, entity_keys))])
        names = requested_features or list(packed.codec.kinds)
        read = read_rows(config, packed, names, rows, self._codecs)
        return [
            (moment(event_us), row) if found else (None, None)
            for found, event_us, row in zip(
                read.found_N.tolist(),
                read.event_us_N.tolist(),
                rows_of_protos(read.columns),
                strict=True,
            )
        ]

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        return await asyncio.to_thread(
            self.online_read, config, table, entity_keys, requested_features
        )

    def _read_features_per_fv(
        self,
        config: RepoConfig,
        grouped_refs: list[tuple[FeatureView, list[str]]],
        join_key_values: dict[str, list[Value]],
        entity_name_to_join_key_map: dict[str, str],
        online_features_response: Any,
        full_feature_names: bool,
        include_feature_view_version_metadata: bool,
    ) -> None:
        """Feast's hook between reference and response: here all views in one round trip."""
        asked, places = [], []
        for table, _ in grouped_refs:
            packed = self.packed(config, table)
            keys, entity_of = asked_entities(
                packed, table, join_key_values, entity_name_to_join_key_map
            )
            asked.append((packed, keys))
            places.append(entity_of)
        fetched = self._fetch(config, asked)
        for (table, features), (packed, _), entity_of, rows in zip(
            grouped_refs, asked, places, fetched, strict=True
        ):
            add_to_response(
                online_features_response,
                table,
                features,
                read_values(config, packed, features, rows, self._codecs),
                entity_of,
                full_names=full_feature_names,
                with_versions=include_feature_view_version_metadata,
            )

    async def _read_features_per_fv_async(self, *arguments: Any, **named: Any) -> None:
        await asyncio.to_thread(self._read_features_per_fv, *arguments, **named)

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Any],
        entities_to_keep: Sequence[Any],
        partial: bool,
    ) -> None:
        for packed in [packed_view(config, view) for view in tables_to_keep]:
            self._create(config, packed)
        self._views.clear()
        for view in tables_to_delete:
            self._drop(config, packed_view(config, view))

    def teardown(
        self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Any]
    ) -> None:
        for view in tables:
            self._drop(config, packed_view(config, view))
        self._views.clear()

    def _is_versioned_read_supported(self) -> bool:
        return True  # rows lie under the versioned name

    def packed(self, config: RepoConfig, view: Any) -> PackedView:
        """The view as this store keeps it; resolved once for each view object."""
        known = self._views.get(id(view))
        if known is None or known[0] is not view:
            if len(self._views) >= 256:
                self._views.clear()  # Feast makes new view objects with every registry refresh
            known = self._views[id(view)] = (view, packed_view(config, view))
        return known[1]

    def _write(self, config: RepoConfig, batch: Batch, replace: bool) -> None:
        for keys, rows in batch.chunks():
            if isinstance(rows, list):
                self._put(config, batch.view, keys, rows, replace)
            elif replace:
                self._put(config, batch.view, keys, rows.packed(), True)
            else:
                self.change_rows(config, batch.view, keys, _merging(rows))


def _merging(rows: SequenceRows) -> Change:
    def change(which: np.ndarray, stored: list[bytes | None]) -> list[bytes]:
        # All of them at the first attempt, which is nearly always the last: nothing is copied.
        asked = rows if len(which) == len(rows.event_us_U) else rows.take(which)
        return asked.merged_into(stored)

    return change
