"""Logs that lie by user: found out, read without a sort, the same windows as from sorted ones."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FileSource
from feast.data_format import ParquetFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo import schema
from feature_repo.errors import ArtifactError, InputError
from feature_repo.stores import log_files
from feature_repo.stores.asof_log import EVENT_ID, LISTENED_US, USER, VISIBLE_US
from feature_repo.stores.asof_sources import Source
from feature_repo.stores.log_files import sorted_by_user, user_batches, whole_users

START = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = [USER, LISTENED_US, EVENT_ID, VISIBLE_US, "track_id"]
ROWS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 20), st.just(0) | st.integers(0, 20)), max_size=40
)
"""(user, second of the listen, how late it was)."""


def log(rows) -> pa.Table:
    """Rows of a log as `crescendo sequences` sorts them: by user, then by when they were seen."""
    events = [
        {
            schema.USER_ID: user,
            schema.LISTENED_AT: START + timedelta(seconds=second),
            schema.EVENT_TIMESTAMP: START + timedelta(seconds=second + late, microseconds=1),
            "event_id": 1000 - number,
            schema.TRACK_ID: number,
            "action": 1,
        }
        for number, (user, second, late) in enumerate(rows)
    ]
    events.sort(key=lambda row: (row[schema.USER_ID], row[schema.EVENT_TIMESTAMP]))
    return pa.Table.from_pylist(events, schema=schema.EVENT_LOG)


def written(folder, *tables) -> Source:
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for number, table in enumerate(tables):
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=7)
    return source_of(folder)


def source_of(folder) -> Source:
    place = FileSource(name="log", path=f"{folder}/*.parquet", file_format=ParquetFormat())
    return Source.of(place, None)


def us(second: float) -> int:
    return int((START + timedelta(seconds=second)).timestamp() * 1e6)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Batches of five rows, so that users lie across them."""
    monkeypatch.setattr(log_files, "BATCH_ROWS", 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("log")


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, low=st.none() | st.integers(0, 20), span=st.integers(0, 25))
def test_batches_are_whole_users_in_the_order_of_a_sequence(folder, rows, low, span):
    odd, even = ([row for row in rows if row[0] % 2 == rest] for rest in (1, 0))
    tables = [log(odd), log(even)]
    source = written(folder / "windows", *tables)
    assert sorted_by_user(source)
    low_us, high_us = (None, None) if low is None else (us(low), us(low + span))
    found = list(user_batches(source, NAMES, low_us, high_us))
    expected = [
        (row[schema.USER_ID], us_of(row[schema.LISTENED_AT]), row["event_id"])
        for row in pa.concat_tables(tables).to_pylist()
        if low_us is None or low_us <= us_of(row[schema.EVENT_TIMESTAMP]) <= high_us
    ]
    users = [set(batch[USER].tolist()) for batch in found]
    assert sum(map(len, users)) == len({user for user, _, _ in expected})
    triples = [
        triple
        for batch in found
        for triple in zip(*(batch[name].tolist() for name in NAMES[:3]), strict=True)
    ]
    # The files come one after the other; inside one, users rise.
    expected.sort(key=lambda triple: (triple[0] % 2 == 0, *triple))
    assert triples == expected
    for batch in found:
        # A track is the number of its event: columns stay together.
        assert (batch["track_id"] == 1000 - batch[EVENT_ID]).all()


def us_of(moment: datetime) -> int:
    return int((moment - START) / timedelta(microseconds=1)) + us(0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=30), st.lists(st.integers(0, 4), max_size=30))
def test_a_log_is_by_user_if_users_rise_and_lie_in_one_file(folder, first, second):
    tables = [
        log([(0, 1, 0)] * len(users)).set_column(
            0, schema.EVENT_LOG.field(0), pa.array(users, type=pa.int64())
        )
        for users in (first, second)
    ]
    expected = first == sorted(first) and second == sorted(second) and not set(first) & set(second)
    assert sorted_by_user(written(folder / "order", *tables)) == expected


def test_other_types_and_damaged_files_are_left_to_duckdb(tmp_path):
    rows = log([(1, 1, 0), (2, 1, 0)])
    assert sorted_by_user(written(tmp_path, rows))
    wide = rows.schema.get_field_index(schema.LISTENED_AT)
    moments = rows[schema.LISTENED_AT].cast(pa.timestamp("ns", "UTC"))
    assert not sorted_by_user(written(tmp_path, rows.set_column(wide, schema.LISTENED_AT, moments)))
    assert not sorted_by_user(written(tmp_path, rows.drop_columns(["action"])))
    (tmp_path / "part-0.parquet").write_bytes(b"PAR1")
    assert not sorted_by_user(source_of(tmp_path))


def test_a_null_is_refused_with_the_source_and_the_command(tmp_path):
    rows = log([(1, 1, 0), (2, 1, 0)])
    loose = pa.schema([field.with_nullable(True) for field in rows.schema])
    rows = rows.cast(loose).set_column(3, loose.field(3), pa.array([1, None], type=pa.int64()))
    with pytest.raises(InputError, match=r"log \(.*event_id is int64 with 1 nulls.*sequences"):
        list(user_batches(written(tmp_path, rows), NAMES, None, None))


def test_a_damaged_page_is_an_error_that_names_the_file(tmp_path):
    source = written(tmp_path, log([(n // 10, n, 0) for n in range(2000)]))
    path = tmp_path / "part-0.parquet"
    data = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(100).column(4).data_page_offset
    data[start : start + 40] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"part-0\.parquet is not a whole parquet file"):
        list(user_batches(source, NAMES, None, None))


def test_a_user_longer_than_many_batches_is_held_whole():
    user = np.array([1, 1, 2])
    batches = [{USER: user[start : start + 1], "n": np.array([start])} for start in range(3)]
    found = [batch["n"].tolist() for batch in whole_users(batches)]
    assert found == [[0, 1], [2]]
