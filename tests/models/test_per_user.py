"""Numbers of users come back from their text."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.per_user import LARGEST, packed, unpacked


@given(st.lists(st.integers(0, LARGEST), max_size=50))
def test_whole_numbers_come_back(values):
    text = json.loads(json.dumps(packed(np.array(values, dtype=np.int64))))
    np.testing.assert_array_equal(unpacked(text), values)


@given(st.lists(st.floats(-1, 1) | st.just(float("nan")), max_size=50))
def test_shares_come_back_to_four_digits(values):
    found = unpacked(packed(np.array(values, dtype=np.float64)))
    np.testing.assert_allclose(found, values, atol=5.1e-5)


@pytest.mark.parametrize("values", [[LARGEST + 1], [-1], [1.01], [-1.5, np.nan]])
def test_what_does_not_fit_is_refused(values):
    with pytest.raises(ValueError, match="values must be"):
        packed(np.array(values))


def test_another_text_is_refused():
    with pytest.raises(ValueError, match="packed values begin with"):
        unpacked("xyz")
