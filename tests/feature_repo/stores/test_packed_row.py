"""Packed rows: what is packed comes back bit for bit, in any mixture of types and lengths."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.errors import ArtifactError, InputError
from feature_repo.stores import packed_row
from feature_repo.stores.packed_columns import KINDS, NO_TIMESTAMP, column_from_arrow
from feature_repo.stores.packed_layout import NO_CREATION, OtherFieldsError, row_times
from feature_repo.stores.packed_one_row import OneRow
from feature_repo.stores.packed_row import RowCodec

VALUES = {
    "INT32": st.integers(-(2**31), 2**31 - 1),
    "INT64": st.integers(-(2**63), 2**63 - 1),
    "FLOAT": st.floats(width=32, allow_nan=False),
    "DOUBLE": st.floats(allow_nan=False),
    "BOOL": st.booleans(),
    "UNIX_TIMESTAMP": st.integers(-(10**10), 10**10),
    "STRING": st.text(max_size=5),
    "BYTES": st.binary(max_size=5),
}
EVERY = RowCodec((f"f_{name}", name) for name in KINDS)


def values_of(kind):
    one = VALUES[kind.removesuffix("_LIST")]
    return st.none() | (st.lists(one, max_size=4) if kind.endswith("_LIST") else one)


row = st.fixed_dictionaries({name: values_of(name) for name in KINDS})


def pack(codec, rows, event_us=None):
    columns = {
        name: column_from_arrow(kind, pa.array([r[kind.name] for r in rows], type=kind.arrow))
        for name, kind in codec.kinds.items()
    }
    event_us = np.arange(len(rows)) if event_us is None else np.array(event_us, dtype="i8")
    return codec.pack(event_us, np.full(len(rows), NO_CREATION), columns)


@settings(deadline=None, max_examples=60)
@given(st.lists(row, min_size=1, max_size=5))
def test_every_type_comes_back(rows):
    packed = pack(EVERY, rows)
    assert all(len(one) % 8 == 0 for one in packed)
    unpacked = EVERY.unpack(packed)
    for name, kind in EVERY.kinds.items():
        expected = [r[kind.name] for r in rows]
        assert unpacked.column(name).to_arrow().to_pylist() == expected
    assert unpacked.event_us().tolist() == list(range(len(rows)))
    assert (unpacked.created_us() == NO_CREATION).all()


@settings(deadline=None, max_examples=60)
@given(st.lists(row, min_size=1, max_size=3), st.integers(-(2**63), 2**63 - 1))
def test_a_row_alone_reads_as_columns_do(rows, event_us):
    packed = pack(EVERY, rows, [event_us] * len(rows))
    unpacked, one = EVERY.unpack(packed), OneRow(EVERY.layout)
    expected = [unpacked.column(name).stored_values() for name in EVERY.kinds]
    for n, packed_row_n in enumerate(packed):
        values = one.values(packed_row_n, list(EVERY.kinds))
        values = [list(value) if isinstance(value, tuple) else value for value in values]
        assert values == [column[n] for column in expected]
        assert list(map(type, values)) == [type(column[n]) for column in expected]
        assert one.event_us(packed_row_n) == event_us


@settings(deadline=None)
@given(row, st.integers(2, 4))
def test_rows_all_alike_read_as_one_matrix_does(one, count):
    alone = EVERY.unpack(pack(EVERY, [one]))
    together = EVERY.unpack(pack(EVERY, [one] * count))
    for name in EVERY.kinds:
        (value,) = alone.column(name).to_arrow().to_pylist()
        assert together.column(name).to_arrow().to_pylist() == [value] * count


@settings(deadline=None, max_examples=30)
@given(st.lists(row, min_size=1, max_size=9), st.sampled_from([1, 300, 700]))
def test_blocks_of_any_size_give_the_same_rows(rows, block_bytes):
    alike = rows[:1] * len(rows)
    whole = pack(EVERY, rows), pack(EVERY, alike)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_row, "BLOCK_BYTES", block_bytes)
        assert (pack(EVERY, rows), pack(EVERY, alike)) == whole


@given(st.lists(st.integers(-(2**62), 2**62), min_size=2, max_size=2))
def test_the_bytes_of_times_compare_as_the_times_do(event_us):
    codec = RowCodec([("a", "INT64")])
    first, second = pack(codec, [{"INT64": 0}] * 2, event_us)
    assert (first[8:16] < second[8:16]) == (event_us[0] < event_us[1])
    assert row_times([first, second])[0].tolist() == event_us


def test_bits_of_floats_are_kept():
    codec = RowCodec([("x", "FLOAT_LIST"), ("y", "DOUBLE_LIST")])
    single = np.array([0x7FC00001, 0x80000000, 0x7F800000], dtype="u4").view("f4")
    double = np.array([0x7FF8000000000001, 0x8000000000000000], dtype="u8").view("f8")
    columns = {
        "x": column_from_arrow(KINDS["FLOAT_LIST"], pa.array([single])),
        "y": column_from_arrow(KINDS["DOUBLE_LIST"], pa.array([double])),
    }
    unpacked = codec.unpack(codec.pack(np.zeros(1, "i8"), np.zeros(1, "i8"), columns))
    assert unpacked.column("x").values.tobytes() == single.tobytes()
    assert unpacked.column("y").values.tobytes() == double.tobytes()


def test_field_order_means_nothing_and_other_fields_are_told():
    a, b = RowCodec([("x", "INT64"), ("y", "STRING")]), RowCodec([("y", "STRING"), ("x", "INT64")])
    rows = pack(a, [{"INT64": 3, "STRING": "s"}])
    assert b.unpack(rows).column("x").values.tolist() == [3]
    for fields in ([("x", "INT64")], [("x", "INT32"), ("y", "STRING")]):
        with pytest.raises(OtherFieldsError):
            RowCodec(fields).unpack(rows)
        with pytest.raises(OtherFieldsError):
            OneRow(RowCodec(fields).layout).values(rows[0], ["x"])


@pytest.mark.parametrize("damage", [lambda r: r[:-8], lambda r: r + b"\0" * 8, lambda r: r[:20]])
def test_a_damaged_row_is_an_error(damage):
    codec = RowCodec([("x", "INT64_LIST"), ("y", "STRING")])
    rows = pack(codec, [{"INT64_LIST": [1, 2], "STRING": "abc"}, {"INT64_LIST": [], "STRING": ""}])
    for broken in ([damage(rows[0])], [damage(rows[0]), rows[1]], [damage(rows[0])] * 2):
        with pytest.raises(ArtifactError, match="damaged"):
            codec.unpack(broken)
    with pytest.raises(ArtifactError, match="damaged"):
        OneRow(codec.layout).values(damage(rows[0]), ["x"])


def test_other_types_are_refused_by_name():
    with pytest.raises(InputError, match="feature tags has type MAP"):
        RowCodec([("tags", "MAP")])


SLICED = pa.array([[9], [1, 2], None, []], type=pa.list_(pa.int32())).slice(1)


@pytest.mark.parametrize(
    ("kind", "array", "expected"),
    [
        ("INT64_LIST", SLICED, [[1, 2], None, []]),
        ("INT64_LIST", pa.array([[1, 2], [3, 4]], type=pa.list_(pa.int8(), 2)), [[1, 2], [3, 4]]),
        ("STRING", pa.array(["x", "yy", None]).slice(1), ["yy", None]),
        ("STRING", pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        ("STRING_LIST", pa.array([["a"], ["b", ""], None]).slice(1), [["b", ""], None]),
        ("INT64", pa.chunked_array([[1], [2, None]]), [1, 2, None]),
        ("BOOL", pa.array([True, None, False]), [True, None, False]),
        ("UNIX_TIMESTAMP", pa.array([-1, 1_999_999], pa.timestamp("us")), [-1, 1]),
        ("UNIX_TIMESTAMP", pa.array([5], pa.timestamp("s", "UTC")), [5]),
        ("UNIX_TIMESTAMP", pa.array([10**18 + 5], pa.timestamp("ns")), [10**9]),
        (
            "UNIX_TIMESTAMP_LIST",
            pa.array([[1_500], None], pa.list_(pa.timestamp("ms"))),
            [[1], None],
        ),
        ("UNIX_TIMESTAMP_LIST", pa.array([[None, 7]]), [[NO_TIMESTAMP, 7]]),
    ],
)
def test_arrow_of_many_kinds_is_taken(kind, array, expected):
    column = column_from_arrow(KINDS[kind], array)
    assert column.to_arrow().to_pylist() == expected


@pytest.mark.parametrize(
    ("kind", "array"),
    [
        ("INT64_LIST", pa.array([[1, None]])),
        ("STRING_LIST", pa.array([["a", None]])),
        ("INT32", pa.array([2**31])),
        ("INT64", pa.array([1.5])),
        ("INT64", pa.array(["x"])),
    ],
)
def test_what_a_type_cannot_hold_is_refused(kind, array):
    with pytest.raises((ValueError, pa.ArrowException)):
        column_from_arrow(KINDS[kind], array)


def test_python_values_are_those_of_feast():
    moments = column_from_arrow(KINDS["UNIX_TIMESTAMP_LIST"], pa.array([[0, NO_TIMESTAMP], None]))
    assert moments.to_pylist() == [[datetime(1970, 1, 1, tzinfo=UTC), None], None]


def test_a_matrix_cuts_and_fills():
    column = column_from_arrow(KINDS["INT64_LIST"], pa.array([[1, 2, 3], [4], None]))
    assert column.matrix(2, fill=-1).tolist() == [[1, 2], [4, -1], [-1, -1]]
    with pytest.raises(InputError, match="lists of numbers"):
        column_from_arrow(KINDS["STRING"], pa.array(["a"])).matrix(2)
