"""From Feast's objects to what the joins read: column names before any mapping, sources, lengths.

Feast's field mapping renames columns of a source (`old: new`); views, features and keys carry the
new names, files the old ones.
"""

from datetime import datetime

from feast import FeatureView
from feast.data_source import DataSource
from feast.feature_view import DUMMY_ENTITY_ID
from feast.repo_config import RepoConfig

from feature_repo.stores.asof_join import ViewRead
from feature_repo.stores.asof_latest import ViewRange
from feature_repo.stores.asof_log import sequence_length
from feature_repo.stores.asof_sources import Source


def view_read(
    config: RepoConfig, view: FeatureView, feature_refs: list[str], full_feature_names: bool
) -> ViewRead:
    source = view.batch_source
    prefix = f"{view.projection.name_to_use()}:"
    wanted = [ref.removeprefix(prefix) for ref in feature_refs if ref.startswith(prefix)]
    shown = view.projection.name_alias or view.name
    raw = {new: old for old, new in source.field_mapping.items()}
    keys = [column.name for column in view.entity_columns if column.name != DUMMY_ENTITY_ID]
    renamed = view.projection.join_key_map
    return ViewRead(
        name=view.name,
        source=Source.of(source, config.repo_path),
        keys=tuple((renamed.get(key, key), raw.get(key, key)) for key in keys),
        features=tuple(
            (raw.get(name, name), f"{shown}__{name}" if full_feature_names else name)
            for name in wanted
        ),
        timestamp=raw.get(source.timestamp_field, source.timestamp_field),
        created=raw.get(source.created_timestamp_column, source.created_timestamp_column) or None,
        ttl=view.ttl or None,
        length=sequence_length(view, tuple(wanted)),
    )


def view_range(
    config: RepoConfig,
    source: DataSource,
    *,
    keys: list[str],
    features: list[str],
    timestamp: str,
    created: str | None,
    start: datetime | None,
    end: datetime | None,
    owner: FeatureView | None = None,
    start_inclusive: bool = True,
) -> ViewRange:
    """`owner`'s tag says whether it is a sequence view; without one the source's own does."""
    return ViewRange(
        source=Source.of(source, config.repo_path),
        keys=tuple(key for key in keys if key != DUMMY_ENTITY_ID),
        features=tuple(features),
        timestamp=timestamp,
        created=created or None,
        length=sequence_length(owner or source, tuple(features)),
        start=start,
        end=end,
        start_inclusive=start_inclusive,
    )
