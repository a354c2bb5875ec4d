"""Dropping generations: never one that somebody reads, and all of one that nobody does."""

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore

from feature_repo import feature_definitions as definitions
from feature_repo import schema
from feature_repo.artifacts import Manifest, write_artifact
from feature_repo.errors import ArtifactError, InputError
from feature_repo.online import packed_store
from feature_repo.store import apply, open_store
from feature_repo.workspace import Workspace
from ray_jobs import retire as job
from ray_jobs.retire import RetireOptions, retire
from tests.generations import FAMILIES, write_generation

OLD, MIDDLE, NEW = "gen-aaaaaaaaaaaa", "gen-bbbbbbbbbbbb", "gen-cccccccccccc"
TRACKS = 6
PACKED_SQLITE = "{type: feature_repo.stores.packed_sqlite.PackedSqliteOnlineStore, path: online.db}"
STOCK_SQLITE = "{type: sqlite, path: online.db}"


def make(root: Path, online: str) -> Workspace:
    workspace = Workspace(root)
    root.mkdir()
    (root / "feature_store.yaml").write_text(
        "project: retire\nprovider: local\n"
        "registry: {registry_type: file, path: registry.db}\n"
        f"online_store: {online}\noffline_store: {{type: duckdb}}\n"
        "entity_key_serialization_version: 3\n"
    )
    for number, generation in enumerate((OLD, MIDDLE, NEW)):
        publish_by_hand(workspace, generation, seed=number)
    return workspace


def publish_by_hand(workspace: Workspace, generation: str, seed: int) -> None:
    """The view of one generation, its source and its online rows; `track_content` reads it."""
    write_generation(workspace, generation, TRACKS, seed)
    ids = pq.read_table(workspace.generations / generation / "ids.parquet")
    stamp = pa.array([schema.CONTENT_SINCE] * TRACKS, schema.TIMESTAMP)
    rows = ids.append_column(schema.EVENT_TIMESTAMP, stamp)
    rows = rows.append_column(schema.GENERATION, pa.array([generation] * TRACKS))
    name = schema.semantic_ids_view_name(generation)
    with write_artifact(
        workspace.feature_source(name), Manifest(kind="feature_source", id=name)
    ) as partial:
        pq.write_table(rows, partial / "part-0.parquet")
    sources = (workspace.root / "features").absolute()
    view = definitions.semantic_ids_view(sources, generation, FAMILIES)
    store = open_store(workspace)
    content = definitions.FeatureService(name="track_content", features=[view])
    apply(store, [definitions.track, view, content])
    store.write_to_online_store(name, rows.to_pandas())


def release(workspace: Workspace, release_id: str, generation: str, replaces=None) -> None:
    store = open_store(workspace)
    view = store.get_feature_view(schema.semantic_ids_view_name(generation))
    name = schema.ranker_service_name(release_id)
    apply(
        store,
        [definitions.FeatureService(name=name, features=[view], tags={"release": release_id})],
    )
    workspace.releases.mkdir(exist_ok=True)
    (workspace.releases / f"{release_id}.json").write_text(
        json.dumps(
            {
                "release_id": release_id,
                "generation_id": generation,
                "feature_service": name,
                "replaces": replaces,
                "created_at": datetime(2026, 1, 1, tzinfo=UTC).isoformat(),
            }
        )
    )
    (workspace.releases / "CURRENT").write_text(f"{release_id}\n")


def generations_online(store: FeatureStore, generation: str) -> list:
    name = f"{schema.semantic_ids_view_name(generation)}:{schema.GENERATION}"
    rows = [{"track_id": track} for track in range(1, TRACKS + 1)]
    return store.get_online_features(features=[name], entity_rows=rows).to_dict()[schema.GENERATION]


def published(workspace: Workspace) -> set[str]:
    return {view.tags["generation"] for view in open_store(workspace).list_feature_views()}


@pytest.fixture(params=[PACKED_SQLITE, STOCK_SQLITE], ids=["packed", "stock"])
def workspace(request, tmp_path) -> Workspace:
    return make(tmp_path / "workspace", request.param)


