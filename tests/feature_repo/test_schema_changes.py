"""Schema changes on real registries: additive ones pass, breaking ones name who would break."""

import json
from pathlib import Path

import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource
from feast.types import Array, Float64, Int32, Int64, String
from feast.value_type import ValueType

from feature_repo import schema
from feature_repo.errors import ArtifactError
from feature_repo.schema_changes import breaking_changes
from feature_repo.store import apply

RELEASE = "release-0123456789ab"
SERVICE = "ranker_release_0123456789ab"


@pytest.fixture(params=["file", "sql"])
def root(request, tmp_path) -> Path:
    """A folder with a feature_store.yaml, its registry a file or an SQL database."""
    registry = {
        "file": f"{{registry_type: file, path: {tmp_path}/registry.db}}",
        "sql": f"{{registry_type: sql, path: 'sqlite:///{tmp_path}/registry.sqlite'}}",
    }[request.param]
    (tmp_path / "feature_store.yaml").write_text(
        f"project: p\nprovider: local\nregistry: {registry}\n"
        f"online_store: {{type: sqlite, path: {tmp_path}/online.db}}\n"
        "offline_store: {type: duckdb}\nentity_key_serialization_version: 3\n"
    )
    return tmp_path


def open_(root: Path) -> FeatureStore:
    return FeatureStore(repo_path=str(root))


def entity(name: str = "user_id", kind: ValueType = ValueType.INT64, key: str | None = None):
    return Entity(name=name, join_keys=[key or name], value_type=kind)


USER, TRACK = entity(), entity("track_id")


def view(fields: dict, of: Entity = USER, length: int | None = None, **more) -> FeatureView:
    return FeatureView(
        name="taste",
        entities=[of],
        schema=[Field(name=of.join_key, dtype=Int64)]
        + [Field(name=name, dtype=kind) for name, kind in fields.items()],
        source=FileSource(
            name="taste_source", path="nowhere/*.parquet", timestamp_field="event_timestamp"
        ),
        tags={} if length is None else {schema.SEQUENCE_LENGTH_TAG: str(length)},
        **more,
    )


FIELDS = {"plays": Int64, "recent": Array(Int64)}


def released(root: Path, old: FeatureView, features: list[str] | None = None) -> FeatureStore:
    """A store in which one release reads `features` of the view (None: all of them)."""
    store = open_(root)
    projection = old if features is None else old[features]
    service = FeatureService(name=SERVICE, features=[projection], tags={"release": RELEASE})
    apply(store, [USER, TRACK, old, service])
    return store


def test_additive_changes_pass(root):
    store = released(root, view(FIELDS, length=20))
    new = view({**FIELDS, "skips": Int64}, length=100, description="more")
    assert breaking_changes(store, [USER, new]) == []
    apply(store, [USER, new])
    found = {field.name for field in open_(root).get_feature_view("taste").features}
    assert found == {"plays", "recent", "skips"}


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (view({"recent": Array(Int64)}), ["feature plays", "is Int64", "become nothing"]),
        (view({**FIELDS, "plays": Float64}), ["feature plays", "is Int64", "become Float64"]),
        (view({**FIELDS, "recent": Array(Int32)}), ["feature recent", "Array(Int64)", "Int32"]),
        (view({"play_count": Int64, "recent": Array(Int64)}), ["feature plays", "nothing"]),
        (view(FIELDS, of=TRACK), ["entity is user_id", "become track_id"]),
    ],
)
def test_breaking_changes_are_refused_with_the_release(root, new, words):
    store = released(root, view(FIELDS))
    before = open_(root).get_feature_view("taste").to_proto().spec
    with pytest.raises(ArtifactError) as error:
        apply(store, [USER, TRACK, new])
    for word in [*words, "taste", RELEASE]:
        assert word in str(error.value)
    assert open_(root).get_feature_view("taste").to_proto().spec == before


def test_a_shorter_sequence_is_breaking_and_a_longer_one_is_not(root):
    store = released(root, view(FIELDS, length=100))
    with pytest.raises(ArtifactError, match=r"sequence_length is 100, would become 20.*release-"):
        apply(store, [USER, view(FIELDS, length=20)])
    with pytest.raises(ArtifactError, match=r"sequence_length is 100, would become nothing"):
        apply(store, [USER, view(FIELDS)])
    apply(store, [USER, view(FIELDS, length=101)])


def test_what_no_release_reads_may_change(root):
    store = released(root, view(FIELDS), features=["plays"])
    apply(store, [USER, view({"plays": Int64, "recent": Array(String)})])
    apply(store, [USER, view({"plays": Int64})])
    with pytest.raises(ArtifactError, match=r"feature plays .*read by release release-0123"):
        apply(store, [USER, view({"other": Int64})])


def test_a_view_nobody_reads_may_change_wholly(root):
    store = open_(root)
    apply(store, [USER, TRACK, view(FIELDS)])
    assert len(breaking_changes(store, [view({"other": String}, of=TRACK)])) == 3
    apply(store, [USER, TRACK, view({"other": String}, of=TRACK)])
    assert open_(root).get_feature_view("taste").entities == ["track_id"]


def test_another_teams_service_counts_and_one_applied_in_the_same_call_does_not(root):
    store, old = open_(root), view(FIELDS)
    theirs = FeatureService(name="their_model", features=[old])
    apply(store, [USER, old, theirs])
    new = view({"plays": Int64})
    with pytest.raises(ArtifactError, match=r"read by feature service their_model"):
        apply(store, [USER, new])
    apply(store, [USER, new, FeatureService(name="their_model", features=[new])])


def test_a_service_that_is_applied_later_counts_with_what_it_will_read(root):
    store, old = open_(root), view(FIELDS)
    apply(store, [USER, old, FeatureService(name="taste", features=[old])])
    new = view({"plays": Int64})
    service = FeatureService(name="taste", features=[new])
    apply(store, [USER, new], then=[service])
    apply(store, [service])


def test_a_changed_key_breaks_the_views_of_the_entity(root):
    store = released(root, view(FIELDS))
    changed = entity(kind=ValueType.STRING)
    with pytest.raises(ArtifactError, match=r"key of entity user_id is user_id INT64.*STRING"):
        apply(store, [changed])


def test_a_release_file_whose_service_is_not_registered_counts_as_a_reader_of_all(root):
    store = open_(root)
    apply(store, [USER, view(FIELDS)])
    (root / "releases").mkdir()
    path = root / "releases" / "release-ffffffffffff.json"
    path.write_text(json.dumps({"release_id": path.stem, "feature_service": "lost"}))
    with pytest.raises(ArtifactError, match=r"read by release release-ffffffffffff"):
        apply(store, [USER, view({"plays": Int64})])
    path.write_text("{")
    with pytest.raises(ArtifactError, match=r"release-ffffffffffff.json is not a release"):
        apply(store, [USER, view({"plays": Int64})])
    path.unlink()
    apply(store, [USER, view({"plays": Int64})])
