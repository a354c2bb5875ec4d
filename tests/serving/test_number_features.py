"""Training row = served vector, numbers included: the two paths meet at one moment."""

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from feature_repo import schema
from feature_repo.errors import ArtifactError
from feature_repo.online import packed_store
from feature_repo.store import open_store
from feature_repo.store_settings import PACKED_SQLITE, STORE_SETTINGS
from feature_repo.workspace import Workspace
from ray_jobs.evaluate import OfflineRequest, score_offline
from ray_jobs.materialize import materialize
from ray_jobs.materialize_options import MaterializeOptions
from ray_jobs.number_features import FEATURE_GROUPS, feature_references
from ray_jobs.publish import publish
from ray_jobs.sequences import SequenceOptions, sequences
from ray_jobs.training_set import TrainingSetOptions, training_set
from ray_jobs.training_stream import read_item_side
from serving.ranker import ReleaseRanker
from serving.releases import live_release, make_release
from tests.event_logs import START, event, write_events
from tests.generations import write_generation
from tests.trained import TRACKS, learnable_log
from tests.untrained import write_model

GENERATION = "gen-dddddddddddd"
LENGTH = 4
YEARS_MINUTES = 60 * 24 * 3653
"""The log lies ahead of any clock, so that what is online is as of its last listen."""
LAST_MINUTE = YEARS_MINUTES + 60 * 24 * 20 + 3
LAST_MOMENT_US = int((START + timedelta(minutes=LAST_MINUTE)).timestamp()) * 10**6
NEWCOMER, NEW_TRACK = 77, 60


def before_the_last_moment() -> list[dict]:
    """Events of ten days that end on the last moment's own day, minutes before it."""
    log = []
    for row in learnable_log(events=1500):
        row = dict(row)
        for name in ("event_timestamp", "ingested_at"):
            if row[name] is not None:
                row[name] += timedelta(minutes=YEARS_MINUTES)
        if row["track_id"] != NEW_TRACK:
            log.append(row)
    log.append(event(90_000, 1, 1, LAST_MINUTE - 2, "complete"))
    return log


def at_the_last_moment() -> list[dict]:
    """Impressions that training must see as serving would: none knows of the others."""
    pairs = [(1, 1), (1, 2), (2, 7), (3, NEW_TRACK), (NEWCOMER, 5), (NEWCOMER, NEW_TRACK)]
    actions = ("complete", "skip") * 3
    return [
        event(100_000 + number, user, track, LAST_MINUTE, action)
        for number, ((user, track), action) in enumerate(zip(pairs, actions, strict=True))
    ]


