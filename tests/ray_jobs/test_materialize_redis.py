"""Materialization into a real Redis, which is killed and started again in the middle."""

import threading

import pytest

from feature_repo.errors import ArtifactError, StoreUnavailableError
from feature_repo.stores.packed_redis import PackedRedisOnlineStore
from feature_repo.workspace import Workspace
from ray_jobs import materialize_write
from ray_jobs.materialize import MaterializeOptions, materialize
from ray_jobs.materialize_source import ViewSource
from ray_jobs.watermarks import EPOCH, read_watermark, watermark_names
from tests.ray_jobs.materialized import DAYS
from tests.view_sources import (
    PLAIN,
    SEQUENCE,
    apply_views,
    at,
    expected_state,
    listen,
    online_state,
    packed_settings,
    random_rows,
    until,
    write_both,
)

pytestmark = pytest.mark.redis
END = at(11 * DAYS)


@pytest.fixture
def redis(restartable_redis):
    return restartable_redis


@pytest.fixture
def log():
    plain, listens = random_rows(3, 30, 400, 10 * DAYS)
    return plain, [*listens, listen(10_000, 1, 10 * DAYS + 1)]


@pytest.fixture
def published(tmp_path, redis, log):
    """A workspace of which the first five days are online."""
    workspace = Workspace(tmp_path / "workspace")
    write_both(workspace, *(until(rows, 5 * DAYS) for rows in log))
    settings = packed_settings(redis.connection_string)
    settings["online_store"]["retry_s"] = 0.1  # so that it is the job that waits for the server
    store = apply_views(workspace, settings)
    materialize(workspace, MaterializeOptions())
    write_both(workspace, *log)
    return workspace, store


def at_write(monkeypatch, number, act):
    """Does `act` just before that write of the run, to the real store."""
    write, count = PackedRedisOnlineStore.write_table, 0

    def counted(self, *arguments, **options):
        nonlocal count
        count += 1
        if count == number:
            act()
        return write(self, *arguments, **options)

    monkeypatch.setattr(PackedRedisOnlineStore, "write_table", counted)


def test_a_run_and_the_next_one(published, log):
    workspace, store = published
    materialize(workspace, MaterializeOptions())
    assert online_state(store) == expected_state(*log, END)
    views = materialize(workspace, MaterializeOptions())["views"]
    assert {view["reason"] for view in views.values()} == {"since the watermark"}
    assert online_state(store) == expected_state(*log, END)


@pytest.mark.parametrize("write", [1, 5])
def test_a_redis_that_comes_back_costs_nothing(published, log, redis, monkeypatch, write):
    workspace, store = published
    starter = threading.Timer(1.0, redis.start)

    def kill():
        redis.kill()
        starter.start()

    at_write(monkeypatch, write, kill)
    result = materialize(workspace, MaterializeOptions(chunk_rows=100, full=True))
    starter.join()
    assert sum(view["rows"] for view in result["views"].values()) > 60
    assert online_state(store) == expected_state(*log, END)


def test_a_redis_that_stays_away_is_an_error_and_the_watermark_stays(
    published, log, redis, monkeypatch
):
    workspace, store = published
    before = [read_watermark(workspace, name) for name in watermark_names(workspace)]
    monkeypatch.setattr(materialize_write, "RETRY_FOR_S", 0.2)
    with monkeypatch.context() as patch:
        at_write(patch, 2, redis.kill)
        with pytest.raises(StoreUnavailableError) as raised:
            materialize(workspace, MaterializeOptions(chunk_rows=100))
    assert redis.connection_string in str(raised.value)
    assert "the watermark has not moved" in str(raised.value)
    assert [read_watermark(workspace, name) for name in watermark_names(workspace)] == before
    redis.start()
    materialize(workspace, MaterializeOptions(chunk_rows=100))
    assert online_state(store) == expected_state(*log, END)


def test_a_redis_that_lost_everything_in_the_middle_is_noticed(published, log, redis, monkeypatch):
    workspace, store = published
    before = read_watermark(workspace, PLAIN)

    def restart_empty():
        redis.kill()
        redis.start()
        redis.empty()

    source = ViewSource(workspace, store.get_feature_view(PLAIN))
    chunks = source.chunks(EPOCH, END, 10)  # the last one has ten rows, of 30 users' newest
    with monkeypatch.context() as patch:
        at_write(patch, len(chunks), restart_empty)
        with pytest.raises(ArtifactError, match=r"\d+ of the source's 30 entities are not online"):
            materialize(workspace, MaterializeOptions(views=(PLAIN,), chunk_rows=10, full=True))
    assert read_watermark(workspace, PLAIN) == before
    views = materialize(workspace, MaterializeOptions())["views"]
    for name in (PLAIN, SEQUENCE):
        assert "the online store holds" in views[name]["reason"]
    assert online_state(store) == expected_state(*log, END)
