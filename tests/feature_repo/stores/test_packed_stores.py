"""Both packed stores through both doors: columns, and Feast's own calls."""

import asyncio
import itertools
from datetime import timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Array, Float64, Int64, Map, String

from feature_repo.errors import ArtifactError, InputError
from feature_repo.online import packed_store
from tests.feature_repo.stores.packed_repos import (
    PACKED_SQLITE,
    START,
    label,
    packed_redis,
    repository,
    table,
    times,
    view,
)

STATS = {"plays": Int64, "codes": Array(Int64), "name": String}


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def online(request):
    """`online_store` of feature_store.yaml, for each packed store."""
    if request.param == "sqlite":
        return PACKED_SQLITE
    return packed_redis(request.getfixturevalue("redis_server"))


@pytest.fixture
def stats(tmp_path, online):
    """(store, online store, view `stats`)"""
    item = view(tmp_path, "stats", STATS)
    store = repository(tmp_path, online, [item])
    return store, packed_store(store), store.get_feature_view("stats")


def stats_table(ids, seconds, plays, codes=None, names=None):
    count = len(ids)
    return table(
        pa.array(ids, type=pa.int64()),
        seconds,
        plays=pa.array(plays, type=pa.int64()),
        codes=pa.array(codes or [[1]] * count, type=pa.list_(pa.int64())),
        name=pa.array(names or ["x"] * count, type=pa.string()),
    )


def plays_of(store, online, item, ids):
    columns = online.read_columns(store.config, [(item, ["plays"])], np.array(ids))
    return columns["stats:plays"].to_pylist()


def test_missing_null_and_empty_are_three_things(stats):
    store, online, item = stats
    rows = stats_table([1, 2], [0, 0], [0, None], [[], None], ["", None])
    assert online.write_table(store.config, item, rows) == 2
    columns = online.read_columns(
        store.config, [(item, ["plays", "codes", "name"])], np.array([2, 3, 1, 1])
    )
    assert columns.found["stats"].tolist() == [True, False, True, True]
    assert columns["stats:plays"].to_pylist() == [None, None, 0, 0]
    assert columns["stats:codes"].to_pylist() == [None, None, [], []]
    assert columns["stats:name"].to_pylist() == [None, None, "", ""]
    moment = int(START.timestamp() * 1e6)
    assert columns.event_us["stats"].tolist() == [moment, 0, moment, moment]
    response = store.get_online_features(
        features=["stats:plays", "stats:codes"], entity_rows=[{"user_id": u} for u in (2, 3, 1)]
    ).proto
    vectors = dict(zip(response.metadata.feature_names.val, response.results, strict=True))
    plays, codes = vectors["plays"], vectors["codes"]
    told = ["PRESENT", "NOT_FOUND", "PRESENT"]
    for vector in (plays, codes):
        assert [FieldStatus.Name(status) for status in vector.statuses] == told
    assert [v.WhichOneof("val") for v in codes.values] == [None, None, "int64_list_val"]
    assert [t.ToMicroseconds() for t in plays.event_timestamps] == [moment, 0, moment]


@pytest.mark.parametrize("door", ["columns", "feast"])
def test_an_older_row_never_overwrites_in_any_order(stats, door):
    store, online, item = stats
    for user_id, order in enumerate(itertools.permutations([(1, 10), (2, 20), (3, 30)])):
        for second, plays in order:
            rows = stats_table([user_id], [second], [plays])
            if door == "columns":
                online.write_table(store.config, item, rows)
            else:
                store.write_to_online_store("stats", rows.to_pandas())
    assert plays_of(store, online, item, range(6)) == [30] * 6
    online.write_table(store.config, item, stats_table([0, 1], [3, 2.999999], [31, 32]))
    assert plays_of(store, online, item, [0, 1]) == [31, 30]  # equal overwrites
    online.write_table(store.config, item, stats_table([0], [0], [33]), replace=True)
    assert plays_of(store, online, item, [0]) == [33]


def test_times_before_1970_and_far_ahead_are_ordered_too(stats):
    store, online, item = stats
    for second, plays in ((-(10**10), 1), (-(10**9), 2), (0, 3), (10**10, 4), (-1, 5)):
        online.write_table(store.config, item, stats_table([1], [second], [plays]))
    assert plays_of(store, online, item, [1]) == [4]


def test_the_creation_time_decides_between_equal_events(tmp_path, online):
    item = view(tmp_path, "stats", {"plays": Int64}, created="made")
    store = repository(tmp_path, online, [item])
    item = store.get_feature_view("stats")
    for made, plays in ((2, 20), (1, 10), (3, 30), (2, 25)):
        rows = table([7], [0], plays=[plays], made=times([made]))
        packed_store(store).write_table(store.config, item, rows)
    assert plays_of(store, packed_store(store), item, [7]) == [30]


