"""Point-in-time joins of plain views against stock Feast's DuckDB and a loop over the rows."""

from datetime import timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureView, Field, FileSource
from feast.data_format import ParquetFormat
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Int64
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from feature_repo.errors import InputError
from feature_repo.stores.asof import AsofOfflineStoreConfig, latest_rows
from tests.feature_repo.stores.asof_repo import (
    COUNTS,
    MOODS,
    OURS,
    START,
    STOCK,
    TTL,
    answer,
    entity_rows,
    minute,
    open_repo,
    write,
)

LISTS = st.none() | st.lists(st.none() | st.integers(0, 9), max_size=3)
COUNT_ROWS = st.lists(
    st.tuples(
        st.none() | st.integers(1, 3),
        st.integers(0, 12),
        st.none() | st.integers(0, 30),  # created
        st.none() | st.integers(-5, 5),
        st.none() | st.floats(allow_nan=False),
        LISTS,
    ),
    max_size=20,
    unique_by=lambda row: row[:3],
)
MOOD_ROWS = st.lists(
    st.tuples(
        st.integers(1, 3), st.sampled_from("ab"), st.integers(0, 12), st.none() | st.text("xyz")
    ),
    max_size=20,
    unique_by=lambda row: row[:3],
)
ENTITY_ROWS = st.lists(
    st.tuples(
        st.none() | st.integers(1, 4), st.none() | st.sampled_from("abc"), st.integers(-1, 20)
    ),
    min_size=1,
    max_size=12,
)
FEATURES = ["counts:plays", "counts:tracks", "counts:score", "moods:mood"]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Ours and stock's over one folder of sources."""
    folder = tmp_path_factory.mktemp("repo")
    return folder, open_repo(folder, OURS), open_repo(folder, STOCK)


def count_rows(drawn):
    names = COUNTS.names
    return [
        dict(
            zip(
                names,
                (user, minute(at), None if created is None else minute(created), *values),
                strict=True,
            )
        )
        for user, at, created, *values in drawn
    ]


def mood_rows(drawn):
    return [{"who": w, "hour": h, "seen": minute(at), "m": mood} for w, h, at, mood in drawn]


def newest_count(rows, user, moment):
    """The row that counts: newest, then newest created, rows without created last."""
    mine = [row for row in rows if row["user_id"] == user and row["event_timestamp"] <= moment]
    never = START - timedelta(days=1)
    return max(
        mine,
        key=lambda row: (row["event_timestamp"], row["created"] or never),
        default={"plays": None, "score": None, "tracks": None},
    )


def newest_mood(rows, user, hour, moment):
    mine = [
        row
        for row in rows
        if (row["who"], row["hour"]) == (user, hour) and moment - TTL <= row["seen"] <= moment
    ]
    return max(mine, key=lambda row: row["seen"], default={"m": None})["m"]


@settings(max_examples=25, deadline=None)
@given(counts=COUNT_ROWS, moods=MOOD_ROWS, asked=ENTITY_ROWS)
def test_the_join_equals_stock_and_a_loop(stores, counts, moods, asked):
    folder, ours, stock = stores
    counts, moods, rows = count_rows(counts), mood_rows(moods), entity_rows(asked)
    write(folder, "counts", counts, COUNTS)
    write(folder, "moods", moods, MOODS)
    found = answer(ours, rows, FEATURES)
    for (user, hour, at), row in zip(asked, found, strict=True):
        count = newest_count(counts, user, minute(at)) if user is not None else {}
        assert (row["user_id"], row["event_timestamp"]) == (user, minute(at))
        for name in ("plays", "score", "tracks"):
            assert row[name] == count.get(name)
        assert row["mood"] == newest_mood(moods, user, hour, minute(at))
    assert found == answer(stock, rows, FEATURES)


@pytest.fixture
def filled(stores):
    folder, ours, stock = stores
    rows = [(1, 0, None, 1, 0.5, [1]), (1, 5, None, None, None, []), (2, 3, 4, 7, 1.5, None)]
    write(folder, "counts", count_rows(rows), COUNTS)
    write(folder, "moods", mood_rows([(1, "a", 1, "x"), (1, "a", 9, None)]), MOODS)
    return folder, ours, stock


def test_entity_rows_keep_their_order_and_columns(filled):
    _, ours, _ = filled
    rows = entity_rows([(2, "a", 9), (1, "a", 9), (2, "a", 9), (1, "a", -1)])
    rows["label"] = pd.array([True, None, False, True], dtype="boolean")
    rows["event_timestamp"] = rows["event_timestamp"].astype("datetime64[ns, UTC]")
    table = ours.get_historical_features(rows.copy(), ["counts:plays"]).to_arrow()
    assert table.drop_columns("plays").to_pylist() == pa.Table.from_pandas(rows).to_pylist()
    assert table["plays"].to_pylist() == [7, None, 7, None]


