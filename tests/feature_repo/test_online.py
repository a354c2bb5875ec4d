"""The online reader: what is asked for by reference or service, as arrays."""

import numpy as np
import pytest
from feast import FeatureService
from feast.types import Array, Int64, String

from feature_repo.errors import InputError
from feature_repo.online import OnlineReader, packed_store
from tests.feature_repo.stores.packed_repos import (
    PACKED_SQLITE,
    STOCK_SQLITE,
    label,
    packed_redis,
    repository,
    table,
    view,
)


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def store(request, tmp_path):
    redis = request.param == "redis"
    online = packed_redis(request.getfixturevalue("redis_server")) if redis else PACKED_SQLITE
    codes = view(tmp_path, "codes", {"sid": Array(Int64), "generation": String})
    counts = view(tmp_path, "counts", {"plays": Int64, "skips": Int64})
    service = FeatureService(name="both", features=[codes, counts[["plays"]]])
    store = repository(tmp_path, online, [codes, counts, service])
    rows = table([1, 2], [0, 1], sid=[[1, 2], []], generation=["g", None])
    packed_store(store).write_table(store.config, store.get_feature_view("codes"), rows)
    rows = table([2, 3], [2, 3], plays=[20, 30], skips=[5, 6])
    packed_store(store).write_table(store.config, store.get_feature_view("counts"), rows)
    return store


def test_a_service_is_read_in_one_go(store):
    columns = OnlineReader(store, store.get_feature_service("both")).read(np.array([3, 2, 1, 9]))
    assert sorted(columns.columns) == ["codes:generation", "codes:sid", "counts:plays"]
    assert columns["codes:sid"].to_pylist() == [None, [], [1, 2], None]
    assert columns["codes:sid"].matrix(2, fill=-1).tolist() == [
        [-1, -1],
        [-1, -1],
        [1, 2],
        [-1, -1],
    ]
    assert columns["codes:generation"].to_pylist() == [None, None, "g", None]
    assert columns["counts:plays"].to_pylist() == [30, 20, None, None]
    assert columns.found["codes"].tolist() == [False, True, True, False]
    assert columns.found["counts"].tolist() == [True, True, False, False]


def test_what_a_reader_says_is_what_feast_says(store):
    ids = [2, 7, 1, 3, 2]
    references = ["counts:skips", "codes:sid", "counts:plays"]
    columns = OnlineReader(store, references).read(np.array(ids, dtype="i4"))
    response = store.get_online_features(
        features=references, entity_rows=[{"user_id": n} for n in ids]
    ).to_dict()
    for reference in references:
        assert columns[reference].to_pylist() == response[reference.partition(":")[2]]


@pytest.mark.parametrize("ids", [[2], [9], [3, 2, 1, 9]])
def test_values_are_those_of_the_arrays(store, ids):
    reader = OnlineReader(store, store.get_feature_service("both"))
    columns, views = reader.read(np.array(ids)), reader.read_values(np.array(ids))
    for name, column in columns.columns.items():
        view_name, feature = name.split(":")
        values = views[view_name].values[feature]
        as_lists = [list(value) if isinstance(value, tuple) else value for value in values]
        assert as_lists == column.to_pylist()
    for name, event_us in columns.event_us.items():
        assert list(views[name].event_us) == event_us.tolist()


def test_what_was_not_asked_for_is_an_error(store):
    columns = OnlineReader(store, ["counts:plays"]).read(np.array([1]))
    with pytest.raises(InputError, match="no column 'counts:skips' was read"):
        columns["counts:skips"]
    with pytest.raises(InputError, match="one row of integers, got float64"):
        OnlineReader(store, ["counts:plays"]).read(np.array([1.0]))


def test_views_of_two_join_keys_are_refused(tmp_path):
    words = view(tmp_path, "words", {"n": Int64}, entity=label)
    counts = view(tmp_path, "counts", {"plays": Int64})
    store = repository(tmp_path, PACKED_SQLITE, [words, counts])
    with pytest.raises(InputError, match="views of one join key"):
        OnlineReader(store, ["words:n", "counts:plays"])


def test_a_stock_store_is_told_what_to_set(tmp_path):
    store = repository(tmp_path, STOCK_SQLITE, [view(tmp_path, "counts", {"plays": Int64})])
    with pytest.raises(InputError, match=r"SqliteOnlineStore.*packed_sqlite"):
        packed_store(store)
