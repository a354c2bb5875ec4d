"""Every Feast object of the platform: entities, the four kinds of views, the services.

One module only: Feast tells objects apart by identity, and the same entity imported from two
modules makes `feast apply` fail. Views read the parquet folders that the jobs write under
`<workspace>/features/<view>/`; `feature_repo.store.apply` registers them.
"""

from pathlib import Path

from feast import Entity, FeatureService, FeatureView, Field, FileSource
from feast.data_format import ParquetFormat
from feast.types import Array, Int64, String
from feast.value_type import ValueType

from feature_repo import schema

OWNER = "crescendo"

user = Entity(
    name=schema.USER_ID,
    join_keys=[schema.USER_ID],
    value_type=ValueType.INT64,
    description="A listener",
    owner=OWNER,
)
track = Entity(
    name=schema.TRACK_ID,
    join_keys=[schema.TRACK_ID],
    value_type=ValueType.INT64,
    description="A track of the catalogue",
    owner=OWNER,
)


def _view(
    sources: Path, name: str, entity: Entity, fields: list[Field], description: str, **tags: str
) -> FeatureView:
    source = FileSource(
        name=f"{name}_source",
        path=str(sources / name / "*.parquet"),
        file_format=ParquetFormat(),
        timestamp_field=schema.EVENT_TIMESTAMP,
    )
    return FeatureView(
        name=name,
        entities=[entity],
        schema=[Field(name=entity.join_key, dtype=Int64), *fields],
        source=source,
        online=True,
        description=description,
        owner=OWNER,
        tags=tags,
    )


def user_sequence_view(sources: Path) -> FeatureView:
    """Last listens of a user. Row times are one microsecond after what they have seen."""
    fields = [Field(name=name, dtype=Array(Int64)) for name in schema.SEQUENCE_COLUMNS]
    return _view(sources, schema.USER_SEQUENCE, user, fields, "Last listens, newest last")


def stats_view(sources: Path, entity: Entity) -> FeatureView:
    """Windowed counts of one user or track, over the days before the row's day."""
    name = schema.USER_STATS if entity is user else schema.TRACK_STATS
    prefix = "user" if entity is user else "track"
    fields = [Field(name=column, dtype=Int64) for column in schema.stats_columns(prefix)]
    return _view(sources, name, entity, fields, "Actions in the days before the row's day")


def semantic_ids_view(sources: Path, generation_id: str, families: tuple[str, ...]) -> FeatureView:
    """Semantic IDs of one generation. Each generation has a view of its own, so two live side
    by side and a reader of one never sees the other."""
    fields = [
        *(Field(name=schema.sid_column(family), dtype=Array(Int64)) for family in families),
        Field(name=schema.GENERATION, dtype=String),
    ]
    return _view(
        sources,
        schema.semantic_ids_view_name(generation_id),
        track,
        fields,
        "Semantic IDs: L codes a family, an empty list where the modality is missing",
        generation=generation_id,
    )


def content_service(semantic_ids: FeatureView, track_stats: FeatureView) -> FeatureService:
    """For other teams' models: what a track is, and how it does."""
    return FeatureService(
        name="track_content",
        features=[semantic_ids, track_stats],
        description="Semantic IDs of the newest published generation, and windowed counts",
        owner=OWNER,
    )


def taste_service(user_sequence: FeatureView, user_stats: FeatureView) -> FeatureService:
    """For other teams' models: what a user listens to."""
    return FeatureService(
        name="user_taste",
        features=[user_sequence, user_stats],
        description="Last listens and windowed counts of a user",
        owner=OWNER,
    )


def ranker_service(
    release_id: str, user_sequence: FeatureView, semantic_ids: FeatureView
) -> FeatureService:
    """Exactly what one release's ranker reads."""
    return FeatureService(
        name=schema.ranker_service_name(release_id),
        features=[user_sequence[[schema.SEQUENCE_TRACK_IDS]], semantic_ids],
        description=f"Features of release {release_id}",
        owner=OWNER,
        tags={"release": release_id},
    )