def test_only_what_nobody_names_is_dropped(workspace):
    release(workspace, "release-1", OLD)
    answer = retire(workspace, RetireOptions())
    assert answer["generations"] == [MIDDLE]
    assert answer["kept"] == {
        OLD: ["release release-1"],
        NEW: ["feature service track_content", "those who want the newest generation"],
    }
    store = open_store(workspace)
    assert published(workspace) == {OLD, NEW}
    for kept in (OLD, NEW):
        assert generations_online(store, kept) == [kept] * TRACKS
        assert workspace.feature_source(schema.semantic_ids_view_name(kept)).exists()
    assert not workspace.feature_source(schema.semantic_ids_view_name(MIDDLE)).exists()
    assert (workspace.generations / MIDDLE / "manifest.json").exists()
    names = {source.name for source in store.list_data_sources()}
    assert f"{schema.semantic_ids_view_name(MIDDLE)}_source" not in names
    assert retire(workspace, RetireOptions())["generations"] == []


def test_the_online_rows_are_gone_and_a_new_publish_brings_them_back(workspace):
    def tables() -> set[str]:
        with closing(sqlite3.connect(workspace.root / "online.db")) as connection:
            names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            return {name for (name,) in names if "semantic_ids" in name}

    before = tables()
    retire(workspace, RetireOptions(generation=MIDDLE))
    (gone,) = before - tables()
    assert MIDDLE.replace("-", "_") in gone
    publish_by_hand(workspace, MIDDLE, seed=1)
    store = open_store(workspace)
    assert generations_online(store, MIDDLE) == [MIDDLE] * TRACKS
    assert generations_online(store, OLD) == [OLD] * TRACKS


def test_a_generation_in_use_is_refused_with_its_readers(workspace):
    release(workspace, "release-1", OLD)
    with pytest.raises(ArtifactError, match=rf"generation {OLD} is still read by release rel"):
        retire(workspace, RetireOptions(generation=OLD))
    with pytest.raises(ArtifactError, match=r"read by .*track_content.*newest generation"):
        retire(workspace, RetireOptions(generation=NEW))
    assert published(workspace) == {OLD, MIDDLE, NEW}
    with pytest.raises(InputError, match=r"gen-dddddddddddd is not published; published are"):
        retire(workspace, RetireOptions(generation="gen-dddddddddddd"))
    # The file alone names its generation, as the service alone does.
    service = schema.ranker_service_name("release-1")
    open_store(workspace).delete_feature_service(service)
    with pytest.raises(ArtifactError, match="release-1"):
        retire(workspace, RetireOptions(generation=OLD))
    release(workspace, "release-1", OLD)
    (workspace.releases / "release-1.json").unlink()
    with pytest.raises(ArtifactError, match="release-1"):
        retire(workspace, RetireOptions(generation=OLD))


def test_releases_go_when_they_are_neither_live_nor_the_way_back(workspace):
    release(workspace, "release-1", OLD)
    release(workspace, "release-2", MIDDLE, replaces="release-1")
    with pytest.raises(ArtifactError, match=r"release-2 is live"):
        retire(workspace, RetireOptions(release="release-2"))
    with pytest.raises(ArtifactError, match=r"release-1 is where a rollback of .* release-2 goes"):
        retire(workspace, RetireOptions(release="release-1"))
    release(workspace, "release-3", NEW, replaces="release-2")
    for name in ("CANARY", "SHADOW"):
        (workspace.releases / name).write_text('{"release_id": "release-1", "share": 0.1}')
        with pytest.raises(ArtifactError, match=rf"{name.lower()}; run `crescendo withdraw`"):
            retire(workspace, RetireOptions(release="release-1"))
        (workspace.releases / name).unlink()
    answer = retire(workspace, RetireOptions(release="release-1"))
    assert answer["releases"] == ["release-1"]
    assert not (workspace.releases / "release-1.json").exists()
    services = {service.name for service in open_store(workspace).list_feature_services()}
    assert schema.ranker_service_name("release-1") not in services
    with pytest.raises(InputError, match=r"no release release-1; there are"):
        retire(workspace, RetireOptions(release="release-1"))
    assert retire(workspace, RetireOptions())["generations"] == [OLD]


@pytest.mark.parametrize("step", ["_online", "_source", "_registry"])
def test_cut_off_anywhere_the_next_run_ends_it(tmp_path, monkeypatch, step):
    """An error in the middle stands for a kill: what has been done is on the disk either way."""
    workspace = make(tmp_path / "workspace", PACKED_SQLITE)
    store = open_store(workspace)

    class Killed(Exception):
        pass

    def die(*arguments, **named):
        raise Killed

    with monkeypatch.context() as patch:
        if step == "_online":
            patch.setattr(type(store._get_provider().online_store), "update", die)
        elif step == "_source":
            patch.setattr(job.shutil, "rmtree", die)
        else:
            patch.setattr(type(store.registry), "delete_feature_view", die)
        with pytest.raises(Killed):
            retire(workspace, RetireOptions())
    assert MIDDLE in published(workspace)  # in the registry to the end, so that it is found again
    assert set(retire(workspace, RetireOptions())["generations"]) == {OLD, MIDDLE}
    assert published(workspace) == {NEW}
    assert generations_online(open_store(workspace), NEW) == [NEW] * TRACKS
    left = [path.name for path in (workspace.root / "features").iterdir()]
    assert left == [schema.semantic_ids_view_name(NEW)]