def test_an_empty_list_is_not_null(filled):
    _, ours, _ = filled
    rows = entity_rows([(1, "a", 5), (1, "a", 4), (2, "a", 5), (3, "a", 5)])
    assert [row["tracks"] for row in answer(ours, rows, ["counts:tracks"])] == [
        [],
        [1],
        None,
        None,
    ]


def test_full_feature_names_and_renamed_keys_equal_stock(filled):
    _, ours, stock = filled
    rows = entity_rows([(1, "a", 3), (2, "b", 9)]).rename(columns={"user_id": "listener"})
    view = ours.get_feature_view("counts")
    renamed = view.with_join_key_map({"user_id": "listener"}).with_name("of_listener")
    from feast import FeatureService

    service = FeatureService(name="s", features=[renamed[["plays", "score"]]])
    for store in (ours, stock):
        store.apply([service])
    found = answer(ours, rows, service, full_feature_names=True)
    assert [row["of_listener__plays"] for row in found] == [1, 7]
    assert found == answer(stock, rows, service, full_feature_names=True)


def test_entity_rows_from_sql(filled, tmp_path):
    _, ours, _ = filled
    path = tmp_path / "rows.parquet"
    rows = entity_rows([(2, "a", 9), (1, "a", 3)])
    pq.write_table(pa.Table.from_pandas(rows), path)
    query = f"SELECT * FROM '{path}' ORDER BY row DESC"
    table = ours.get_historical_features(query, ["counts:plays", "moods:mood"]).to_arrow()
    assert table["row"].to_pylist() == [1, 0]
    assert table["plays"].to_pylist() == [1, 7]
    assert table["mood"].to_pylist() == ["x", None]


def test_text_and_naive_moments_are_utc(filled):
    _, ours, _ = filled
    rows = entity_rows([(1, "a", 4), (1, "a", 5)])
    naive = rows.assign(event_timestamp=rows["event_timestamp"].dt.tz_localize(None))
    text = rows.assign(event_timestamp=["2026-01-01T01:04:00+01:00", "2026-01-01T00:05:00"])
    elsewhere = rows.assign(event_timestamp=rows["event_timestamp"].dt.tz_convert("Asia/Tokyo"))
    for given_rows in (rows, naive, text, elsewhere):
        table = ours.get_historical_features(given_rows, ["counts:plays"]).to_arrow()
        assert table["plays"].to_pylist() == [1, None]


def test_on_demand_views_run_batch_by_batch_as_feast_runs_them(filled):
    _, ours, stock = filled
    rows = entity_rows([(1, "a", 3), (2, "b", 9)])
    tables = []
    for store in (ours, stock):
        counts = store.get_feature_view("counts")

        @on_demand_feature_view(
            sources=[counts[["plays"]]], schema=[Field(name="double", dtype=Int64)], mode="pandas"
        )
        def doubled(inputs: pd.DataFrame) -> pd.DataFrame:
            return pd.DataFrame({"double": inputs["plays"] * 2})

        store.apply([doubled])
        tables.append(answer(store, rows, ["counts:plays", "doubled:double"]))
    assert tables[0] == tables[1]
    assert [row["double"] for row in tables[0]] == [2, 14]
    job = ours.get_historical_features(rows.copy(), ["counts:plays", "doubled:double"])
    assert pa.concat_tables(job.to_arrow_batches()).to_pylist() == tables[0]


def test_batches_and_files_are_the_whole_answer(filled, tmp_path):
    _, ours, _ = filled
    random = np.random.default_rng(0)
    asked = [(int(u), "a", float(m)) for u, m in random.integers(0, 9, (100_000, 2))]
    rows = entity_rows(asked)
    job = ours.get_historical_features(rows, ["counts:plays", "counts:tracks"])
    whole = job.to_arrow()
    parts = list(job.to_arrow_batches())
    assert len(parts) > 1
    assert pa.concat_tables(parts).equals(whole)
    path = tmp_path / "deep" / "set.parquet"
    assert job.write_parquet(str(path)) == len(asked)
    assert pq.read_table(path).to_pylist() == whole.to_pylist()
    assert [p.name for p in path.parent.iterdir()] == ["set.parquet"]


