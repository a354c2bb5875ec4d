"""Ages of views and of a user's rows, against their bounds."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow.parquet as pq
import pytest

from feature_repo import schema
from feature_repo.errors import InputError
from feature_repo.freshness import MAX_AGE_H, age, bound_of
from feature_repo.store import open_store
from ray_jobs.freshness import FreshnessOptions, freshness
from ray_jobs.watermarks import Settled, Watermark, write_watermark
from tests.ray_jobs.forget_world import START, build

NOW = datetime(2026, 1, 20, 12, tzinfo=UTC)


def hours(number: float) -> timedelta:
    return timedelta(hours=number)


def test_an_age_is_past_its_bound_only_beyond_it_and_never_negative():
    assert age(NOW - hours(26), NOW, 26).stale is False
    assert age(NOW - hours(26) - timedelta(seconds=1), NOW, 26).stale is True
    assert age(NOW + hours(5), NOW, 26).age_h == 0
    assert age(NOW - hours(10**5), NOW, None).stale is False
    assert age(None, NOW, None).stale is True
    with pytest.raises(InputError, match="time zone"):
        age(datetime(2026, 1, 1), NOW, 1)


def test_a_generations_view_has_the_bound_of_its_kind():
    assert bound_of("track_semantic_ids_gen_abc", {schema.TRACK_SEMANTIC_IDS: 3.0}) == 3.0
    assert bound_of("track_semantic_idsx", {schema.TRACK_SEMANTIC_IDS: 3.0}) is None
    assert bound_of(schema.USER_SEQUENCE, MAX_AGE_H) == MAX_AGE_H[schema.USER_SEQUENCE]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    workspace = build(tmp_path_factory.mktemp("freshness") / "workspace")
    mark(workspace, schema.USER_SEQUENCE, NOW - hours(30))
    return workspace


def mark(workspace, view: str, moment: datetime) -> None:
    write_watermark(
        workspace,
        Watermark(
            view=view,
            watermark=moment.isoformat(),
            source={},
            settled=Settled(until=moment.isoformat(), rows=0, checksum="0"),
            store="",
            entities=4,
            online=4,
            rows=4,
        ),
    )


def test_views_are_as_old_as_their_watermark(world):
    answer = freshness(world, FreshnessOptions(), NOW)
    sequence = answer["views"][schema.USER_SEQUENCE]
    assert sequence["watermark"] == (NOW - hours(30)).isoformat()
    assert (sequence["age_h"], sequence["max_age_h"], sequence["stale"]) == (30, 26, True)
    log = pq.read_table(sorted(world.feature_source(schema.USER_SEQUENCE).glob("*.parquet")))
    newest = max(log["event_timestamp"].to_pylist())
    assert datetime.fromisoformat(sequence["newest_source_row"]) == newest
    assert sequence["behind_h"] == 30  # there are rows after the watermark, up to now and beyond
    stats = answer["views"][schema.USER_STATS]
    assert (stats["watermark"], stats["behind_h"], stats["stale"]) == (None, None, True)
    assert stats["newest_source_row"] == (START + timedelta(days=2)).isoformat()
    assert sorted(answer["stale"]) == [schema.USER_SEQUENCE, schema.USER_STATS]


def test_rows_that_wait_are_counted_in_hours_and_bounds_are_options(world):
    mark(world, schema.USER_STATS, START + hours(40))
    options = FreshnessOptions(max_age_h={schema.USER_SEQUENCE: 31, schema.USER_STATS: 1})
    answer = freshness(world, options, START + hours(45))
    assert answer["views"][schema.USER_STATS]["behind_h"] == 5  # of 8: the others lie ahead
    assert answer["views"][schema.USER_STATS]["stale"] is True
    assert answer["views"][schema.USER_SEQUENCE]["stale"] is False
    assert "user" not in answer


def test_a_users_rows_have_ages_of_their_own(world):
    store = open_store(world)
    view = store.get_feature_view(schema.USER_SEQUENCE)
    online = store._get_provider().online_store
    columns = online.read_columns(
        store.config, [(view, [schema.SEQUENCE_TRACK_IDS])], np.array([2])
    )
    at = datetime.fromtimestamp(columns.event_us[schema.USER_SEQUENCE][0] / 1e6, UTC)
    bounds = {schema.USER_SEQUENCE: 2.0}
    options = FreshnessOptions(user="bob", max_user_age_h=bounds)
    answer = freshness(world, options, at + hours(1))["user"]
    row = answer["views"][schema.USER_SEQUENCE]
    assert answer["user_id"] == 2
    assert abs(datetime.fromisoformat(row["event_time"]) - at) < timedelta(seconds=1)
    assert 1 <= row["age_h"] < 1.001
    assert answer["stale"] == []
    late = freshness(world, options, at + hours(2.5))["user"]
    assert late["stale"] == [schema.USER_SEQUENCE]
    nobody = freshness(world, FreshnessOptions(user="999"), NOW)["user"]
    assert nobody["views"][schema.USER_STATS]["event_time"] is None
    assert sorted(nobody["stale"]) == [schema.USER_SEQUENCE, schema.USER_STATS]


def test_wrong_bounds_are_refused(world):
    with pytest.raises(InputError, match=r"max_age_h names \['nonsense'\]; the feature store has"):
        freshness(world, FreshnessOptions(max_age_h={"nonsense": 1.0}), NOW)
    with pytest.raises(InputError, match=r"max_age_h of user_stats is -1"):
        FreshnessOptions(max_age_h={"user_stats": -1})
