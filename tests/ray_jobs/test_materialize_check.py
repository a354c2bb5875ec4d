"""What a run finds wrong online: entities that are missing or have vanished, values that differ."""

import numpy as np
import pyarrow as pa
import pytest

from feature_repo.errors import ArtifactError
from feature_repo.online import packed_store
from feature_repo.store import open_store
from ray_jobs.materialize_check import check, expected_of
from ray_jobs.watermarks import read_progress, read_watermark, watermark_names
from tests.ray_jobs.materialized import DAYS, published, run, view_and_source
from tests.view_sources import (
    PAST_HOURS,
    PLAIN,
    SEQUENCE,
    at,
    expected_state,
    listen,
    online_state,
    plain_row,
    until,
    write_both,
    write_source,
)

pytest_plugins = ["tests.ray_jobs.materialized"]


def test_vanished_entities_are_counted_and_removed_when_asked(workspace):
    listens = [listen(n, n % 4 + 1, PAST_HOURS + n) for n in range(12)]
    plain = [plain_row(user, PAST_HOURS + user, user) for user in range(1, 5)]
    store = published(workspace, plain, listens)
    run(workspace)
    left = [row for row in plain if row["user_id"] != 3]
    write_both(workspace, left, [row for row in listens if row["user_id"] != 3])
    views = run(workspace)
    for name in (PLAIN, SEQUENCE):
        assert (views[name]["vanished"], views[name]["removed"], views[name]["online"]) == (1, 0, 4)
        assert read_watermark(workspace, name).vanished == 1
    views = run(workspace, remove_vanished=True)
    for name in (PLAIN, SEQUENCE):
        assert (views[name]["vanished"], views[name]["removed"], views[name]["online"]) == (0, 1, 3)
    assert set(online_state(store)[0]) == set(online_state(store)[1]) == {1, 2, 4}


def test_an_empty_source_removes_nobody(workspace):
    store = published(workspace, [plain_row(1, PAST_HOURS, 1)], [listen(1, 1, PAST_HOURS)])
    run(workspace)
    write_source(workspace, PLAIN, [])
    with pytest.raises(ArtifactError, match=r"has no row, its 1 online rows were not removed"):
        run(workspace, views=(PLAIN,), remove_vanished=True)
    assert set(online_state(store)[0]) == {1}


def test_an_online_store_that_lost_rows_is_filled_again(workspace, twenty_days):
    store = published(workspace, *twenty_days)
    run(workspace)
    online = packed_store(store)
    online.delete_rows(store.config, store.get_feature_view(PLAIN), np.arange(1, 11))
    views = run(workspace)
    assert views[PLAIN]["reason"] == "the online store holds 30 of 40 rows"
    assert online_state(store) == expected_state(*twenty_days, at(21 * DAYS))


def test_a_missing_entity_is_an_error_with_the_numbers(workspace, twenty_days):
    published(workspace, *twenty_days)
    run(workspace)
    store, online, source = view_and_source(workspace, PLAIN)
    online.delete_rows(store.config, source.view, np.array([7, 9]))
    with pytest.raises(ArtifactError) as raised:
        check(store, online, source, expected_of(source, at(21 * DAYS), seed=0))
    assert "2 of the source's 40 entities are not online, which holds 38 rows" in str(raised.value)
    assert "missing: 7, 9" in str(raised.value)
    assert "crescendo materialize --full" in str(raised.value)


@pytest.mark.parametrize("name", [PLAIN, SEQUENCE])
def test_a_wrong_value_is_an_error_that_names_it(workspace, twenty_days, name):
    published(workspace, *twenty_days)
    run(workspace)
    store, online, source = view_and_source(workspace, name)
    row = source.newest(np.array([8]), at(21 * DAYS)).to_pylist()[0]
    feature = source.view.features[0].name
    row[feature] = 4242 if name == PLAIN else [4242] * len(row[feature])
    columns = {key: pa.array([value]) for key, value in row.items()}
    online.write_table(store.config, source.view, pa.table(columns), replace=True)
    with pytest.raises(ArtifactError, match=rf"user_id 8 has {feature}=.*4242"):
        check(store, online, source, expected_of(source, at(21 * DAYS), seed=0))


def watermarks(workspace):
    return {name: read_watermark(workspace, name) for name in watermark_names(workspace)}


def test_a_failed_check_leaves_the_watermark(workspace, twenty_days, monkeypatch):
    published(workspace, *(until(rows, 10 * DAYS) for rows in twenty_days))
    run(workspace)
    before = watermarks(workspace)
    write_both(workspace, *twenty_days)

    def lossy(self, config, view, table, **_):
        return type(self).__base__.write_table(self, config, view, table.slice(1))

    with monkeypatch.context() as patch:
        store = open_store(workspace)
        patch.setattr(type(packed_store(store)), "write_table", lossy, raising=False)
        online = packed_store(store)
        for name in (PLAIN, SEQUENCE):
            view = store.get_feature_view(name)
            online.delete_rows(store.config, view, np.arange(1, 30))
        with pytest.raises(ArtifactError, match="not online"):
            run(workspace)
    assert watermarks(workspace) == before
    assert read_progress(workspace, PLAIN) is None
    run(workspace)
    assert online_state(store) == expected_state(*twenty_days, at(21 * DAYS))