def test_the_newest_row_of_one_table_wins(stats):
    store, online, item = stats
    rows = stats_table([1, 2, 1, 1, 2], [5, 1, 9, 3, 1], [50, 1, 90, 30, 2])
    for replace in (False, True):
        assert online.write_table(store.config, item, rows, replace=replace) == 5
        assert plays_of(store, online, item, [1, 2]) == [90, 2]


def test_many_rows_are_written_counted_listed_and_deleted(stats):
    store, online, item = stats
    ids = np.random.default_rng(0).permutation(20_000) - 5_000
    rows = stats_table(ids.tolist(), [0] * len(ids), (ids * 3).tolist())
    online.write_table(store.config, item, rows)
    assert online.count_rows(store.config, item) == len(ids)
    assert np.concatenate(list(online.entity_ids(store.config, item))).tolist() == sorted(ids)
    columns = online.read_columns(store.config, [(item, ["plays"])], ids)
    assert columns["stats:plays"].values.tolist() == (ids * 3).tolist()
    assert online.delete_rows(store.config, item, np.array([-5_000, 0, 0, 99_999])) == 2
    assert online.count_rows(store.config, item) == len(ids) - 2
    assert plays_of(store, online, item, [-5_000, 0, 1]) == [None, None, 3]


def test_nothing_is_written_read_and_counted(stats):
    store, online, item = stats
    assert online.write_table(store.config, item, stats_table([], [], [])) == 0
    assert online.count_rows(store.config, item) == 0
    assert list(online.entity_ids(store.config, item)) == []
    columns = online.read_columns(store.config, [(item, ["codes"])], np.zeros(0, "i8"))
    assert columns["stats:codes"].to_pylist() == []
    assert plays_of(store, online, item, [1]) == [None]


def test_a_feature_that_the_view_lacks_is_an_error(stats):
    store, online, item = stats
    with pytest.raises(InputError, match="stats has no feature 'likes'"):
        online.read_columns(store.config, [(item, ["likes"])], np.array([1]))


def test_nan_is_null_as_in_feast(tmp_path, online):
    item = view(tmp_path, "stats", {"plays": Float64})
    store = repository(tmp_path, online, [item])
    item = store.get_feature_view("stats")
    rows = table([1, 2], [0, 0], plays=[float("nan"), 1.5])
    packed_store(store).write_table(store.config, item, rows)
    assert plays_of(store, packed_store(store), item, [1, 2]) == [None, 1.5]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda t: t.drop_columns(["plays"]), r"lacks the columns \['plays'\]"),
        (
            lambda t: t.set_column(0, "user_id", pa.array([None], pa.int64())),
            "have no user_id",
        ),
        (lambda t: t.set_column(0, "user_id", pa.array(["a"])), "user_id came as string"),
        (lambda t: t.set_column(1, "event_timestamp", pa.array([5])), "expected timestamps"),
        (lambda t: t.set_column(2, "plays", pa.array([1.5])), "plays came as double"),
        (
            lambda t: t.set_column(3, "codes", pa.array([[None]], pa.list_(pa.int64()))),
            "null items",
        ),
    ],
)
def test_a_wrong_table_is_refused(stats, broken, message):
    store, online, item = stats
    with pytest.raises(InputError, match=message):
        online.write_table(store.config, item, broken(stats_table([1], [0], [1])))
    assert online.count_rows(store.config, item) == 0


def test_a_type_that_cannot_be_packed_is_refused_when_it_is_applied(tmp_path, online):
    with pytest.raises(InputError, match=r"view odd: feature what has type MAP"):
        repository(tmp_path, online, [view(tmp_path, "odd", {"what": Map})])


def test_feast_materializes_and_reads_as_on_any_store(stats, tmp_path):
    store, online, item = stats
    rows = stats_table([1, 2, 1], [0, 1, 2], [5, None, 6], [[1, 2], [], [3]], ["a", None, "b"])
    pq.write_table(rows, tmp_path / "stats.parquet", coerce_timestamps="us")
    store.materialize(START - timedelta(days=1), START + timedelta(days=1))
    asked = {
        "features": ["stats:plays", "stats:codes", "stats:name"],
        "entity_rows": [{"user_id": u} for u in (2, 9, 1, 2)],
    }
    expected = {
        "user_id": [2, 9, 1, 2],
        "plays": [None, None, 6, None],
        "codes": [[], None, [3], []],
        "name": [None, None, "b", None],
    }
    assert store.get_online_features(**asked).to_dict() == expected
    assert asyncio.run(store.get_online_features_async(**asked)).to_dict() == expected
    asyncio.run(store.write_to_online_store_async("stats", stats_table([9], [5], [7]).to_pandas()))
    assert plays_of(store, online, item, [9]) == [7]


