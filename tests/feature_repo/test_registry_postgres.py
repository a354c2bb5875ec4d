"""The registry in a real PostgreSQL: shared, cached, gone and back, slow, and never a password."""

import os
import signal
import traceback
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import yaml
from feast import FeatureStore
from feast.feature_view import FeatureViewState
from feast.protos.feast.core.FeatureView_pb2 import FeatureView as FeatureViewProto
from sqlalchemy import create_engine, text

from feature_repo import feature_definitions as definitions
from feature_repo import schema
from feature_repo.errors import ArtifactError, InputError
from feature_repo.published_stores import set_stores
from feature_repo.store import apply, find_view, open_store
from feature_repo.store_settings import SETTINGS_FILE, STORE_SETTINGS, sql_registry
from feature_repo.workspace import Workspace
from tests.event_logs import START
from tests.servers_sql_s3 import PASSWORD

COLUMNS = schema.stats_columns("user")
PLAYS = f"{schema.USER_STATS}:{COLUMNS[0]}"


def workspace_on(postgres, folder) -> Workspace:
    """A workspace whose registry is that PostgreSQL, the password taken from the environment."""
    url = postgres.url.replace(PASSWORD, "${REGISTRY_PASSWORD}")
    settings = {
        **STORE_SETTINGS,
        "registry": sql_registry(url),
    }
    folder.mkdir(exist_ok=True)
    mine = folder / "mine.yaml"
    mine.write_text(yaml.safe_dump(settings))
    workspace = Workspace(folder)
    set_stores(workspace, str(mine))
    return workspace


def publish_plays(workspace: Workspace, plays: dict[int, int]) -> FeatureStore:
    """Registers `user_stats` and writes these counts for these users."""
    store = open_store(workspace)
    view = definitions.stats_view(workspace.published_sources, definitions.user)
    apply(store, [definitions.user, view])
    rows = pd.DataFrame({"user_id": list(plays), "event_timestamp": START})
    for column in COLUMNS:
        rows[column] = np.array(list(plays.values()), dtype=np.int64)
    store.write_to_online_store(schema.USER_STATS, rows)
    return store


def read_plays(store: FeatureStore, user: int) -> int | None:
    answer = store.get_online_features(features=[PLAYS], entity_rows=[{"user_id": user}])
    return answer.to_dict()[COLUMNS[0]][0]


@pytest.fixture(autouse=True)
def _registry_password(monkeypatch):
    monkeypatch.setenv("REGISTRY_PASSWORD", PASSWORD)


def test_another_process_s_plain_feast_reads_what_was_registered(postgres, tmp_path):
    workspace = workspace_on(postgres, tmp_path / "w")
    publish_plays(workspace, {7: 3})
    settings = (workspace.root / SETTINGS_FILE).read_text()
    assert PASSWORD not in settings
    assert "cache_mode: thread" in settings
    other = FeatureStore(repo_path=str(workspace.root))
    assert [view.name for view in other.list_feature_views()] == [schema.USER_STATS]
    assert read_plays(other, 7) == 3


def test_reads_go_on_while_the_registry_is_down_and_see_it_when_it_is_back(postgres, tmp_path):
    workspace = workspace_on(postgres, tmp_path / "w")
    writer = publish_plays(workspace, {7: 3})
    reader = open_store(workspace)
    assert read_plays(reader, 7) == 3
    postgres.stop()
    reader.refresh_registry()  # what its thread does once a minute: fails, and keeps what it has
    assert read_plays(reader, 7) == 3
    assert read_plays(writer, 7) == 3
    away = r"registry at postgresql\+psycopg://postgres:\*\*\*@127.* cannot be reached"
    with pytest.raises(InputError, match=away):
        open_store(workspace)
    with pytest.raises(InputError, match=away):
        apply(writer, [definitions.user])
    with pytest.raises(InputError, match=away):
        find_view(writer, schema.USER_STATS)
    postgres.start()
    view = definitions.stats_view(workspace.published_sources, definitions.track)
    apply(open_store(workspace), [definitions.track, view])
    reader.refresh_registry()
    assert read_plays(reader, 7) == 3
    names = {found.name for found in reader.list_feature_views(allow_cache=True)}
    assert names == {schema.USER_STATS, schema.TRACK_STATS}
    # The connections that PostgreSQL dropped are not handed out again.
    assert find_view(writer, schema.TRACK_STATS).name == schema.TRACK_STATS


def test_an_applied_view_is_there_at_once_though_a_thread_renews_the_cache(postgres, tmp_path):
    store = publish_plays(workspace_on(postgres, tmp_path / "w"), {1: 1})
    assert read_plays(store, 1) == 1


def test_reads_go_on_while_a_view_is_materialized_and_after_that_was_killed(postgres, tmp_path):
    workspace = workspace_on(postgres, tmp_path / "w")
    publish_plays(workspace, {7: 3})
    # As another Feast leaves the view in the registry while it works, and for good when killed.
    url = postgres.url.replace("postgresql://", "postgresql+psycopg://")
    with create_engine(url).begin() as connection:
        (row,) = connection.execute(text("SELECT feature_view_proto FROM feature_views"))
        proto = FeatureViewProto.FromString(bytes(row[0]))
        proto.meta.state = FeatureViewState.MATERIALIZING.to_proto()
        update = text("UPDATE feature_views SET feature_view_proto = :proto")
        connection.execute(update, {"proto": proto.SerializeToString()})
    reader = open_store(workspace)
    found = reader.get_feature_view(schema.USER_STATS)
    assert found.state == FeatureViewState.MATERIALIZING
    assert read_plays(reader, 7) == 3


@pytest.mark.parametrize("broken", ["stopped", "frozen", "password", "database"])
def test_a_registry_that_cannot_be_used_is_named_and_its_password_is_not(
    broken, postgres, tmp_path, monkeypatch
):
    workspace = workspace_on(postgres, tmp_path / "w")
    written = (workspace.root / SETTINGS_FILE).read_text()
    pid = postgres.process_id
    if broken == "stopped":
        postgres.stop()
    elif broken == "frozen":  # it takes connections and never answers: bounded by connect_timeout
        os.kill(pid, signal.SIGSTOP)
    elif broken == "password":
        monkeypatch.setenv("REGISTRY_PASSWORD", f"not-{PASSWORD}")
    else:
        (workspace.root / SETTINGS_FILE).write_text(
            written.replace(f"/{postgres.database}\n", "/nowhere\n")
        )
    try:
        with pytest.raises(InputError, match=rf"127.0.0.1:{postgres.port}/.*start it") as raised:
            open_store(workspace)
    finally:
        if broken == "frozen":
            os.kill(pid, signal.SIGCONT)
    shown = "".join(traceback.format_exception(raised.value))
    assert PASSWORD not in shown


def test_first_users_at_the_same_moment_all_find_their_tables(postgres, tmp_path):
    workspaces = [workspace_on(postgres, tmp_path / str(number)) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(open_store, workspaces))
    assert [store.list_feature_views() for store in stores] == [[], [], [], []]


def test_a_view_of_another_workspace_is_not_taken_for_ones_own(postgres, tmp_path):
    publish_plays(workspace_on(postgres, tmp_path / "a"), {7: 3})
    other = open_store(workspace_on(postgres, tmp_path / "b"))
    with pytest.raises(ArtifactError, match=r"user_stats was published for .*/a/features/"):
        find_view(other, schema.USER_STATS)
