"""A Feast offline store over parquet files: exact point-in-time joins at the speed of DuckDB.

In `feature_store.yaml`:

    offline_store: {type: feature_repo.stores.asof.AsofOfflineStore}

Plain views join by DuckDB's ASOF joins. A view whose tag `schema.SEQUENCE_LENGTH_TAG` gives a
length N stores its event log alone (`schema.EVENT_LOG`); its last-N lists are built from the log
for whatever moment they are asked for. Sources are `FileSource`s of parquet files, local or on
`s3://` (`s3_endpoint_override`, else AWS_ENDPOINT_URL, names another server than AWS).

Semantics, for every view: the newest row with event time <= the entity row's moment; among equal
times the newest `created_timestamp_column`; nothing older than the view's TTL. Every entity row
comes back once, in its place. No row: null; an empty list stays an empty list.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureView, OnDemandFeatureView
from feast.data_source import DataSource
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.offline_stores.file_source import FileLoggingDestination
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from pydantic import Field

from feature_repo import schema
from feature_repo.errors import InputError
from feature_repo.stores.asof_entities import EntityRows, sql_rows
from feature_repo.stores.asof_job import AsofRetrievalJob
from feature_repo.stores.asof_join import point_in_time
from feature_repo.stores.asof_latest import all_rows, newest_rows
from feature_repo.stores.asof_log import LIST_COLUMNS, LIST_TYPE
from feature_repo.stores.asof_sources import SessionLimits, Source
from feature_repo.stores.asof_views import view_range, view_read

TYPE = "feature_repo.stores.asof.AsofOfflineStore"
CHUNK_ROWS = 65_536


class AsofOfflineStoreConfig(FeastConfigBaseModel):
    """`offline_store` of feature_store.yaml."""

    type: str = TYPE
    memory_limit_mb: int = Field(default=2048, ge=64)
    """What DuckDB may hold in MiB; beyond it goes to disk. Arrow's batches come on top."""
    threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    temp_directory_path: str | None = None
    """Where what does not fit in memory goes; the system's temporary folder when not given."""
    staging_location: str | None = None
    """Folder or `s3://` URI for `RetrievalJob.to_remote_storage`."""