def test_an_id_of_another_type_is_refused_and_not_read_as_zero(stats):
    store, online, item = stats
    online.write_table(store.config, item, stats_table([0], [0], [10]))
    for value in (Value(int32_val=7), None):
        with pytest.raises(InputError, match=r"user_id came as .* expected int64_val"):
            store.get_online_features(
                features=["stats:plays"], entity_rows={"user_id": [value, Value(int64_val=0)]}
            )
    other = EntityKey(join_keys=["user_id"], entity_values=[Value(int32_val=7)])
    with pytest.raises(InputError, match=r"user_id came as .* expected int64_val"):
        online.online_read(store.config, item, [other], ["plays"])


def test_other_join_keys_work_through_feast_and_not_as_columns(tmp_path, online):
    item = view(tmp_path, "words", {"plays": Int64}, entity=label)
    store = repository(tmp_path, online, [item])
    words = ["a" * n for n in range(1, 701)]
    frame = pd.DataFrame({"label": words, "event_timestamp": START, "plays": np.arange(700)})
    store.write_to_online_store("words", frame)
    rows = [{"label": word} for word in (*reversed(words), "b")]
    response = store.get_online_features(features=["words:plays"], entity_rows=rows)
    assert response.to_dict()["plays"] == [*reversed(range(700)), None]
    item = store.get_feature_view("words")
    assert packed_store(store).count_rows(store.config, item) == 700
    with pytest.raises(InputError, match="one Int64 join key"):
        packed_store(store).read_columns(store.config, [(item, ["plays"])], np.array([1]))


def test_a_new_field_reads_as_null_in_older_rows(tmp_path, online):
    store = repository(tmp_path, online, [view(tmp_path, "stats", {"plays": Int64})])
    rows = stats_table([1, 2], [0, 0], [10, 20])
    packed_store(store).write_table(store.config, store.get_feature_view("stats"), rows)
    store = repository(tmp_path, online, [view(tmp_path, "stats", STATS)])
    item, packed = store.get_feature_view("stats"), packed_store(store)
    packed.write_table(store.config, item, stats_table([2, 3], [1, 1], [21, 30], [[4], []]))
    columns = packed.read_columns(
        store.config, [(item, ["plays", "codes", "name"])], np.array([3, 1, 9, 2])
    )
    assert columns["stats:plays"].to_pylist() == [30, 10, None, 21]
    assert columns["stats:codes"].to_pylist() == [[], None, None, [4]]
    assert columns["stats:name"].to_pylist() == ["x", None, None, "x"]
    features = ["stats:plays", "stats:name"]
    response = store.get_online_features(features=features, entity_rows=[{"user_id": 1}])
    assert response.to_dict() == {"user_id": [1], "plays": [10], "name": [None]}


def test_a_field_of_another_type_is_an_error_that_names_it(tmp_path, online):
    store = repository(tmp_path, online, [view(tmp_path, "stats", {"plays": Int64})])
    item = store.get_feature_view("stats")
    packed_store(store).write_table(store.config, item, stats_table([1], [0], [10]))
    store = repository(tmp_path, online, [view(tmp_path, "stats", {"plays": String})])
    item = store.get_feature_view("stats")
    with pytest.raises(ArtifactError, match="rows with plays as INT64, but the view says STRING"):
        packed_store(store).read_columns(store.config, [(item, ["plays"])], np.array([1]))


def test_versions_of_a_view_lie_side_by_side(tmp_path, online):
    store = repository(tmp_path, online, [view(tmp_path, "s", {"plays": Int64})], versions=True)
    store.write_to_online_store("s", table([1], [0], plays=[10]).to_pandas())
    item = view(tmp_path, "s", {"plays": Int64, "name": String})
    store = repository(tmp_path, online, [item], versions=True)
    row = [{"user_id": 1}]
    assert store.get_online_features(features=["s:plays"], entity_rows=row).to_dict() == {
        "user_id": [1],
        "plays": [None],
    }
    store.write_to_online_store("s", table([1], [1], plays=[11], name=["n"]).to_pandas())
    old = store.get_online_features(features=["s@v0:plays"], entity_rows=row).to_dict()
    new = store.get_online_features(features=["s:plays"], entity_rows=row).to_dict()
    assert (old["plays"], new["plays"]) == ([10], [11])


def test_a_removed_view_takes_its_rows_along(tmp_path, online):
    views = [view(tmp_path, name, {"plays": Int64}) for name in ("one", "two")]
    store = repository(tmp_path, online, views)
    packed = packed_store(store)
    one, two = (store.get_feature_view(name) for name in ("one", "two"))
    for item in (one, two):
        packed.write_table(store.config, item, table([1, 2], [0, 0], plays=[1, 2]))
    store.apply([], objects_to_delete=[one], partial=False)
    store.apply([views[0]])
    assert packed.count_rows(store.config, one) == 0
    assert packed.count_rows(store.config, two) == 2
    store.teardown()
    repository(tmp_path, online, views)
    assert packed.count_rows(store.config, two) == 0
