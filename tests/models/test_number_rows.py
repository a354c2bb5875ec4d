"""Numbers beside IDs, against datetime, scikit-learn and a row-by-row reading."""

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from models.batch import Batch
from models.number_rows import CONTEXT, NumberStatistics, number_rows
from models.numbers import Numbers

NAMES = ("plays", *CONTEXT, "skips")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def one_row(moment_us, *, listens=0, listened_us=0, names=NAMES, **counts):
    counts = {"plays": np.array([0]), "skips": np.array([np.nan])} | counts
    (row,) = number_rows(
        names,
        counts,
        moments_us_B=np.array([moment_us]),
        history_lengths_B=np.array([listens]),
        last_listens_us_B=np.array([listened_us]),
    )
    return dict(zip(names, row, strict=True))


@settings(deadline=None)
@given(st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1)))
def test_hour_and_weekday_are_those_of_the_calendar(when):
    moment = when.replace(tzinfo=UTC)
    row = one_row((moment - EPOCH) // timedelta(microseconds=1))
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    day = 2 * math.pi * ((moment - midnight) / timedelta(days=1))
    week = 2 * math.pi * moment.weekday() / 7
    found = [row[name] for name in ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos")]
    expected = [math.sin(day), math.cos(day), math.sin(week), math.cos(week)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_time_since_the_last_listen_is_known_with_a_history_alone():
    moment = 10**15
    row = one_row(moment, listens=3, listened_us=moment - 90 * 10**6)
    assert row["log_since_listen"] == pytest.approx(math.log(91), rel=1e-6)
    assert (row["history_length"], row["without_listen"]) == (3, 0)
    ahead = one_row(moment, listens=3, listened_us=moment + 5)
    assert ahead["log_since_listen"] == 0
    without = one_row(moment)
    assert math.isnan(without["log_since_listen"])
    assert (without["history_length"], without["without_listen"]) == (0, 1)


def test_a_count_without_a_row_is_zero_and_one_value_serves_all_rows():
    rows = number_rows(
        ("a", "b"),
        {"a": np.array([1.0, np.nan, 3.0]), "b": np.array([7]), "unread": np.zeros(3)},
        moments_us_B=np.zeros(3, dtype=np.int64),
        history_lengths_B=np.zeros(3, dtype=np.int64),
        last_listens_us_B=np.zeros(3, dtype=np.int64),
    )
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, [[1, 7], [0, 7], [3, 7]])


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 50), max_size=4), seed=st.integers(0, 99))
def test_statistics_are_those_of_scikit_learn_in_parts_of_any_size(cuts, seed):
    random = np.random.default_rng(seed)
    numbers = np.zeros((50, len(NAMES)), dtype=np.float32)
    numbers[:, 0] = random.integers(0, 1000, 50)
    numbers[:, 1:-1] = random.normal(3, 2, (50, len(CONTEXT)))
    numbers[::3, NAMES.index("log_since_listen")] = np.nan
    statistics = NumberStatistics(NAMES)
    for part in np.split(numbers, sorted(cuts)):
        statistics.add(part)
    found = statistics.tensors()
    transformed = numbers.astype(np.float64)
    transformed[:, [0, -1]] = np.log1p(transformed[:, [0, -1]])
    oracle = StandardScaler().fit(transformed)
    np.testing.assert_allclose(found["mean_N"], oracle.mean_, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["spread_N"], oracle.scale_, rtol=1e-5)
    assert found["spread_N"][-1] == 1  # skips: always 0
    assert (found["mean_N"].dtype, found["spread_N"].dtype) == (np.float32, np.float32)


def test_a_model_sees_standardised_numbers_and_a_missing_one_as_the_mean():
    names = ("plays", "log_since_listen")
    numbers = Numbers(names)
    numbers.mean_N[:] = torch.tensor([2.0, 5.0])
    numbers.spread_N[:] = torch.tensor([0.5, 4.0])
    empty = torch.zeros(2, 0)
    batch = Batch(
        target_ids_B=empty,
        target_codes_BFL=empty,
        history_ids_BT=empty,
        history_codes_BTFL=empty,
        history_mask_BT=empty,
        numbers_BN=torch.tensor([[0.0, torch.nan], [math.e**3 - 1, 13.0]]),
    )
    (z,) = numbers(batch)
    torch.testing.assert_close(z, torch.tensor([[-4.0, 0.0], [2.0, 2.0]]))
    assert set(numbers.state_dict()) == {"mean_N", "spread_N"}


def test_without_numbers_nothing_is_added_and_nothing_is_saved():
    none = Numbers(())
    assert none.width == 0
    assert none(None) == []
    assert not none.state_dict()
