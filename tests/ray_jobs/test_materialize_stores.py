"""Materialization and what surrounds it: other stores, the registry, options, and errors."""

import shutil
from itertools import pairwise

import pyarrow.parquet as pq
import pytest
from feast import RepoConfig
from hypothesis import given
from hypothesis import strategies as st

from feature_repo import schema
from feature_repo.errors import ArtifactError, InputError
from feature_repo.store import open_store
from ray_jobs.materialize import materialize
from ray_jobs.materialize_options import MaterializeOptions
from ray_jobs.materialize_range import store_identity
from ray_jobs.materialize_registry import merge_intervals
from ray_jobs.watermarks import folder, read_watermark
from tests.ray_jobs.materialized import DAYS, published, run
from tests.view_sources import (
    PLAIN,
    SEQUENCE,
    apply_views,
    at,
    expected_state,
    online_state,
    packed_settings,
    until,
    write_both,
)

pytest_plugins = ["tests.ray_jobs.materialized"]


def test_another_store_and_other_fields_read_the_whole_source(workspace, twenty_days):
    store = published(workspace, *twenty_days)
    run(workspace)
    changed = packed_settings()
    changed["online_store"]["path"] = "other.db"
    store = apply_views(workspace, changed)
    assert run(workspace)[PLAIN]["reason"] in ("first time", "another store, or other fields")
    assert online_state(store) == expected_state(*twenty_days, at(21 * DAYS))


def test_the_identity_of_a_store_holds_no_password(workspace, twenty_days):
    store = published(workspace, *twenty_days)
    settings_ = packed_settings(redis="127.0.0.1:6379,password=hunter2")["online_store"]
    config = RepoConfig(
        project="p", provider="local", registry="registry.db", online_store=settings_
    )
    identity = store_identity(config, store.get_feature_view(PLAIN))
    assert "127.0.0.1:6379" in identity
    assert "hunter2" not in identity


@pytest.mark.parametrize("registry", ["file", "sql"])
def test_the_registry_holds_one_growing_interval(workspace, twenty_days, registry):
    plain, listens = twenty_days
    write_both(workspace, until(plain, 10 * DAYS), until(listens, 10 * DAYS))
    config = packed_settings()
    if registry == "sql":
        path = f"sqlite:///{workspace.root / 'registry_sql.db'}"
        config["registry"] = {"registry_type": "sql", "path": path}
    apply_views(workspace, config)
    for day in (10, 11, 12):
        write_both(workspace, until(plain, day * DAYS), until(listens, day * DAYS))
        result = materialize(workspace, MaterializeOptions())
        view = open_store(workspace).get_feature_view(PLAIN)
        ((start, end),) = view.materialization_intervals
        assert start.isoformat() == "1970-01-01T00:00:00+00:00"
        assert end.isoformat() == result["as_of"]
        assert view.most_recent_end_time == end


@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.integers(0, 10)).map(lambda p: (at(p[0]), at(sum(p)))),
        max_size=8,
    )
)
def test_merged_intervals_hold_the_same_moments(intervals):
    merged = merge_intervals(intervals)
    assert merged == sorted(merged)
    assert all(a[1] < b[0] for a, b in pairwise(merged))
    for hour in range(-1, 62):
        for moment in (at(hour), at(hour + 0.5)):
            inside = [any(s <= moment <= e for s, e in some) for some in (intervals, merged)]
            assert inside[0] == inside[1]


def test_a_stock_store_is_written_by_feast_whole_and_says_so(workspace, twenty_days, capfd):
    write_both(workspace, *(until(rows, 10 * DAYS) for rows in twenty_days))
    config = packed_settings()
    config["online_store"] = {"type": "sqlite", "path": "online.db"}
    store = apply_views(workspace, config)
    run(workspace)
    write_both(workspace, *twenty_days)
    views = run(workspace)
    expected = expected_state(*twenty_days, at(21 * DAYS))
    assert views[PLAIN]["reason"] == "one of Feast's own online stores"
    assert views[PLAIN]["rows"] == len(expected[0])
    read = store.get_online_features(
        features=[f"{PLAIN}:plays", f"{SEQUENCE}:{schema.SEQUENCE_EVENT_IDS}"],
        entity_rows=[{"user_id": user} for user in expected[0]],
    ).to_dict()
    assert read["plays"] == [row["plays"] for row in expected[0].values()]
    assert read[schema.SEQUENCE_EVENT_IDS] == [expected[1].get(user) for user in expected[0]]
    assert "one of Feast's own online stores" in capfd.readouterr().out
    assert read_watermark(workspace, PLAIN).entities == len(expected[0])


def test_errors_name_what_to_do(workspace, twenty_days):
    store = published(workspace, *twenty_days)
    with pytest.raises(ArtifactError, match="view nothing is not in the feature store"):
        run(workspace, views=("nothing",))
    run(workspace)
    mark = folder(workspace) / f"{PLAIN}.json"
    mark.write_text('{"view": 1}')
    with pytest.raises(ArtifactError, match=r"is not a watermark .*remove it"):
        run(workspace)
    mark.unlink()
    part = workspace.feature_source(PLAIN) / "part-0.parquet"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=r"part-0.parquet was changed.*crescendo sequences"):
        run(workspace)
    shutil.rmtree(workspace.feature_source(PLAIN))
    with pytest.raises(ArtifactError, match="no parquet file"):
        run(workspace)
    assert store


def test_a_log_that_does_not_say_when_its_last_row_is_is_refused(workspace, twenty_days):
    published(workspace, *twenty_days)
    part = next(workspace.feature_source(SEQUENCE).glob("*.parquet"))
    pq.write_table(pq.read_table(part), part, write_statistics=False)
    with pytest.raises(ArtifactError, match=r"parquet does not say when .*crescendo sequences"):
        run(workspace)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"late_bound_h": -1}, "late_bound_h must be hours, at least 0, got -1"),
        ({"late_bound_h": float("nan")}, "late_bound_h"),
        ({"chunk_rows": 0}, "chunk_rows must be at least 1, got 0"),
    ],
)
def test_wrong_options(options, reason):
    with pytest.raises(InputError, match=reason):
        MaterializeOptions(**options)
