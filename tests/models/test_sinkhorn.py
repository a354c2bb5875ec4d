"""Sinkhorn's plan and codes against a plain loop in numpy, and what they promise of shares."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import sinkhorn
from models.sinkhorn import sinkhorn_codes, transport_plan


def drawn(rows: int, codes: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x, c = torch.randn(rows, 3, generator=generator), torch.randn(codes, 3, generator=generator)
    return torch.cdist(x, c).square()


def loop(distance, epsilon, iterations):
    """Columns to 1 / K, rows to 1 / B, in turn, on the whole plan; in extended precision."""
    d = distance.double().numpy().astype(np.longdouble)
    middle, half = (d.max() + d.min()) / 2, (d.max() - d.min()) / 2
    plan = np.exp(-((d - middle) / half - ((d - middle) / half).min(1, keepdims=True)) / epsilon)
    for _ in range(iterations):
        plan = plan / plan.sum(0) / plan.shape[1]
        plan = plan / plan.sum(1, keepdims=True) / plan.shape[0]
    return plan


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(2, 12), st.integers(0, 10_000))
def test_the_plan_is_that_of_the_loop(rows, codes, seed):
    distance = drawn(rows, codes, seed)
    expected = loop(distance, sinkhorn.EPSILON, sinkhorn.ITERATIONS).astype(np.float64)
    found = transport_plan(distance)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)
    assert torch.equal(sinkhorn_codes(distance), found.argmax(1))


@settings(max_examples=20, deadline=None)
@given(st.integers(5, 40), st.integers(2, 12), st.integers(0, 10_000))
def test_both_sums_are_even_once_it_has_converged(rows, codes, seed):
    """With a larger epsilon, at which 50 iterations are enough."""
    distance = drawn(rows, codes, seed)
    before = sinkhorn.EPSILON
    try:
        sinkhorn.EPSILON = 0.5
        plan = transport_plan(distance).numpy()
    finally:
        sinkhorn.EPSILON = before
    np.testing.assert_allclose(plan.sum(1), 1 / rows, rtol=1e-9)
    np.testing.assert_allclose(plan.sum(0), 1 / codes, rtol=1e-6)


def test_codes_that_no_row_is_near_to_get_their_share():
    """All rows lie near the first of 8 codes; nearest gives them all to it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 4, generator=generator) * 0.1
    codes = torch.cat([torch.zeros(1, 4), torch.randn(7, 4, generator=generator)])
    distance = torch.cdist(x, codes).square()
    nearest = torch.bincount(distance.argmin(1), minlength=8)
    shared = torch.bincount(sinkhorn_codes(distance), minlength=8)
    assert nearest[0] > 350
    assert shared.max() <= 2 * 400 / 8
    assert shared.min() > 0


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_units_do_not_matter_and_nothing_overflows(scale):
    """One far row and one far code: the ends of what exp(-C / epsilon) can hold."""
    distance = drawn(64, 16, 3).double()
    distance[0] += 1e6
    distance[:, 5] += 1e6
    plan = transport_plan(distance * scale)
    assert plan.isfinite().all()
    torch.testing.assert_close(plan, transport_plan(distance), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(plan.sum(1), 1 / 64, rtol=1e-9)


def test_equal_distances_give_the_even_plan():
    plan = transport_plan(torch.full((6, 3), 2.0))
    torch.testing.assert_close(plan, torch.full((6, 3), 1 / 18, dtype=torch.float64))
