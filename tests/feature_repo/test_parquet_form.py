"""The encodings of parquet files: any values come back, ids and times are kept as differences."""

from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_repo import schema
from feature_repo.parquet_form import DIFFERENCES, parquet_settings

INT64 = st.integers(-(2**63), 2**63 - 1)
MOMENTS = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)).map(
    lambda at: at.replace(tzinfo=UTC)
)
COLUMNS = {
    "id": (pa.int64(), INT64),
    "small": (pa.int16(), st.integers(-(2**15), 2**15 - 1)),
    "moment": (schema.TIMESTAMP, MOMENTS),
    "share": (pa.float32(), st.floats(width=32, allow_nan=False)),
    "name": (pa.string(), st.text(max_size=3)),
    "yes": (pa.bool_(), st.booleans()),
    "ids": (pa.list_(pa.int64()), st.lists(INT64, max_size=3)),
    "large": (pa.large_list(pa.int64()), st.lists(INT64, max_size=3)),
    "flags": (pa.list_(pa.bool_()), st.lists(st.booleans(), max_size=3)),
    "names": (pa.list_(pa.string()), st.lists(st.text(max_size=3), max_size=3)),
    "deep": (pa.list_(pa.list_(pa.int64())), st.lists(st.lists(INT64, max_size=2), max_size=2)),
    "pair": (pa.struct([("a", pa.int64())]), st.fixed_dictionaries({"a": INT64})),
}
ROWS = st.lists(
    st.fixed_dictionaries({name: st.none() | values for name, (_, values) in COLUMNS.items()}),
    max_size=6,
)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=ROWS)
def test_every_value_comes_back_from_arrow_and_duckdb(rows: list[dict], tmp_path: Path) -> None:
    kinds = pa.schema([(name, kind) for name, (kind, _) in COLUMNS.items()])
    table = pa.Table.from_pylist(rows, schema=kinds)
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path, **parquet_settings(kinds))
    assert pq.read_table(path).equals(table)
    found = duckdb.sql(f"SELECT * EXCLUDE (moment), epoch_us(moment) FROM '{path}'").fetchall()
    times = table["moment"].cast(pa.int64()).to_pylist()
    names = [name for name in COLUMNS if name != "moment"]
    assert found == [
        (*(row[name] for name in names), at)
        for row, at in zip(table.to_pylist(), times, strict=True)
    ]


def test_ids_and_times_are_kept_as_differences_alone_and_in_lists(tmp_path: Path) -> None:
    kinds = pa.schema([(name, kind) for name, (kind, _) in COLUMNS.items()])
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{}], schema=kinds), path, **parquet_settings(kinds))
    group = pq.read_metadata(path).row_group(0)
    columns = [group.column(n) for n in range(group.num_columns)]
    as_differences = {c.path_in_schema for c in columns if DIFFERENCES in c.encodings}
    assert as_differences == {"id", "moment", "ids.list.element", "large.list.element"}
    assert {column.compression for column in columns} == {"ZSTD"}


@pytest.mark.parametrize("ordered", [True, False])
def test_a_log_takes_fewer_bytes_than_in_parquets_default(tmp_path: Path, ordered: bool) -> None:
    random = np.random.default_rng(0)
    rows = 20_000
    at = 1_700_000_000_000_000 + random.integers(0, 10**12, rows)
    values = [random.integers(0, 200, rows), at + 1, at, random.permutation(rows)]
    values += [random.integers(0, 5_000, rows), random.integers(1, 5, rows)]
    if ordered:
        order = np.lexsort((at, values[0]))
        values = [column[order] for column in values]
    fields = zip(values, schema.EVENT_LOG, strict=True)
    arrays = [pa.array(column).cast(field.type) for column, field in fields]
    log = pa.table(arrays, schema=schema.EVENT_LOG)
    pq.write_table(log, tmp_path / "ours", **parquet_settings(log.schema))
    pq.write_table(log, tmp_path / "default", compression="zstd")
    sizes = [(tmp_path / name).stat().st_size for name in ("ours", "default")]
    assert sizes[0] < 0.8 * sizes[1]
