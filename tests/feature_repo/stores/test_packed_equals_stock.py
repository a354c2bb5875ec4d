"""The packed stores answer `get_online_features` with the very messages that stock Feast does.

Rows of every type, with nulls, empty lists and entities that were never written. Values are
compared as protobuf messages, not as Python objects. Statuses are those of stock SQLite: stock
Redis calls an entity that it has never seen present.
"""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.protos.feast.types import Value_pb2
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_repo.online import packed_store
from feature_repo.stores.packed_reading import FEW_ROWS
from tests.feature_repo.stores.packed_repos import (
    PACKED_SQLITE,
    SCALARS,
    STOCK_SQLITE,
    every_type_view,
    packed_redis,
    repository,
    stock_redis,
)

IDS = st.integers(-(2**63), 2**63 - 1)
NUMBERS = {
    "INT32": st.integers(-(2**31), 2**31 - 1),
    "INT64": IDS,
    "FLOAT": st.floats(width=32),
    "DOUBLE": st.floats(),
    "BOOL": st.booleans(),
    "STRING": st.text(max_size=6),
    "BYTES": st.binary(max_size=6),
    "UNIX_TIMESTAMP": st.integers(0, 4 * 10**9),
}
LISTS = {
    "INT32": Value_pb2.Int32List,
    "INT64": Value_pb2.Int64List,
    "FLOAT": Value_pb2.FloatList,
    "DOUBLE": Value_pb2.DoubleList,
    "BOOL": Value_pb2.BoolList,
    "STRING": Value_pb2.StringList,
    "BYTES": Value_pb2.BytesList,
    "UNIX_TIMESTAMP": Value_pb2.Int64List,
}


def scalar(name):
    return st.builds(lambda v: Value(**{f"{name.lower()}_val": v}), NUMBERS[name])


def listed(name):
    items = st.lists(NUMBERS[name], max_size=4)
    return st.builds(lambda v: Value(**{f"{name.lower()}_list_val": LISTS[name](val=v)}), items)


features = {f"f_{name.lower()}": st.just(Value()) | scalar(name) for name in SCALARS}
features |= {f"f_{name.lower()}_list": st.just(Value()) | listed(name) for name in SCALARS}
moments = st.integers(1, 4 * 10**9).map(lambda s: datetime.fromtimestamp(s, tz=UTC))
row = st.tuples(st.fixed_dictionaries(features), moments)
worlds = st.dictionaries(IDS, row, min_size=1, max_size=5)


def keyed(user_id):
    return EntityKey(join_keys=["user_id"], entity_values=[Value(int64_val=user_id)])


def answer(store, names, ids):
    response = store.get_online_features(
        features=[f"every_type:{name}" for name in names],
        entity_rows=[{"user_id": user_id} for user_id in ids],
    ).proto
    found = dict(zip(response.metadata.feature_names.val, response.results, strict=True))
    return {
        name: (
            [value.SerializeToString(deterministic=True) for value in found[name].values],
            [FieldStatus.Name(status) for status in found[name].statuses],
            [moment.ToMicroseconds() for moment in found[name].event_timestamps],
        )
        for name in names
    }


def check(stock, ours, world, missing, seen_by_stock):
    data = [(keyed(n), values, moment, None) for n, (values, moment) in world.items()]
    names = list(features)
    for store in (stock, ours):
        view = store.get_feature_view("every_type")
        for one, values, moment, created in data:  # stock stores differ inside one batch
            online = store._get_provider().online_store
            online.online_write_batch(
                store.config, view, [(one, dict(values), moment, created)], None
            )
    few = [*world, *missing, next(iter(world))]
    many = [*few, *(n for n in range(2 * FEW_ROWS) if n not in world)]
    for ids in (few, many):  # row by row, and as columns
        theirs, mine = answer(stock, names, ids), answer(ours, names, ids)
        told = ["PRESENT" if n in world else "NOT_FOUND" for n in ids]
        times = [int(world[n][1].timestamp() * 1e6) if n in world else 0 for n in ids]
        for name in names:
            assert mine[name] == (theirs[name][0], told, times), name
            if not seen_by_stock:
                assert theirs[name][1] == told
    view = ours.get_feature_view("every_type")
    packed_store(ours).delete_rows(ours.config, view, list(world))


