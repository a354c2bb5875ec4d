"""The jobs on a workspace in an object store: made on one machine, read and ranked on another."""

import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from feast import FeatureStore

from feature_repo import schema
from feature_repo.offline import point_in_time
from feature_repo.published_stores import set_stores
from feature_repo.store import open_store, read_online
from feature_repo.store_settings import ASOF, PACKED_SQLITE, STORE_SETTINGS
from feature_repo.working_copy import working_copy
from ray_jobs.publish import publish
from ray_jobs.sequences import SequenceOptions, sequences
from tests.event_logs import START, event, write_events
from tests.generations import write_generation
from tests.trained import GENERATION, TRACKS, USERS, learnable_log, train_small

LENGTH = 10
STORES = {
    **STORE_SETTINGS,
    "online_store": {"type": PACKED_SQLITE, "path": "online.db"},
    "offline_store": {"type": ASOF},
}
FEATURE = f"{schema.USER_SEQUENCE}:{schema.SEQUENCE_TRACK_IDS}"


@pytest.fixture
def machine(object_store, tmp_path):
    """`machine(name, **options)`: the workspace as that machine works on it."""

    def copy(name: str, **options):
        return working_copy(object_store.uri, cache=tmp_path / name, **options)

    return copy


def make(machine, log: list[dict], tmp_path) -> None:
    """Everything that `publish` needs and does, on machine a."""
    settings = tmp_path / "stores.yaml"
    settings.write_text(yaml.safe_dump(STORES))
    with machine("a") as workspace:
        set_stores(workspace, str(settings))
        write_events(workspace, log)
        write_generation(workspace, GENERATION, TRACKS)
        sequences(workspace, SequenceOptions(length=LENGTH))
        publish(workspace)


def listened(log: list[dict], user: int, moment) -> list[int]:
    """Brute force over the log: the last listens that had happened and arrived before."""
    seen = [
        e
        for e in log
        if e["user_id"] == user
        and e["action"] in schema.LISTEN_ACTIONS
        and max(e["event_timestamp"], e["ingested_at"] or START) < moment
    ]
    seen.sort(key=lambda e: (e["event_timestamp"], e["event_id"]))
    return [e["track_id"] for e in seen[-LENGTH:]]


def rows_at(log: list[dict]) -> pd.DataFrame:
    """A moment for each user, somewhere in the log."""
    random = np.random.default_rng(3)
    moments = sorted(e["event_timestamp"] for e in log)
    drawn = random.integers(0, len(moments), USERS)
    return pd.DataFrame(
        {
            "row": np.arange(USERS),
            "user_id": np.arange(1, USERS + 1),
            "event_timestamp": pd.to_datetime([moments[n] for n in drawn]),
        }
    )


def test_another_machine_reads_online_and_point_in_time(machine, object_store, tmp_path):
    log = learnable_log(events=800)
    make(machine, log, tmp_path)
    end = max(max(e["event_timestamp"], e["ingested_at"] or START) for e in log)
    after = end + pd.Timedelta(days=1)
    users = list(range(1, USERS + 1))
    rows = rows_at(log)
    expected = [listened(log, r.user_id, r.event_timestamp) for r in rows.itertuples()]
    with machine("b", read_only=True) as workspace:
        store = open_store(workspace)
        source = store.get_feature_view(schema.USER_SEQUENCE).batch_source.path
        assert source == f"{object_store.uri}/features/user_sequence/*.parquet"
        online = read_online(store, "user_id", users, [FEATURE])[schema.SEQUENCE_TRACK_IDS]
        assert [ids or [] for ids in online] == [listened(log, user, after) for user in users]
        tables = point_in_time(store, rows, schema.USER_SEQUENCE, [schema.SEQUENCE_TRACK_IDS])
        got = pd.concat([t.to_pandas() for t in tables]).sort_values("row")
        column = got[schema.SEQUENCE_TRACK_IDS]
        assert [[] if ids is None else list(ids) for ids in column] == expected
        # Another team has the settings and the registry, and nothing else of the workspace.
        bare = tmp_path / "bare"
        bare.mkdir()
        for name in ("feature_store.yaml", "registry.db"):
            shutil.copy(workspace.root / name, bare)
    answer = FeatureStore(repo_path=str(bare)).get_historical_features(
        entity_df=rows, features=[FEATURE]
    )
    got = answer.to_df().sort_values("row")[schema.SEQUENCE_TRACK_IDS]
    assert [[] if ids is None else list(ids) for ids in got] == expected


def test_a_second_publish_from_another_machine_reaches_the_first(machine, tmp_path):
    log = learnable_log(events=300)
    make(machine, log, tmp_path)
    minute = (max(e["event_timestamp"] for e in log) - START).total_seconds() / 60 + 100
    log.append(event(10_000, 7, 3, minute))
    with machine("b") as workspace:
        write_events(workspace, log)
        sequences(workspace, SequenceOptions(length=LENGTH))
        publish(workspace)
    with machine("a", read_only=True) as workspace:
        online = read_online(open_store(workspace), "user_id", [7], [FEATURE])
        assert online[schema.SEQUENCE_TRACK_IDS][0][-1] == 3
        moment = START + pd.Timedelta(minutes=minute + 1)
        rows = pd.DataFrame({"user_id": [7], "event_timestamp": [moment]})
        (table,) = point_in_time(
            open_store(workspace), rows, schema.USER_SEQUENCE, [schema.SEQUENCE_TRACK_IDS]
        )
        found = table[schema.SEQUENCE_TRACK_IDS].to_pylist()[0]
        assert found == online[schema.SEQUENCE_TRACK_IDS][0] == listened(log, 7, moment)


@pytest.mark.slow
def test_trained_on_one_machine_ranked_on_another(machine, tmp_path):
    from serving.ranker import ReleaseRanker
    from serving.releases import live_release, make_release

    make(machine, learnable_log(), tmp_path)
    with machine("a") as workspace:
        model_id = train_small(workspace, epochs=1)["model_id"]
        made = make_release(workspace, model_id)
    with machine("b", read_only=True) as workspace:
        release = live_release(workspace)
        assert release.release_id == made["release_id"]
        ranking = ReleaseRanker(workspace, release).rank(7, [1, 2, 3, 4, 5])
    assert sorted(ranking.track_ids) == [1, 2, 3, 4, 5]
    assert ranking.user_known
