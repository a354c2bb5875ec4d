"""Served columns against recomputed ones: every kind of difference is counted as what it is."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.audit_compare import (
    EQUAL,
    EXTRA,
    MISMATCHED,
    MISSING,
    FeatureCounts,
    outcomes,
)

NAN = float("nan")
KINDS = {
    "int64": (pa.int64(), st.integers(0, 3)),
    "float64": (pa.float64(), st.sampled_from([0.0, -0.0, 1.5, NAN])),
    "string": (pa.string(), st.sampled_from(["", "a", "b"])),
    "bool": (pa.bool_(), st.booleans()),
    "int list": (pa.list_(pa.int64()), st.lists(st.integers(0, 2), max_size=4)),
    "float list": (pa.list_(pa.float64()), st.lists(st.sampled_from([1.0, NAN]), max_size=2)),
    "list with nulls": (pa.list_(pa.int64()), st.lists(st.none() | st.just(1), max_size=2)),
}


def alike(a, b):
    if isinstance(a, list):
        return len(a) == len(b) and all(alike(x, y) for x, y in zip(a, b, strict=True))
    return a == b or (a != a and b != b)


def outcome(served, offline):
    if served is None or offline is None:
        return EQUAL if served is offline else (MISSING if served is None else EXTRA)
    return EQUAL if alike(served, offline) else MISMATCHED


@st.composite
def columns(draw):
    kind, values = KINDS[draw(st.sampled_from(sorted(KINDS)))]
    pairs = draw(st.lists(st.tuples(st.none() | values, st.none() | values), max_size=12))
    return kind, [a for a, _ in pairs], [b for _, b in pairs]


@settings(max_examples=300, deadline=None)
@given(columns())
def test_outcomes_equal_value_by_value_comparison(case):
    kind, served, offline = case
    # Slices, so that offsets do not begin at zero.
    arrays = [pa.array([None, *values], kind)[1:] for values in (served, offline)]
    expected = [outcome(a, b) for a, b in zip(served, offline, strict=True)]
    assert outcomes(*arrays).tolist() == expected


def test_columns_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="2 values of int64, offline 2 of double"):
        outcomes(pa.array([1, 2]), pa.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="2 values of int64, offline 1 of int64"):
        outcomes(pa.array([1, 2]), pa.array([1]))


LIST = pa.list_(pa.int64())


def test_counts_add_up_over_chunks_and_leave_explained_reads_apart():
    counts = FeatureCounts()
    served = pa.array([[1], [1, 2], None, [3], [4], [5]], LIST)
    offline = pa.array([[1], [2, 3], [7, 8], None, [4, 9], [5]], LIST)
    explained = np.array([False, False, False, False, True, True])
    for start in (0, 4):
        chunk = slice(start, start + 4)
        found = outcomes(served[chunk], offline[chunk])
        counts.add(served[chunk], offline[chunk], found, explained[chunk])
    report = counts.report()
    lengths = {name: report.pop(name) for name in ("served_lengths", "offline_lengths")}
    assert report == {
        "compared": 6,
        "equal": 2,
        "mismatched": 1,
        "missing": 1,
        "extra": 1,
        "in_flight": 1,
        "inserts": 2,  # 1 of [1, 2], 3 of [3]
        "deletes": 3,  # 3 of [2, 3], 7 and 8
    }
    assert lengths["served_lengths"] == {"lists": 5, "min": 1, "mean": 1.2, "median": 1, "max": 2}
    assert lengths["offline_lengths"]["mean"] == 1.6


@settings(deadline=None)
@given(columns())
def test_every_read_is_counted_once(case):
    kind, served, offline = case
    arrays = pa.array(served, kind), pa.array(offline, kind)
    found = outcomes(*arrays)
    explained = np.arange(len(found)) % 3 == 0
    counts = FeatureCounts()
    counts.add(*arrays, found, explained)
    report = counts.report()
    kinds = Counter(found[~explained].tolist())
    assert report["mismatched"] == kinds[MISMATCHED]
    assert report["missing"] == kinds[MISSING]
    assert report["extra"] == kinds[EXTRA]
    names = ("equal", "mismatched", "missing", "extra", "in_flight")
    assert report["compared"] == len(found) == sum(report[name] for name in names)
