"""The feature store end to end: apply, materialize, point-in-time join, online reads."""

import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from feature_repo import item_table, schema
from feature_repo.errors import ArtifactError, InputError
from feature_repo.item_table import read_codes_offline, read_codes_online
from feature_repo.offline import point_in_time
from feature_repo.store import open_store, read_online
from feature_repo.workspace import Workspace
from models import batch
from ray_jobs.publish import publish
from ray_jobs.sequences import SequenceOptions, sequences
from tests.event_logs import START, event, write_events
from tests.generations import FAMILIES, LEVELS, write_generation

GENERATION = "gen-aaaaaaaaaaaa"
USERS, TRACKS = 12, 30


def random_log(seed: int) -> list[dict]:
    random = np.random.default_rng(seed)
    return [
        event(
            number,
            int(random.integers(1, USERS)),
            int(random.integers(1, TRACKS + 1)),
            int(random.integers(0, 3000)),
            str(random.choice(schema.ACTIONS)),
            float(random.integers(1, 600)) if random.random() < 0.1 else None,
        )
        for number in range(600)
    ]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    write_events(workspace, random_log(0))
    write_generation(workspace, GENERATION, TRACKS)
    sequences(workspace, SequenceOptions(length=5))
    result = publish(workspace)
    return workspace, result


def history(store, user_id, moment):
    """The sequence that a training row of this user and moment sees."""
    rows = pd.DataFrame({"user_id": [user_id], "event_timestamp": [pd.Timestamp(moment)]})
    features = [schema.SEQUENCE_TRACK_IDS]
    (table,) = point_in_time(store, rows, schema.USER_SEQUENCE, features)
    return table[schema.SEQUENCE_TRACK_IDS].to_pylist()[0] or []


def test_publish_says_what_it_did(published):
    _, result = published
    assert result["generation_id"] == GENERATION
    assert len(result["views"]) == 4
    assert result["rows"]["track_semantic_ids_gen_aaaaaaaaaaaa"] == TRACKS
    assert result["feature_services"] == ["track_content", "user_taste"]


def test_point_in_time_join_equals_brute_force(published):
    workspace, _ = published
    log = random_log(0)
    random = np.random.default_rng(1)
    rows = pd.DataFrame(
        {
            "row": np.arange(300),
            "user_id": random.integers(1, USERS + 2, 300),  # the last two were never seen
            "event_timestamp": pd.to_datetime(
                [START + timedelta(minutes=int(m)) for m in random.integers(0, 4000, 300)]
            ),
        }
    )
    store = open_store(workspace)
    features = [schema.SEQUENCE_TRACK_IDS, schema.SEQUENCE_TIMESTAMPS]
    tables = list(point_in_time(store, rows, schema.USER_SEQUENCE, features))
    got = pd.concat([table.to_pandas() for table in tables]).sort_values("row")
    assert got["row"].tolist() == rows["row"].tolist()
    for asked, found in zip(rows.itertuples(), got.itertuples(), strict=True):
        seen = [
            e
            for e in log
            if e["user_id"] == asked.user_id
            and e["action"] != "skip"
            and max(e["event_timestamp"], e["ingested_at"] or START) < asked.event_timestamp
        ]
        seen.sort(key=lambda e: (e["event_timestamp"], e["event_id"]))
        expected = [e["track_id"] for e in seen[-5:]]
        listed = getattr(found, schema.SEQUENCE_TRACK_IDS)
        assert ([] if listed is None else list(listed)) == expected


def test_a_row_sees_neither_itself_nor_the_future_nor_a_tie_nor_a_late_arrival(tmp_path):
    """The planted events that must not change what a training row at minute 10 sees."""
    before = [event(1, 7, 1, 5), event(2, 7, 2, 8), event(3, 7, 3, 10)]
    planted = [
        event(4, 7, 4, 10),  # a tie with the row's own event
        event(5, 7, 5, 11),  # the future
        event(6, 7, 6, 6, late_minutes=4),  # happened before, arrived at the row's own moment
        event(7, 7, 7, 7, late_minutes=60),  # happened before, arrived after
    ]
    moment = START + timedelta(minutes=10)
    seen = []
    for number, log in enumerate((before, before + planted)):
        workspace = Workspace(tmp_path / str(number))
        write_events(workspace, log)
        write_generation(workspace, GENERATION, 8)
        sequences(workspace, SequenceOptions(length=5))
        publish(workspace)
        store = open_store(workspace)
        seen.append(history(store, 7, moment))
        after = history(store, 7, moment + timedelta(seconds=1))
    assert seen == [[1, 2], [1, 2]]
    assert after == [1, 6, 2, 3, 4]


