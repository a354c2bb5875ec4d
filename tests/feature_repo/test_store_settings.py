"""Which stores a workspace uses: what is accepted, refused, hidden, and said when it changes."""

import json
import socket
import stat
import threading
from pathlib import Path

import pytest
import yaml
from feast import FeatureStore

from feature_repo.errors import ArtifactError, InputError
from feature_repo.published_stores import end_publishing, set_stores
from feature_repo.store_connections import check_online_store
from feature_repo.store_settings import (
    ASOF,
    PACKED_REDIS,
    STORE_SETTINGS,
    check_settings,
    has_password,
    hide_passwords,
    parse_stores,
    read_settings,
)
from feature_repo.workspace import LOCATION_FILE, Workspace

SECRET = "s3cr3t"


def settings_with(**changes) -> str:
    return yaml.safe_dump({**STORE_SETTINGS, **changes})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offline_store": {"type": "dask"}}, r"offline_store.type is 'dask'.*set it to duckdb or"),
        ({"offline_store": "file"}, r"'file', which returns wrong"),
        ({"offline_store": {"type": "ray"}}, r"'ray', which returns wrong"),
        (
            {"offline_store": {"type": "feast.infra.offline_stores.dask.DaskOfflineStore"}},
            r"DaskOfflineStore', which returns wrong",
        ),
        ({"batch_engine": "ray.engine"}, r"batch_engine.type is 'ray.engine'.*set it to local"),
        ({"batch_engine": {"type": "ray.engine"}}, r"batch_engine.type is 'ray.engine'"),
        (
            {"online_store": {"type": "sqlite", "vector_enabled": True}},
            r"online_store.vector_enabled is true.*set it to false",
        ),
        ({"online_store": 7}, r"online_store: Input should be a valid dictionary"),
        ({"project": ""}, r"project: String should have at least 1 character"),
    ],
)
def test_settings_with_wrong_results_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        check_settings(settings_with(**change), "feature_store.yaml")


def test_a_missing_offline_store_is_feasts_default_and_refused():
    text = yaml.safe_dump({"project": "p", "registry": "registry.db"})
    with pytest.raises(InputError, match=r"'dask'"):
        check_settings(text, "f.yaml")


@pytest.mark.parametrize("offline", ["duckdb", ASOF])
def test_right_stores_are_accepted(offline):
    settings = check_settings(settings_with(offline_store={"type": offline}), "f.yaml")
    assert settings.offline_store["type"] == offline


def test_text_that_is_not_yaml_is_named_without_its_content():
    with pytest.raises(InputError, match=r"f\.yaml is not YAML, line 2") as raised:
        check_settings(f"project: p\n  password: [{SECRET}", "f.yaml")
    assert SECRET not in str(raised.value)


def test_redis_address_becomes_feast_settings():
    text = parse_stores(
        f"rediss://reader:{SECRET}@cache.example:6400/3"
        "?registry=postgresql://feast@db.example/feast%3Fsslmode=require&project=radio"
    )
    settings = check_settings(text, "--stores")
    assert settings.project == "radio"
    assert settings.online_store == {
        "type": PACKED_REDIS,
        "connection_string": f"cache.example:6400,db=3,ssl=true,username=reader,password={SECRET}",
    }
    registry = settings.registry
    assert registry["path"] == "postgresql+psycopg://feast@db.example/feast?sslmode=require"
    assert registry["cache_mode"] == "thread"
    assert registry["serve_features_while_materializing"] is True
    assert registry["sqlalchemy_config_kwargs"]["connect_args"]["connect_timeout"] == 5
    assert SECRET not in str(settings.addresses())
    # Feast itself takes every setting.
    from feast.repo_config import RepoConfig

    config = RepoConfig(**yaml.safe_load(text))
    assert config.registry.path == registry["path"]


@pytest.mark.parametrize(
    ("stores", "message"),
    [
        ("missing.yaml", "no such file"),
        ("redis://", "not a Redis address"),
        ("http://host/0", "not a Redis address"),
        ("redis://host:99999/0", "[Pp]ort"),
        ("redis://host/users", "database is 'users'"),
        ("redis://host/0?regsitry=x", "unknown option regsitry"),
        ("redis://:a%2Cb@host/0", "must not contain a comma"),
        (f"redis://:{SECRET}@host/x", "database is 'x'"),
    ],
)
def test_wrong_addresses_are_refused_without_the_password(stores, message):
    with pytest.raises(InputError, match=message) as raised:
        parse_stores(stores)
    assert SECRET not in str(raised.value)


def test_passwords_come_from_the_environment(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path)
    with pytest.raises(InputError, match="variable CACHE_PASSWORD is not set; export it"):
        set_stores(workspace, "redis://:${CACHE_PASSWORD}@127.0.0.1:6379/0")
    monkeypatch.setenv("CACHE_PASSWORD", SECRET)
    set_stores(workspace, "redis://:${CACHE_PASSWORD}@127.0.0.1:6379/0")
    path = tmp_path / "feature_store.yaml"
    assert SECRET not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert f"password={SECRET}" in read_settings(tmp_path).online_store["connection_string"]


def test_a_password_written_out_is_its_owners_alone(tmp_path):
    workspace = Workspace(tmp_path)
    answer = set_stores(workspace, f"redis://:{SECRET}@127.0.0.1:6379/0")
    assert SECRET not in json.dumps(answer)
    path = tmp_path / "feature_store.yaml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    read_settings(tmp_path)
    path.chmod(0o640)
    with pytest.raises(InputError, match="chmod 600") as raised:
        read_settings(tmp_path)
    assert SECRET not in str(raised.value)


