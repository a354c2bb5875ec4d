"""Every Feast object of the platform: entities, the kinds of views, the services.

One module only: Feast tells objects apart by identity, and the same entity imported from two
modules makes `feast apply` fail. Views read the parquet folders that the jobs write under
`<workspace>/features/<view>/`; `feature_repo.store.apply` registers them. Descriptions, owners and
tags are what `feast ui` shows of each.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource
from feast.data_format import ParquetFormat
from feast.types import Array, Float32, Int64, String
from feast.value_type import ValueType

from feature_repo import schema

OWNER = "crescendo"
DOMAIN = {"domain": "music"}
LISTENING_EVENTS = "listening_events"
"""Push source of single listens, for `FeatureStore.push`."""

user = Entity(
    name=schema.USER_ID,
    join_keys=[schema.USER_ID],
    value_type=ValueType.INT64,
    description="A listener",
    owner=OWNER,
    tags=DOMAIN,
)
track = Entity(
    name=schema.TRACK_ID,
    join_keys=[schema.TRACK_ID],
    value_type=ValueType.INT64,
    description="A track of the catalogue",
    owner=OWNER,
    tags=DOMAIN,
)

SEQUENCE_DESCRIPTIONS = {
    schema.SEQUENCE_TRACK_IDS: "Tracks of the last listens, newest last",
    schema.SEQUENCE_TIMESTAMPS: "When each listen happened, microseconds since 1970",
    schema.SEQUENCE_ACTIONS: "What each listen was: "
    + ", ".join(f"{schema.ACTION_CODES[name]} {name}" for name in schema.LISTEN_ACTIONS),
    schema.SEQUENCE_EVENT_IDS: "Event of each listen: a second arrival of one is no listen",
}
COUNT_DESCRIPTIONS = {
    "plays": "Events but skips",
    "completes": "Tracks heard to the end",
    "skips": "Skips",
    "favourites": "Tracks marked as favourite",
}


def _view(
    sources: Path | str,
    name: str,
    entity: Entity,
    fields: list[Field],
    description: str,
    *,
    push_source: str | None = None,
    **tags: str,
) -> FeatureView:
    key = Field(name=entity.join_key, dtype=Int64, description=entity.description, tags=DOMAIN)
    source = FileSource(
        name=f"{name}_source",
        path=f"{sources}/{name}/*.parquet",
        file_format=ParquetFormat(),
        timestamp_field=schema.EVENT_TIMESTAMP,
        description=f"Parquet files of {name}, written by the jobs",
        owner=OWNER,
        tags={**DOMAIN, **tags},
    )
    if push_source:
        source = PushSource(
            name=push_source,
            batch_source=source,
            description=f"Rows for {name} as they happen",
            owner=OWNER,
            tags=DOMAIN,
        )
    return FeatureView(
        name=name,
        entities=[entity],
        schema=[key, *fields],
        source=source,
        online=True,
        description=description,
        owner=OWNER,
        tags={**DOMAIN, **tags},
    )


def user_sequence_view(sources: Path | str, length: int = schema.SEQUENCE_LENGTH) -> FeatureView:
    """Last `length` listens of a user.

    The source is the event log: rows are built from it at the moment that is asked for, and one
    listen pushed to `listening_events` is merged into the row that is online. Needs the store
    classes of `feature_repo.stores`.
    """
    fields = [
        Field(name=name, dtype=Array(Int64), description=text, tags=DOMAIN)
        for name, text in SEQUENCE_DESCRIPTIONS.items()
    ]
    return _view(
        sources,
        schema.USER_SEQUENCE,
        user,
        fields,
        f"The last {length} listens of a user, newest last: four lists of one length",
        push_source=LISTENING_EVENTS,
        **{schema.SEQUENCE_LENGTH_TAG: str(length)},
    )


def stats_view(sources: Path | str, entity: Entity) -> FeatureView:
    """Windowed counts of one user or track, over the days before the row's day."""
    name = schema.USER_STATS if entity is user else schema.TRACK_STATS
    prefix = "user" if entity is user else "track"
    meanings = product(schema.STATS_COUNTS, schema.STATS_WINDOWS_DAYS)
    fields = [
        Field(
            name=column,
            dtype=Int64,
            description=f"{COUNT_DESCRIPTIONS[count]} in the {days} days before the row's day",
            tags={**DOMAIN, "window_days": str(days)},
        )
        for column, (count, days) in zip(schema.stats_columns(prefix), meanings, strict=True)
    ]
    return _view(
        sources, name, entity, fields, f"Actions of a {prefix} in the days before the row's day"
    )


