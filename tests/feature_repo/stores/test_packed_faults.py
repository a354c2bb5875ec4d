"""What a user meets when the store behind the rows goes away, is full or is locked."""

import multiprocessing
import sqlite3
import threading

import numpy as np
import pyarrow as pa
import pytest
from feast.types import Int64

from feature_repo import schema
from feature_repo.errors import ArtifactError, InputError, StoreUnavailableError
from feature_repo.online import OnlineReader, packed_store
from tests.feature_repo.stores.packed_repos import (
    PACKED_SQLITE,
    listens,
    packed_redis,
    read_listens,
    repository,
    sequence_view,
    table,
    view,
)


def stats_store(folder, online):
    store = repository(folder, online, [view(folder, "stats", {"plays": Int64})])
    return store, packed_store(store), store.get_feature_view("stats")


@pytest.mark.redis
def test_reads_and_writes_go_on_after_a_restart(tmp_path, restartable_redis):
    settings = packed_redis(restartable_redis.connection_string, retry_s=60.0)
    store, online, item = stats_store(tmp_path, settings)
    reader = OnlineReader(store, ["stats:plays"])
    ids = np.arange(5000)
    online.write_table(store.config, item, table(ids, [0] * 5000, plays=ids))
    assert reader.read(ids)["stats:plays"].values.tolist() == ids.tolist()
    for attempt in range(3):
        restartable_redis.kill()
        again = threading.Thread(target=restartable_redis.start)
        again.start()  # while it comes up, the store tries and tries again
        if attempt % 2:
            rows = table(ids, [attempt] * 5000, plays=ids + attempt)
            online.write_table(store.config, item, rows)
        read = reader.read(ids)["stats:plays"].values
        again.join()
        assert read.tolist() == (ids + (1 if attempt else 0)).tolist()
    assert online.count_rows(store.config, item) == 5000


def push_forever(settings, folder, acknowledged):
    from feast import FeatureStore

    store = FeatureStore(repo_path=str(folder))
    item = store.get_feature_view(schema.USER_SEQUENCE)
    for n in range(400):
        packed_store(store).write_table(store.config, item, listens([(1, n, n, n, 1)]))
        acknowledged.put(n)
    acknowledged.put(None)


@pytest.mark.redis
def test_no_acknowledged_listen_is_lost_in_a_kill(tmp_path, restartable_redis):
    """The server keeps what it acknowledged (appendfsync always); the writer never notices."""
    settings = packed_redis(restartable_redis.connection_string, retry_s=60.0)
    store = repository(tmp_path, settings, [sequence_view(tmp_path, 1000)])
    context = multiprocessing.get_context("fork")
    acknowledged = context.SimpleQueue()
    writer = context.Process(target=push_forever, args=(settings, tmp_path, acknowledged))
    writer.start()
    for number in range(1, 401):
        assert acknowledged.get() is not None
        if number in (50, 200):
            restartable_redis.kill()
            restartable_redis.start()
    assert acknowledged.get() is None
    writer.join()
    found = read_listens(store, store.get_feature_view(schema.USER_SEQUENCE), 1)
    assert [event for event, _, _, _ in found] == list(range(400))


@pytest.mark.redis
def test_a_redis_that_stays_away_is_named(tmp_path, restartable_redis):
    settings = packed_redis(restartable_redis.connection_string, retry_s=0.2)
    store, online, item = stats_store(tmp_path, settings)
    restartable_redis.kill()
    name = f"redis 127.0.0.1:{restartable_redis.port}"
    with pytest.raises(StoreUnavailableError, match=name):
        online.write_table(store.config, item, table([1], [0], plays=[1]))
    with pytest.raises(StoreUnavailableError, match=name):
        store.get_online_features(features=["stats:plays"], entity_rows=[{"user_id": 1}])


@pytest.mark.redis
def test_scripts_survive_a_flush_of_redis(tmp_path, redis_server):
    store, online, item = stats_store(tmp_path, packed_redis(redis_server))
    online.write_table(store.config, item, table([1], [0], plays=[1]))
    online._calls.execute(b"SCRIPT", b"FLUSH")
    online.write_table(store.config, item, table([2], [0], plays=[2]))
    assert online.count_rows(store.config, item) == 2