class AsofOfflineStore(OfflineStore):
    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        **kwargs: Any,
    ) -> AsofRetrievalJob:
        """Feast's interface. `entity_df` may be a DuckDB query, for instance over parquet files."""
        if entity_df is None or kwargs:
            raise InputError(f"AsofOfflineStore needs entity_df; got {sorted(kwargs)}")
        limits = session_limits(config)
        given = sql_rows(entity_df, limits) if isinstance(entity_df, str) else entity_df
        types = given.slice(0, 1).to_pandas() if isinstance(given, pa.Table) else given
        timestamp = infer_event_timestamp_from_entity_df(dict(types.dtypes))
        entities = EntityRows.of(given, timestamp)
        views = [
            view_read(config, view, feature_refs, full_feature_names) for view in feature_views
        ]
        names = [name for view in views for _, name in view.features]
        clash = sorted(set(names) & set(entities.table.column_names))
        if clash:
            raise InputError(
                f"{', '.join(clash)} would be both a column of the entity rows and a feature; "
                "rename the column, or ask with full_feature_names=True"
            )
        first, last = (_time(us) for us in entities.moment_range_us() or (None, None))
        return AsofRetrievalJob(
            lambda: point_in_time(entities, views, limits),
            repo_path=config.repo_path,
            on_demand=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            full_feature_names=full_feature_names,
            metadata=RetrievalMetadata(
                features=feature_refs,
                keys=[name for name in entities.table.column_names if name != timestamp],
                min_event_timestamp=first,
                max_event_timestamp=last,
            ),
            staging_location=_settings(config).staging_location,
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> AsofRetrievalJob:
        """Newest row of each entity with start <= event time <= end.

        A sequence view's lists are whole: the window over all rows up to `end_date`, because a
        stock online store replaces its row by this one.
        """
        view = view_range(
            config,
            data_source,
            keys=join_key_columns,
            features=feature_name_columns,
            timestamp=timestamp_field,
            created=created_timestamp_column,
            start=start_date,
            end=end_date,
        )
        limits = session_limits(config)
        return AsofRetrievalJob(
            lambda: newest_rows(view, limits, chunk_rows=CHUNK_ROWS, whole_windows=True),
            repo_path=config.repo_path,
            one_chunk=True,
        )

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> AsofRetrievalJob:
        """Every row with start <= event time <= end; of a sequence view, every state of it."""
        view = view_range(
            config,
            data_source,
            keys=join_key_columns,
            features=feature_name_columns,
            timestamp=timestamp_field,
            created=created_timestamp_column,
            start=start_date,
            end=end_date,
        )
        limits = session_limits(config)
        return AsofRetrievalJob(
            lambda: all_rows(view, limits, chunk_rows=CHUNK_ROWS),
            repo_path=config.repo_path,
            one_chunk=True,
        )

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Appends the rows as one more parquet file; earlier files are never rewritten."""
        source = feature_view.batch_source
        if schema.SEQUENCE_LENGTH_TAG in feature_view.tags:
            raise InputError(
                f"view {feature_view.name} is built from its event log, it stores no rows; "
                "send events with `crescendo push`, or push to the online store alone"
            )
        files = Source.of(source, config.repo_path)
        if files.files():
            expected = files.columns()
            missing = sorted(set(expected.names) ^ set(table.column_names))
            if missing:
                raise InputError(
                    f"rows for {feature_view.name} have columns {', '.join(table.column_names)}; "
                    f"its source has {', '.join(expected.names)} (differs in {', '.join(missing)})"
                )
            table = table.select(expected.names).cast(expected)
        files.append(table)
        if progress:
            progress(table.num_rows)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,
        data: pa.Table | Path,
        source: LoggingSource,
        logging_config: LoggingConfig,
        registry: BaseRegistry,
    ) -> None:
        """Appends served features as one more parquet file of the log's folder."""
        destination = logging_config.destination
        if not isinstance(destination, FileLoggingDestination) or destination.partition_by:
            raise InputError(
                f"AsofOfflineStore logs to a FileLoggingDestination without partition_by, "
                f"got {type(destination).__name__}"
            )
        table = pq.read_table(data) if isinstance(data, Path) else data
        folder = destination.path.rstrip("/").removesuffix("/*.parquet")
        destination = FileLoggingDestination(
            path=f"{folder}/*.parquet", s3_endpoint_override=destination.s3_endpoint_override
        )
        Source.of(destination.to_data_source(), config.repo_path).append(table)

    def validate_data_source(self, config: RepoConfig, data_source: DataSource) -> None:
        """Raises ArtifactError for missing or damaged files, InputError for missing columns."""
        source = Source.of(data_source, config.repo_path)
        names = source.columns().names
        wanted = [data_source.timestamp_field, data_source.created_timestamp_column]
        if schema.SEQUENCE_LENGTH_TAG in data_source.tags:
            wanted += schema.EVENT_LOG.names
        missing = [name for name in wanted if name and name not in names]
        if missing:
            raise InputError(
                f"source {source.name} ({source.pattern}) lacks {', '.join(missing)}; "
                f"it has {', '.join(names)}"
            )

    def get_table_column_names_and_types_from_data_source(
        self, config: RepoConfig, data_source: DataSource
    ) -> Iterable[tuple[str, str]]:
        """Columns as views see them: of an event log, its user, time and four lists."""
        if schema.SEQUENCE_LENGTH_TAG in data_source.tags:
            lists = [(name, str(LIST_TYPE)) for name in LIST_COLUMNS]
            stamp = (schema.EVENT_TIMESTAMP, str(schema.TIMESTAMP))
            return [(schema.USER_ID, "int64"), stamp, *lists]
        columns = Source.of(data_source, config.repo_path).columns()
        return [(field.name, str(field.type)) for field in columns]


def latest_rows(
    config: RepoConfig,
    view: FeatureView,
    start: datetime,
    end: datetime,
    *,
    chunk_rows: int = CHUNK_ROWS,
) -> Iterator[pa.Table]:
    """Newest row of each entity among the rows with start < event time <= end, in parts.

    Columns: join key, event time under the source's name, features; at most `chunk_rows` rows a
    table, each entity once, at least one table. Of a sequence view the window over the rows of
    that range alone: merging it into the row that is online gives the whole window, since
    lastN(A or B) = lastN(lastN(A) or lastN(B)). Memory is bounded whatever the range.
    """
    source = view.batch_source
    mapping = source.field_mapping
    raw = {new: old for old, new in mapping.items()}
    features = [raw.get(field.name, field.name) for field in view.features]
    keys = [raw.get(key, key) for key in view.join_keys if key != DUMMY_ENTITY_ID]
    asked = view_range(
        config,
        source,
        keys=keys,
        features=features,
        timestamp=raw.get(source.timestamp_field, source.timestamp_field),
        created=raw.get(source.created_timestamp_column, source.created_timestamp_column),
        start=start,
        end=end,
        owner=view,
        start_inclusive=False,
    )
    tables = newest_rows(asked, session_limits(config), chunk_rows=chunk_rows, whole_windows=False)
    for table in tables:
        yield table.rename_columns([mapping.get(name, name) for name in table.column_names])


def session_limits(config: RepoConfig) -> SessionLimits:
    settings = _settings(config)
    return SessionLimits(
        memory_mb=settings.memory_limit_mb,
        threads=settings.threads,
        temp_directory=settings.temp_directory_path,
    )


def _time(us: int | None) -> datetime | None:
    return None if us is None else datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)


def _settings(config: RepoConfig) -> AsofOfflineStoreConfig:
    """Ours, or the defaults where another offline store is configured."""
    settings = config.offline_store
    return settings if isinstance(settings, AsofOfflineStoreConfig) else AsofOfflineStoreConfig()