examples = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def sqlite_pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    return tuple(
        repository(folder / name, settings, [every_type_view(folder / name)])
        for name, settings in (("stock", STOCK_SQLITE), ("ours", PACKED_SQLITE))
    )


@examples
@given(world=worlds, missing=st.lists(IDS, max_size=2))
def test_packed_sqlite_answers_as_stock_sqlite(sqlite_pair, world, missing):
    stock, ours = sqlite_pair
    stock._get_provider().online_store._get_conn(stock.config).execute(
        "DELETE FROM test_every_type"
    )
    missing = [n for n in missing if n not in world]
    check(stock, ours, world, missing, seen_by_stock=False)


@pytest.mark.redis
@examples
@given(world=worlds, missing=st.lists(IDS, max_size=2))
def test_packed_redis_answers_as_stock_redis(redis_pair, world, missing):
    stock, ours = redis_pair
    stock._get_provider().online_store._get_client(stock.config.online_store).flushall()
    missing = [n for n in missing if n not in world]
    check(stock, ours, world, missing, seen_by_stock=True)


@pytest.fixture
def redis_pair(redis_server, tmp_path):
    stock = repository(tmp_path / "a", stock_redis(redis_server), [every_type_view(tmp_path / "a")])
    ours = repository(tmp_path / "b", packed_redis(redis_server), [every_type_view(tmp_path / "b")])
    return stock, ours


def test_a_table_is_stored_as_feast_stores_the_same_rows(sqlite_pair):
    """The columnar door against Feast's conversion of the same data frame, nulls of each type."""
    stock, ours = sqlite_pair
    moments = pa.array([1_699_999_999_999_999, None, 5], type=pa.timestamp("us", "UTC"))
    moment_lists = pa.array([[0, 1_500_000], None, []], pa.list_(pa.timestamp("us", "UTC")))
    table = pa.table(
        {
            "user_id": [1, 2, 3],
            "event_timestamp": pa.array([10**15] * 3, type=pa.timestamp("us", "UTC")),
            "f_int32": pa.array([1, None, -3], type=pa.int32()),
            "f_int32_list": [[1], None, []],
            "f_int64": [2**40, -5, None],
            "f_int64_list": [[2**60, -1], [], None],
            "f_float": pa.array([0.1, float("nan"), None], type=pa.float32()),
            "f_float_list": pa.array([[0.1], [], None], type=pa.list_(pa.float32())),
            "f_double": [0.1, float("nan"), None],
            "f_double_list": [[0.1, 2.0], None, []],
            "f_bool": [True, None, False],
            "f_bool_list": [[True, False], None, []],
            "f_string": ["a", "", None],
            "f_string_list": [["a", ""], [], None],
            "f_bytes": [b"\x00\xff", b"", None],
            "f_bytes_list": [[b"x"], [], None],
            "f_unix_timestamp": moments,
            "f_unix_timestamp_list": moment_lists,
        }
    )
    stock.write_to_online_store("every_type", table.to_pandas())
    view = ours.get_feature_view("every_type")
    packed_store(ours).write_table(ours.config, view, table)
    asked = {
        "features": [f"every_type:{name}" for name in features],
        "entity_rows": [{"user_id": n} for n in (1, 2, 3, 4)],
    }
    theirs = stock.get_online_features(**asked).to_dict()
    assert ours.get_online_features(**asked).to_dict() == theirs
    columns = packed_store(ours).read_columns(
        ours.config, [(view, list(features))], np.array([1, 2, 3, 4])
    )
    for name in features:
        assert columns[f"every_type:{name}"].to_pylist() == theirs[name], name