def semantic_ids_view(
    sources: Path | str, generation_id: str, families: tuple[str, ...]
) -> FeatureView:
    """Semantic IDs of one generation. Each generation has a view of its own, so two live side
    by side and a reader of one never sees the other."""
    fields = [
        *(
            Field(
                name=schema.sid_column(family),
                dtype=Array(Int64),
                description=f"Codes of the {family} ID, coarse to fine; empty: no such ID",
                tags={**DOMAIN, "family": family},
            )
            for family in families
        ),
        Field(
            name=schema.GENERATION,
            dtype=String,
            description="Generation that the codes belong to",
            tags=DOMAIN,
        ),
    ]
    return _view(
        sources,
        schema.semantic_ids_view_name(generation_id),
        track,
        fields,
        "Semantic IDs: L codes a family, an empty list where the modality is missing",
        generation=generation_id,
    )


def collaborative_view(sources: Path | str) -> FeatureView:
    """What listeners' sequences say of a track: the newest vectors of that modality."""
    fields = [
        Field(
            name=schema.COLLABORATIVE_VECTOR,
            dtype=Array(Float32),
            description="Collaborative embedding; an empty list where the track has none",
            tags=DOMAIN,
        ),
        Field(
            name=schema.COLLABORATIVE_ENCODER,
            dtype=String,
            description="Run that learned it: vectors of two runs cannot be compared",
            tags=DOMAIN,
        ),
    ]
    return _view(
        sources,
        schema.TRACK_COLLABORATIVE,
        track,
        fields,
        "Collaborative embeddings, from the moment on at which they were made",
    )


def user_candidates_view(sources: Path | str, model_id: str) -> FeatureView:
    """What one retriever model proposes to each user. Each model has a view of its own, so that a
    release and its canary never read each other's candidates."""
    fields = [
        Field(
            name=schema.CANDIDATE_TRACK_IDS,
            dtype=Array(Int64),
            description="Tracks that the user has not heard of late, best first",
            tags=DOMAIN,
        ),
        Field(
            name=schema.CANDIDATE_SCORES,
            dtype=Array(Float32),
            description="Their scores, which order them and mean nothing else",
            tags=DOMAIN,
        ),
        Field(
            name=schema.CANDIDATE_MODEL,
            dtype=String,
            description="Retriever model that scored them",
            tags=DOMAIN,
        ),
        Field(
            name=schema.CANDIDATES_MADE_AT,
            dtype=Int64,
            description="When they were scored, microseconds since 1970",
            tags=DOMAIN,
        ),
    ]
    return _view(
        sources,
        schema.candidates_view_name(model_id),
        user,
        fields,
        "Candidates of a retriever model for a user; empty lists where it has none",
        model=model_id,
    )


def content_service(semantic_ids: FeatureView, track_stats: FeatureView) -> FeatureService:
    """For other teams' models: what a track is, and how it does."""
    return FeatureService(
        name="track_content",
        features=[semantic_ids, track_stats],
        description="Semantic IDs of the newest published generation, and windowed counts",
        owner=OWNER,
        tags=DOMAIN,
    )


def taste_service(user_sequence: FeatureView, user_stats: FeatureView) -> FeatureService:
    """For other teams' models: what a user listens to."""
    return FeatureService(
        name="user_taste",
        features=[user_sequence, user_stats],
        description="Last listens and windowed counts of a user",
        owner=OWNER,
        tags=DOMAIN,
    )


def ranker_service(
    release_id: str, read: Sequence[FeatureView], semantic_ids: FeatureView
) -> FeatureService:
    """Exactly what one release's ranker reads: `read` are views cut to their columns."""
    return FeatureService(
        name=schema.ranker_service_name(release_id),
        features=[*read, semantic_ids],
        description=f"Features of release {release_id}",
        owner=OWNER,
        tags={**DOMAIN, "release": release_id},
    )