def published(folder, log, online=PACKED_SQLITE) -> Workspace:
    workspace = Workspace(folder)
    folder.mkdir()
    settings = STORE_SETTINGS | {"online_store": {"type": online, "path": "online.db"}}
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    write_events(workspace, log)
    write_generation(workspace, GENERATION, TRACKS)
    sequences(workspace, SequenceOptions(length=LENGTH))
    publish(workspace)
    return workspace


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two workspaces of one platform: after the last moment (it trains), before it (it serves)."""
    folder = tmp_path_factory.mktemp("numbers")
    return (
        published(folder / "after", before_the_last_moment() + at_the_last_moment()),
        published(folder / "before", before_the_last_moment()),
    )


def released(world, groups, model="din") -> tuple[Workspace, str, ReleaseRanker]:
    after, before = world
    data = training_set(after, TrainingSetOptions(features=groups))
    model_id = write_model(after, data, model, groups)
    if not (before.models / model_id).exists():
        shutil.copytree(after.models / model_id, before.models / model_id)
    make_release(before, model_id)
    return after, model_id, ReleaseRanker(before, live_release(before))


@pytest.mark.parametrize(
    "groups", [(), ("user",), ("track",), ("context",), ("context", "track", "user")]
)
def test_a_training_row_is_the_served_vector(world, groups):
    after, _, ranker = released(world, groups)
    data = training_set(after, TrainingSetOptions(features=groups))
    folder = after.training_sets / data.id
    rows = pq.read_table(folder / "test.parquet").sort_by("event_id")
    rows = rows.slice(rows.num_rows - len(at_the_last_moment()))
    trained = read_item_side(folder, LENGTH).batch(rows)
    if groups:
        assert trained.numbers_BN.shape == (6, len(data.info["numbers"]))
    for place, row in enumerate(rows.to_pylist()):
        users, tracks_B = ranker.user_rows.read([row["user_id"]]), np.array([row["track_id"]])
        served = ranker.batch(users, [tracks_B], LAST_MOMENT_US)
        for name, tensor in vars(trained).items():
            if tensor is None:
                assert getattr(served, name) is None
            else:
                expected = tensor[place : place + 1]
                torch.testing.assert_close(
                    getattr(served, name), expected, rtol=0, atol=0, equal_nan=True
                )


def test_the_rows_compared_are_neither_all_zero_nor_all_alike(world):
    after, _ = world
    data = training_set(after, TrainingSetOptions(features=FEATURE_GROUPS))
    rows = pq.read_table(after.training_sets / data.id / "test.parquet").sort_by("event_id")
    numbers = np.array(rows["numbers"].to_pylist()[-6:], dtype=np.float32)
    columns = dict(zip(data.info["numbers"], numbers.T, strict=True))
    assert columns["user_plays_28d"][0] > 5
    assert columns["track_plays_28d"][0] > 5
    assert columns["track_plays_28d"][3] == 0  # nobody had met the new track
    np.testing.assert_array_equal(columns["without_listen"], [0, 0, 0, 0, 1, 1])
    assert columns["log_since_listen"][0] == pytest.approx(np.log1p(120), rel=1e-5)
    np.testing.assert_array_equal(np.isnan(columns["log_since_listen"]), [0, 0, 0, 0, 1, 1])


@pytest.mark.parametrize("model", ["mcca", "transformer"])
def test_scores_equal_the_offline_scores(world, model):
    after, model_id, ranker = released(world, FEATURE_GROUPS, model)
    candidates = tuple(range(1, TRACKS + 1))
    moment = datetime.fromtimestamp(LAST_MOMENT_US / 10**6, UTC)
    for user in (1, 2, NEWCOMER):
        ranking = ranker.rank(user, candidates, moment_us=LAST_MOMENT_US)
        online = dict(zip(ranking.track_ids, ranking.scores, strict=True))
        request = OfflineRequest(user_id=user, moment=moment, candidates=candidates)
        offline = score_offline(after, model_id, request)
        np.testing.assert_allclose([online[track] for track in candidates], offline, atol=1e-6)
        assert ranking.user_known == (user != NEWCOMER)


@pytest.mark.parametrize("groups", [(), FEATURE_GROUPS])
def test_several_users_are_one_batch_of_their_own_rows(world, groups):
    _, _, ranker = released(world, groups)
    tracks = [np.array(own) for own in ([1, 2, 7], [], [NEW_TRACK, 5], [2])]
    users = ranker.user_rows.read([1, 2, NEWCOMER, 1])
    pairs = [pair for pair in zip(users, tracks, strict=True) if len(pair[1])]
    alone = [ranker.batch([user], [own], LAST_MOMENT_US) for user, own in pairs]
    for name, tensor in vars(ranker.batch(users, tracks, LAST_MOMENT_US)).items():
        if tensor is None:
            assert not groups
        else:
            expected = torch.cat([getattr(batch, name) for batch in alone])
            torch.testing.assert_close(tensor, expected, rtol=0, atol=0, equal_nan=True)


def test_users_read_together_are_one_round_trip(world, monkeypatch):
    _, _, ranker = released(world, FEATURE_GROUPS)
    online, reads = packed_store(ranker.user_rows._store), []
    fetch = online._fetch

    def counted(config, asked):
        reads.append([(view.name, ids.tolist()) for view, ids in asked])
        return fetch(config, asked)

    monkeypatch.setattr(online, "_fetch", counted)
    ranker.user_rows.read([2, 1, NEWCOMER])
    views = (schema.USER_SEQUENCE, schema.USER_STATS)
    assert reads == [[(view, [2, 1, NEWCOMER]) for view in views]]


def test_now_is_the_clock_where_no_moment_is_given(world):
    _, _, ranker = released(world, ("context",))
    ranker.warm_up()
    assert len(ranker.rank(1, [1, 2, 3]).scores) == 3


def test_feast_own_store_serves_the_same_numbers(world, tmp_path):
    _, _, ranker = released(world, FEATURE_GROUPS)
    stock = published(tmp_path / "stock", before_the_last_moment(), online="sqlite")
    shutil.copytree(
        world[1].models / ranker.release.model_id, stock.models / ranker.release.model_id
    )
    make_release(stock, ranker.release.model_id)
    other = ReleaseRanker(stock, live_release(stock))
    candidates = range(1, TRACKS + 1)
    for user in (1, NEWCOMER):
        expected = ranker.rank(user, candidates, moment_us=LAST_MOMENT_US)
        assert other.rank(user, candidates, moment_us=LAST_MOMENT_US) == expected


def test_track_counts_follow_the_online_store(world):
    _, _, ranker = released(world, ("track",))
    before = world[1]
    counts = ranker.catalogue.numbers._tracks
    old = counts.read(np.array([NEW_TRACK, 1]))
    assert old["track_plays_7d"][0] == 0
    store = open_store(before)
    view = store.get_feature_view(schema.TRACK_STATS)
    rows = {name: [9] for name in schema.stats_columns("track")}
    stamp = datetime.fromtimestamp(LAST_MOMENT_US / 10**6, UTC)
    frame = pd.DataFrame({"track_id": [NEW_TRACK], "event_timestamp": [stamp], **rows})
    store.write_to_online_store(view.name, frame)
    try:
        assert counts.read(np.array([NEW_TRACK]))["track_plays_7d"][0] == 0
        counts.refresh()
        new = counts.read(np.array([NEW_TRACK, 1]))
        assert new["track_plays_7d"].tolist() == [9, old["track_plays_7d"][1]]
    finally:
        materialize(before, MaterializeOptions(full=True, replace=True, remove_vanished=True))


def test_the_release_service_holds_what_the_model_reads_and_nothing_else(world):
    _, _, ranker = released(world, FEATURE_GROUPS)
    service = open_store(world[1]).get_feature_service(ranker.release.feature_service)
    held = {
        f"{projection.name}:{feature.name}"
        for projection in service.feature_view_projections
        for feature in projection.features
    }
    semantic = {name for name in held if name.startswith(schema.TRACK_SEMANTIC_IDS)}
    assert held - semantic == set(feature_references(FEATURE_GROUPS))
    assert len(semantic) == 4


def test_a_service_of_fewer_features_is_refused(world):
    _, _, plain = released(world, ())
    _, _, ranker = released(world, ("user",))
    wrong = replace(ranker.release, feature_service=plain.release.feature_service)
    with pytest.raises(ArtifactError, match="its models want"):
        ReleaseRanker(world[1], wrong)