def test_no_entity_rows_give_no_rows_but_all_columns(filled):
    _, ours, _ = filled
    table = ours.get_historical_features(entity_rows([(1, "a", 1)]).head(0), FEATURES).to_arrow()
    assert table.num_rows == 0
    assert {"plays", "tracks", "score", "mood", "user_id", "row"} <= set(table.column_names)
    assert table.schema.field("tracks").type == pa.list_(pa.int64())


def test_a_view_without_entities(filled):
    folder, ours, _ = filled
    stamps = pa.array([minute(0), minute(5)], type=pa.timestamp("us", tz="UTC"))
    (folder / "global").mkdir(exist_ok=True)
    pq.write_table(
        pa.table({"event_timestamp": stamps, "tracks_known": [10, 20]}),
        folder / "global" / "part.parquet",
    )
    source = FileSource(
        name="global_source",
        path=str(folder / "global"),  # a folder
        file_format=ParquetFormat(),
        timestamp_field="event_timestamp",
    )
    view = FeatureView(
        name="global", entities=[], schema=[Field(name="tracks_known", dtype=Int64)], source=source
    )
    ours.apply([view])
    rows = entity_rows([(1, "a", 4), (None, "a", 5), (2, None, -1)])
    assert [r["tracks_known"] for r in answer(ours, rows, ["global:tracks_known"])] == [
        10,
        20,
        None,
    ]


@settings(max_examples=20, deadline=None)
@given(counts=COUNT_ROWS, start=st.integers(-1, 12), span=st.integers(0, 12))
def test_latest_rows_equal_a_loop_and_stock(stores, counts, start, span):
    folder, ours, stock = stores
    rows = [row for row in count_rows(counts) if row["user_id"] is not None]
    write(folder, "counts", rows, COUNTS)
    view = ours.get_feature_view("counts")
    after, upto = minute(start), minute(start + span)
    parts = list(latest_rows(ours.config, view, after, upto, chunk_rows=2))
    assert all(part.num_rows <= 2 for part in parts)
    found = {row["user_id"]: row for row in pa.concat_tables(parts).to_pylist()}
    inside = [row for row in rows if row["event_timestamp"] > after]
    users = {row["user_id"] for row in inside if row["event_timestamp"] <= upto}
    assert found == {user: newest_count(inside, user, upto) for user in users}

    asked = ([], ["plays", "tracks"], "event_timestamp", "created", after, upto)
    pulled = []
    for store in (ours, stock):
        job = store._get_provider().offline_store.pull_latest_from_table_or_query(
            store.config, view.batch_source, ["user_id"], *asked[1:]
        )
        columns = ["user_id", "event_timestamp", "plays", "tracks"]
        table = job.to_arrow().select(columns).sort_by("user_id")
        pulled.append(table.to_pylist())
        chunks = [column.num_chunks for column in job.to_arrow().columns]
        assert store is stock or max(chunks) <= 1
    assert pulled[0] == pulled[1]


def test_pull_all_equals_stock(filled):
    _, ours, stock = filled
    view = ours.get_feature_view("counts")
    tables = [
        store._get_provider()
        .offline_store.pull_all_from_table_or_query(
            store.config,
            view.batch_source,
            ["user_id"],
            ["plays", "tracks"],
            "event_timestamp",
            start_date=minute(3),
            end_date=minute(5),
        )
        .to_arrow()
        .select(["user_id", "event_timestamp", "plays", "tracks"])
        .sort_by("user_id")
        .to_pylist()
        for store in (ours, stock)
    ]
    assert len(tables[0]) == 2
    assert tables[0] == tables[1]


def test_bad_questions_say_what_is_wrong(filled):
    _, ours, _ = filled
    rows = entity_rows([(1, "a", 1)])
    with pytest.raises(InputError, match="view counts joins on user_id, the entity rows have row"):
        answer(ours, rows.drop(columns="user_id"), ["counts:plays"])
    with pytest.raises(InputError, match="plays would be both a column of the entity rows and"):
        answer(ours, rows.assign(plays=1), ["counts:plays"])
    with pytest.raises(InputError, match="event_timestamp of the entity rows must hold times, got"):
        answer(ours, rows.assign(event_timestamp=3), ["counts:plays"])
    with pytest.raises(InputError, match="needs entity_df"):
        ours.get_historical_features(features=["counts:plays"], start_date=START)
    with pytest.raises(InputError, match="Parser Error"):
        ours.get_historical_features("SELEC 1", ["counts:plays"])


@pytest.mark.parametrize("wrong", [{"memory_limit_mb": 1}, {"threads": 0}, {"threds": 2}])
def test_settings_are_checked(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        AsofOfflineStoreConfig(**wrong)
