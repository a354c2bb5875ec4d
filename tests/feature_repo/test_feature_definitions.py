"""What `feast ui` shows of every object, and what the sequence view says of itself."""

import pytest

from feature_repo import feature_definitions as definitions
from feature_repo import schema


def objects():
    semantic_ids = definitions.semantic_ids_view("features", "gen-a", ("text", "joint"))
    sequence = definitions.user_sequence_view("features", 50)
    stats = [definitions.stats_view("features", e) for e in (definitions.user, definitions.track)]
    services = [
        definitions.content_service(semantic_ids, stats[1]),
        definitions.taste_service(sequence, stats[0]),
        definitions.ranker_service("rel-a", [sequence[[schema.SEQUENCE_TRACK_IDS]]], semantic_ids),
    ]
    collaborative = definitions.collaborative_view("features")
    return [semantic_ids, sequence, *stats, collaborative], services


def test_everything_has_a_description_an_owner_and_tags():
    views, services = objects()
    sources = [source for view in views for source in (view.batch_source, view.stream_source)]
    for thing in (definitions.user, definitions.track, *views, *services, *filter(None, sources)):
        assert thing.description, thing.name
        assert thing.owner == definitions.OWNER, thing.name
        assert thing.tags.items() >= definitions.DOMAIN.items(), thing.name
    for view in views:
        assert len({field.description for field in view.schema}) == len(view.schema)
        for field in view.schema:
            assert field.description, field.name
            assert field.tags, field.name


def test_features_are_those_of_the_schema():
    views, _ = objects()
    names = {view.name: tuple(field.name for field in view.features) for view in views}
    assert names[schema.USER_SEQUENCE] == schema.SEQUENCE_COLUMNS
    assert names[schema.USER_STATS] == schema.stats_columns("user")
    assert names[schema.TRACK_STATS] == schema.stats_columns("track")


def test_the_sequence_view_and_its_source_say_how_long_it_is():
    view = definitions.user_sequence_view("s3://lake/music/features", 50)
    assert view.tags[schema.SEQUENCE_LENGTH_TAG] == "50"
    assert view.batch_source.tags[schema.SEQUENCE_LENGTH_TAG] == "50"
    assert view.batch_source.path == "s3://lake/music/features/user_sequence/*.parquet"
    assert view.stream_source.name == definitions.LISTENING_EVENTS


@pytest.mark.parametrize("count", schema.STATS_COUNTS)
def test_counts_say_what_and_over_which_days(count):
    view = definitions.stats_view("features", definitions.track)
    for days in schema.STATS_WINDOWS_DAYS:
        (field,) = (f for f in view.features if f.name == f"track_{count}_{days}d")
        assert f"{days} days" in field.description
        assert field.description.startswith(definitions.COUNT_DESCRIPTIONS[count])
