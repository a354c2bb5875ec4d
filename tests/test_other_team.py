"""Another team's model: `feast`, the registry and the store classes are all that it needs."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest

from feature_repo import schema
from tests.event_logs import START
from tests.trained import TRACKS, USERS, learnable_log, published_workspace

SCRIPT = Path(__file__).parent / "other_team" / "train_and_rank.py"
LENGTH = 10  # of the sequences that `published_workspace` builds
HIDDEN = ("torch", "ray", "models", "ray_jobs", "serving", "tests")
# What is hidden is not found, as where it was never installed.
RUNNER = f"""
import json, runpy, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HIDDEN}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
print(json.dumps(sorted(sys.modules)))
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return published_workspace(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def labelled():
    """What the other team has: who was offered which track when, and whether they wanted it.

    Most want what is among their last listens, which the log tells without any feature store.
    """
    random = np.random.default_rng(0)
    listens = sorted(
        (row for row in learnable_log() if row["action"] in schema.LISTEN_ACTIONS),
        key=lambda row: (row["event_timestamp"], row["event_id"]),
    )
    rows = []
    for offer in range(1500):
        user = int(random.integers(1, USERS + 1))
        moment = START + timedelta(minutes=float(random.integers(60 * 24, 60 * 24 * 20)))
        heard = [
            row["track_id"]
            for row in listens
            if row["user_id"] == user
            and max(row["event_timestamp"], row["ingested_at"] or START) < moment
        ][-LENGTH:]
        known = heard and offer % 2
        track = int(random.choice(heard)) if known else int(random.integers(1, TRACKS + 1))
        wanted = random.random() < (0.9 if track in heard else 0.1)
        rows.append((user, track, moment, int(wanted)))
    table = pd.DataFrame(rows, columns=["user_id", "track_id", "event_timestamp", "label"])
    table["event_timestamp"] = table["event_timestamp"].astype("datetime64[us, UTC]")
    return table


@pytest.fixture(scope="module")
def script():
    """The example as a module, for its functions."""
    import tests.other_team.train_and_rank as module

    return module


@pytest.fixture(scope="module")
def store(workspace):
    from feast import FeatureStore

    return FeatureStore(repo_path=str(workspace.root))


def test_it_trains_and_ranks_with_feast_and_the_store_classes_alone(workspace, labelled, tmp_path):
    labelled.to_parquet(tmp_path / "rows.parquet")
    arguments = ["--repo", str(workspace.root), "--rows", str(tmp_path / "rows.parquet")]
    arguments += ["--user", "7", "--tracks", "1,2,3,4,5"]
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    answer, modules = map(json.loads, done.stdout.strip().splitlines()[-2:])
    assert answer["rows"] == len(labelled)
    # The best that can be known is 0.9; with a history of another moment it is far less.
    assert answer["auc"] > 0.8
    assert {row["track_id"] for row in answer["ranked"]} == {1, 2, 3, 4, 5}
    scores = [row["score"] for row in answer["ranked"]]
    assert scores == sorted(scores, reverse=True)
    assert not {name for name in modules if name.split(".")[0] in HIDDEN}
    assert {name for name in modules if name.startswith("feature_repo.stores.")} >= {
        "feature_repo.stores.asof",
        "feature_repo.stores.packed_sqlite",
    }
    assert {name for name in modules if name.split(".")[0] == "feature_repo"} <= {
        "feature_repo",
        "feature_repo.durable_files",
        "feature_repo.errors",
        "feature_repo.feast_import",
        "feature_repo.parquet_form",
        "feature_repo.schema",
        *(name for name in modules if name.split(".")[:2] == ["feature_repo", "stores"]),
    }


@pytest.mark.parametrize("user", [1, 7, 40, 10_000])
def test_what_it_reads_online_is_what_offline_says_of_now(store, script, user):
    tracks = [*range(1, TRACKS + 1), 10_000]
    online = script.online_rows(store, user, tracks)
    asked = pd.DataFrame(
        {"user_id": user, "track_id": tracks, "event_timestamp": datetime.now(UTC)}
    )
    offline = script.offline_rows(store, asked)
    assert set(online.columns) == set(offline.columns) - {"event_timestamp"}
    for name in online.columns:
        for got, expected in zip(online[name], offline[name], strict=True):
            assert plain(got) == plain(expected), name
    known = user <= 40
    assert (plain(online["seq_track_ids"][0]) is not None) == known


def plain(value):
    """Feast's frames spell nothing as None or NaN, lists as lists or arrays."""
    if isinstance(value, list | np.ndarray):
        return list(value)
    return None if value is None or value != value else value


def test_the_registry_describes_everything(store):
    views, services = store.list_feature_views(), store.list_feature_services()
    assert {view.name for view in views} >= {
        schema.USER_SEQUENCE,
        schema.USER_STATS,
        schema.TRACK_STATS,
    }
    assert {service.name for service in services} >= {"track_content", "user_taste"}
    entities = [entity for entity in store.list_entities() if entity.name != "__dummy"]
    for thing in [*views, *services, *entities]:
        assert thing.description, thing.name
        assert thing.owner, thing.name
        assert thing.tags, thing.name
    for view in views:
        for feature in view.features:
            assert feature.description, f"{view.name}:{feature.name}"
            assert feature.tags, f"{view.name}:{feature.name}"


@pytest.mark.slow
def test_feast_ui_shows_them(workspace, free_tcp_port):
    if find_spec("grpc_health") is None:
        pytest.skip("feast ui needs `pip install 'feast[grpcio]'`: grpc_health is missing")
    feast = Path(sys.executable).parent / "feast"
    command = [str(feast), "-c", str(workspace.root), "ui", "-h", "127.0.0.1"]
    command += ["-p", str(free_tcp_port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for line in server.stdout:  # it says when it listens
            if "Uvicorn running" in line:
                break
        url = f"http://127.0.0.1:{free_tcp_port}"
        assert httpx.get(url).status_code == 200
        for path, kind, names in (
            ("feature_views", "featureViews", {schema.USER_SEQUENCE, schema.TRACK_STATS}),
            ("feature_services", "featureServices", {"track_content", "user_taste"}),
        ):
            asked = {"project": "crescendo", "limit": 100}
            answer = httpx.get(f"{url}/api/v1/{path}", params=asked).json()
            shown = {item["spec"]["name"]: item["spec"] for item in answer[kind]}
            assert set(shown) >= names
            for name, spec in shown.items():
                assert spec["description"], name
                assert spec["owner"] == "crescendo", name
                assert spec["tags"], name
                for feature in spec["features"] if path == "feature_views" else ():
                    assert feature["description"], f"{name}:{feature['name']}"
                    assert feature["tags"], f"{name}:{feature['name']}"
    finally:
        server.terminate()
        server.wait()