def score(workspace: Workspace, model_id: str) -> None:
    """The view of one retriever's candidates, its source and the row of user 1."""
    columns = {
        schema.USER_ID: pa.array([1]),
        schema.EVENT_TIMESTAMP: pa.array([schema.CONTENT_SINCE], schema.TIMESTAMP),
        schema.CANDIDATE_TRACK_IDS: pa.array([[3, 5]]),
        schema.CANDIDATE_SCORES: pa.array([[2.0, 1.0]], pa.list_(pa.float32())),
        schema.CANDIDATE_MODEL: pa.array([model_id]),
        schema.CANDIDATES_MADE_AT: pa.array([1]),
    }
    rows = pa.table(columns)
    name = schema.candidates_view_name(model_id)
    with write_artifact(
        workspace.feature_source(name), Manifest(kind="feature_source", id=name)
    ) as partial:
        pq.write_table(rows, partial / "part-0.parquet")
    view = definitions.user_candidates_view((workspace.root / "features").absolute(), model_id)
    store = open_store(workspace)
    apply(store, [definitions.user, view])
    packed_store(store).write_table(store.config, view, rows)


def candidates(workspace: Workspace, model_id: str) -> list | None:
    """Online candidates of user 1; None once their view is gone."""
    store, name = open_store(workspace), schema.candidates_view_name(model_id)
    if name not in {view.name for view in store.list_feature_views()}:
        return None
    asked = [f"{name}:{schema.CANDIDATE_TRACK_IDS}"]
    answer = store.get_online_features(features=asked, entity_rows=[{schema.USER_ID: 1}])
    return answer.to_dict()[schema.CANDIDATE_TRACK_IDS][0]


def test_candidates_that_no_release_names_are_dropped(tmp_path):
    workspace = make(tmp_path / "workspace", PACKED_SQLITE)
    models = ["model-released", "model-served", "model-forgotten", "model-newest"]
    for model_id in models:
        score(workspace, model_id)
    release(workspace, "release-1", NEW)
    path = workspace.releases / "release-1.json"
    view = schema.candidates_view_name("model-released")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"candidates_view": view}))
    store = open_store(workspace)
    served = store.get_feature_view(schema.candidates_view_name("model-served"))
    apply(store, [definitions.FeatureService(name="another_team", features=[served])])
    assert retire(workspace, RetireOptions(generation=OLD))["candidates"] == []
    assert retire(workspace, RetireOptions())["candidates"] == ["model-forgotten"]
    assert [candidates(workspace, m) for m in models] == [[3, 5], [3, 5], None, [3, 5]]
    gone = schema.candidates_view_name("model-forgotten")
    assert not workspace.feature_source(gone).exists()
    with closing(sqlite3.connect(workspace.root / "online.db")) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
    assert not any(gone in name for (name,) in tables)
    assert retire(workspace, RetireOptions())["candidates"] == []
    score(workspace, "model-forgotten")  # scored again: they are the newest now
    assert retire(workspace, RetireOptions())["candidates"] == ["model-newest"]


@pytest.mark.redis
@pytest.mark.parametrize(
    "kind", ["redis", "feature_repo.stores.packed_redis.PackedRedisOnlineStore"]
)
def test_redis_rows_of_the_generation_go_and_others_stay(tmp_path, redis_server, kind):
    import redis

    workspace = make(
        tmp_path / "workspace", f'{{type: {kind}, connection_string: "{redis_server}"}}'
    )
    retire(workspace, RetireOptions(generation=MIDDLE))
    store = open_store(workspace)
    for kept in (OLD, NEW):
        assert generations_online(store, kept) == [kept] * TRACKS
    client = redis.Redis.from_url(f"redis://{redis_server}")
    values = []
    for key in client.scan_iter():
        if client.type(key) == b"hash":
            values += client.hvals(key)
        else:
            values.append(client.get(key))
    assert any(NEW.encode() in value for value in values)
    assert not any(MIDDLE.encode() in value for value in values)


def test_only_one_of_generation_and_release_is_asked_for():
    with pytest.raises(InputError, match="expected one of them"):
        RetireOptions(generation="a", release="b")