def test_a_password_is_not_sent_to_an_object_store(tmp_path):
    (tmp_path / LOCATION_FILE).write_text("s3://lake/music")
    with pytest.raises(InputError, match=r"would be stored in s3://lake/music") as raised:
        set_stores(Workspace(tmp_path), f"redis://:{SECRET}@127.0.0.1:6379/0")
    assert SECRET not in str(raised.value)
    assert not (tmp_path / "feature_store.yaml").exists()


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        (f"redis://:{SECRET}@host/0", "redis://:***@host/0"),
        (f"postgresql://u:{SECRET}@h/d and more", "postgresql://u:***@h/d and more"),
        (f"host:6379,password={SECRET},db=1", "host:6379,password=***,db=1"),
        ("redis://host:6379/0", "redis://host:6379/0"),
    ],
)
def test_passwords_are_hidden(text, hidden):
    assert hide_passwords(text) == hidden
    assert has_password(text) == (SECRET in text)


def test_names_in_place_of_passwords_are_none():
    assert not has_password("a: redis://:${P}@host\nb: h:1,password=${P}\npassword: ${P}\nx: 1")
    assert has_password("password: abc")


def test_a_settings_file_is_taken_as_it_is(tmp_path):
    workspace = Workspace(tmp_path / "w")
    mine = tmp_path / "feature_store.redis.yaml"
    mine.write_text("# ours\n" + settings_with(project="ours"))
    assert set_stores(workspace, str(mine))["changed"]
    assert (workspace.root / "feature_store.yaml").read_text() == mine.read_text()
    assert not set_stores(workspace, str(mine))["changed"]


def test_the_example_file_says_what_the_address_says(monkeypatch):
    example = Path(__file__).parents[2] / "feature_repo" / "feature_store.redis.yaml"
    for name in ("CRESCENDO_REGISTRY_PASSWORD", "CRESCENDO_REDIS_PASSWORD"):
        monkeypatch.setenv(name, SECRET)
    assert not has_password(example.read_text())
    stores = (
        "redis://:${CRESCENDO_REDIS_PASSWORD}@redis:6379/0?registry="
        "postgresql://feast:${CRESCENDO_REGISTRY_PASSWORD}@postgres:5432/feast"
    )
    written = check_settings(example.read_text(), example)
    assert written == check_settings(parse_stores(stores), "--stores")


def test_refused_settings_leave_the_old_ones(tmp_path):
    workspace = Workspace(tmp_path / "w")
    read_settings(workspace.root)
    before = (workspace.root / "feature_store.yaml").read_text()
    bad = tmp_path / "bad.yaml"
    bad.write_text(settings_with(offline_store={"type": "dask"}))
    with pytest.raises(InputError, match="wrong point-in-time rows"):
        set_stores(workspace, str(bad))
    assert (workspace.root / "feature_store.yaml").read_text() == before


def test_changed_stores_are_said_and_need_publishing(tmp_path):
    from feature_repo.store import open_store

    workspace = Workspace(tmp_path)
    open_store(workspace, publishing=True)
    end_publishing(tmp_path)
    open_store(workspace)
    other = tmp_path / "other.yaml"
    other.write_text(settings_with(online_store={"type": "sqlite", "path": "other.db"}))
    answer = set_stores(workspace, str(other))
    assert answer["changed"]
    assert answer["publish_needed"]
    with pytest.raises(
        ArtifactError, match=r"PackedSqliteOnlineStore online.db to sqlite other.db.*publish"
    ):
        open_store(workspace)
    open_store(workspace, publishing=True)
    with pytest.raises(ArtifactError, match="publish"):
        open_store(workspace)  # it was begun, not ended
    end_publishing(tmp_path)
    open_store(workspace)
    assert not set_stores(workspace, str(other))["publish_needed"]


def test_an_edited_file_is_noticed_too(tmp_path):
    from feature_repo.store import open_store

    workspace = Workspace(tmp_path)
    end_publishing(tmp_path)
    open_store(workspace)
    path = tmp_path / "feature_store.yaml"
    path.write_text(path.read_text().replace("registry.db", "another.db"))
    with pytest.raises(ArtifactError, match=r"from registry\.db to another\.db"):
        open_store(workspace)


def test_written_settings_open_in_plain_feast(tmp_path):
    read_settings(tmp_path)
    store = FeatureStore(repo_path=str(tmp_path))
    assert store.project == STORE_SETTINGS["project"]
    assert store.list_feature_views() == []


def test_an_unreachable_redis_is_named_at_once(tmp_path):
    from tests.servers_sql_s3 import free_port

    stores = f"redis://:{SECRET}@127.0.0.1:{free_port()}/0"
    settings = check_settings(parse_stores(stores), "--stores")
    with pytest.raises(InputError, match=r"redis 127.0.0.1:\d+,.* cannot be reached") as raised:
        check_online_store(settings)
    assert SECRET not in str(raised.value)


def test_a_killed_write_leaves_the_old_settings(tmp_path):
    """The file is replaced by a rename: what a killed writer left beside it does not matter."""
    read_settings(tmp_path)
    left = f".feature_store.yaml.{socket.gethostname()}.{threading.get_native_id()}"
    (tmp_path / left).write_text("project: half")
    set_stores(Workspace(tmp_path), "redis://127.0.0.1:6379/0")
    assert read_settings(tmp_path).project == "crescendo"
    assert [path.name for path in tmp_path.iterdir()] == ["feature_store.yaml"]