def test_online_row_is_the_offline_row_of_now(published):
    workspace, _ = published
    store = open_store(workspace)
    names = [f"{schema.USER_SEQUENCE}:{name}" for name in schema.SEQUENCE_COLUMNS]
    users = list(range(1, USERS))
    online = read_online(store, "user_id", users, names)
    for position, user in enumerate(users):
        assert online[schema.SEQUENCE_TRACK_IDS][position] == history(
            store, user, START + timedelta(days=60)
        )


def test_online_and_offline_codes_agree_and_missing_stays_missing(published):
    workspace, _ = published
    store = open_store(workspace)
    ids, offline = read_codes_offline(store, GENERATION, FAMILIES, LEVELS)
    asked = np.append(ids, 10_000)
    online_ids, online = read_codes_online(store, GENERATION, FAMILIES, LEVELS, asked)
    np.testing.assert_array_equal(online_ids, ids)
    np.testing.assert_array_equal(online, offline)
    assert (offline[0, 1] == -1).all()  # track 1 has no audio
    assert (offline[1:] >= 0).all()


def test_two_generations_live_side_by_side(published):
    workspace, _ = published
    other = "gen-bbbbbbbbbbbb"
    store = open_store(workspace)
    before = read_codes_online(store, GENERATION, FAMILIES, LEVELS, np.arange(1, TRACKS + 1))
    write_generation(workspace, other, TRACKS, seed=1)
    publish(workspace, other)
    store = open_store(workspace)
    after = read_codes_online(store, GENERATION, FAMILIES, LEVELS, np.arange(1, TRACKS + 1))
    newer = read_codes_online(store, other, FAMILIES, LEVELS, np.arange(1, TRACKS + 1))
    np.testing.assert_array_equal(before[1], after[1])
    assert (after[1] != newer[1]).any()


def test_wrong_offline_store_is_refused(tmp_path):
    settings = {"project": "p", "offline_store": {"type": "dask"}}
    (tmp_path / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(InputError, match=r"'dask'.*set it to duckdb"):
        open_store(Workspace(tmp_path))


def test_publish_needs_a_generation_and_sequences(tmp_path):
    workspace = Workspace(tmp_path)
    with pytest.raises(ArtifactError, match="crescendo quantize"):
        publish(workspace)
    write_generation(workspace, GENERATION, 3)
    with pytest.raises(InputError, match="sequences"):
        publish(workspace)


def test_a_copied_workspace_does_not_read_the_original(published, tmp_path):
    workspace, _ = published
    copy = Workspace(tmp_path / "copy")
    shutil.copytree(workspace.root, copy.root)
    with pytest.raises(ArtifactError, match=r"moved or copied.*crescendo publish"):
        history(open_store(copy), 1, START)
    publish(copy, GENERATION)
    assert history(open_store(copy), 1, START) == []


def test_an_unpublished_generation_names_the_command(published):
    workspace, _ = published
    with pytest.raises(ArtifactError, match=r"gen_dddddddddddd is not in .*crescendo publish"):
        read_codes_offline(open_store(workspace), "gen-dddddddddddd", FAMILIES, LEVELS)


@pytest.mark.parametrize("name", ["o'brien", "br[1]", "s3://bucket/x"])
def test_a_workspace_that_globs_or_quotes_is_refused(name):
    with pytest.raises(InputError, match="workspace must be a local folder"):
        Workspace(Path(name))


def test_a_missing_code_is_spelled_alike_in_store_and_model():
    """Neither package may import the other: the two constants must agree."""
    assert item_table.MISSING_CODE == batch.MISSING_CODE
