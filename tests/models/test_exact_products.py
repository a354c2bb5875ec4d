"""Distances against plain differences in float64, and their bits against every cut of the rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.exact_products import distances, integers
from tests.models.blobs import blobs


@pytest.mark.parametrize("dims", [1, 3, 64, 2049])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_are_the_squared_distances(dims, scale):
    x, c = blobs(90, dims, 7) * scale, blobs(20, dims, 7, seed=1) * scale
    expected = ((x.double()[:, None] - c.double()[None]) ** 2).sum(2)
    size = x.double().norm(dim=1)[:, None] * c.double().norm(dim=1)
    error = (distances(x, c).double() - expected).abs()
    assert (error <= 2.0**-19 * (size + expected)).all()


def test_a_rows_bits_depend_on_that_row_alone():
    x, c = blobs(500, 300, 7), blobs(40, 300, 7, seed=1)
    whole = distances(x, c)
    for size in (1, 3, 128):
        assert torch.equal(torch.cat([distances(part, c) for part in x.split(size)]), whole)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(2))
    assert torch.equal(distances(x[order], c), whole[order])
    columns = torch.randperm(300, generator=torch.Generator().manual_seed(3))
    assert torch.equal(distances(x[:, columns], c[:, columns]), whole)


def test_equal_rows_are_at_distance_0():
    x = torch.cat([blobs(30, 50, 3) * 1e6, torch.zeros(2, 50)])
    assert (distances(x, x).diagonal() == 0).all()


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.floats(-(2.0**49), 2.0**49, width=32, allow_subnormal=False), min_size=1, max_size=40
    )
)
def test_integers_keep_21_bits_of_the_largest_value(values):
    row = torch.tensor([values], dtype=torch.float64)
    whole, scale = integers(row)
    assert (whole == whole.round()).all()
    assert float(whole.abs().max()) ** 2 * len(values) <= 2**53
    mantissa, _ = np.frexp(float(scale))
    assert mantissa == 0.5  # a power of two
    assert ((whole * scale - row).abs() <= 2.0**-21 * row.abs().max()).all()