@pytest.mark.redis
def test_a_redis_without_memory_says_so_and_keeps_what_it_has(tmp_path, redis_server):
    store, online, item = stats_store(tmp_path, packed_redis(redis_server))
    online.write_table(store.config, item, table([1], [0], plays=[1]))
    online._calls.execute(b"CONFIG", b"SET", b"maxmemory", b"1")
    try:
        with pytest.raises(StoreUnavailableError, match="maxmemory"):
            online.write_table(store.config, item, table([2], [0], plays=[2]))
    finally:
        online._calls.execute(b"CONFIG", b"SET", b"maxmemory", b"0")
    assert list(map(list, online.entity_ids(store.config, item))) == [[1]]


def test_a_wrong_address_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected host:port"):
        stats_store(tmp_path, packed_redis("nowhere"))


def test_a_full_disk_keeps_nothing_of_the_write(tmp_path):
    store, online, item = stats_store(tmp_path, PACKED_SQLITE)
    online.write_table(store.config, item, table([1], [0], plays=[1]))
    connection = online._connection(store.config)
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    ids = np.arange(4000)
    with pytest.raises(StoreUnavailableError, match=r"online\.db.*full.*nothing of this write"):
        online.write_table(store.config, item, table(ids, [1] * 4000, plays=ids))
    assert list(map(list, online.entity_ids(store.config, item))) == [[1]]
    connection.execute("PRAGMA max_page_count = 100000")
    online.write_table(store.config, item, table(ids, [1] * 4000, plays=ids))
    assert online.count_rows(store.config, item) == 4000


def test_a_lock_that_does_not_come_free_is_an_error_and_readers_do_not_wait(tmp_path):
    store, online, item = stats_store(tmp_path, {**PACKED_SQLITE, "timeout_s": 0.05})
    online.write_table(store.config, item, table([1], [0], plays=[1]))
    other = sqlite3.connect(tmp_path / "online.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailableError, match="locked"):
        online.write_table(store.config, item, table([2], [0], plays=[2]))
    columns = online.read_columns(store.config, [(item, ["plays"])], np.array([1, 2]))
    assert columns["stats:plays"].to_pylist() == [1, None]
    other.execute("ROLLBACK")
    online.write_table(store.config, item, table([2], [0], plays=[2]))
    assert online.count_rows(store.config, item) == 2


def test_threads_have_connections_of_their_own(tmp_path):
    store, online, item = stats_store(tmp_path, {**PACKED_SQLITE, "timeout_s": 60.0})
    failures = []

    def work(number):
        try:
            ids = np.arange(number * 100, number * 100 + 100)
            online.write_table(store.config, item, table(ids, [0] * 100, plays=ids))
            columns = online.read_columns(store.config, [(item, ["plays"])], ids)
            assert columns["stats:plays"].values.tolist() == ids.tolist()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert online.count_rows(store.config, item) == 600


def test_a_store_without_the_view_names_the_command(tmp_path):
    store, online, item = stats_store(tmp_path, PACKED_SQLITE)
    online._connection(store.config).execute('DROP TABLE "packed_test_stats"')
    with pytest.raises(InputError, match="run `crescendo publish`"):
        online.read_columns(store.config, [(item, ["plays"])], np.array([1]))


@pytest.mark.parametrize("value", [b"", b"garbage!" * 8])
def test_a_damaged_value_is_an_error(tmp_path, value):
    store, online, item = stats_store(tmp_path, PACKED_SQLITE)
    online.write_table(store.config, item, table([1, 2], [0, 0], plays=pa.array([1, 2])))
    online._connection(store.config).execute(
        "UPDATE packed_test_stats SET value = ? WHERE entity = 2", (value,)
    )
    with pytest.raises(ArtifactError, match=r"damaged|unknown fields"):
        online.read_columns(store.config, [(item, ["plays"])], np.array([1, 2]))
    with pytest.raises(ArtifactError, match=r"damaged|unknown fields"):
        store.get_online_features(features=["stats:plays"], entity_rows=[{"user_id": 2}])
