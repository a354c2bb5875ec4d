"""MMD and InfoNCE against plain loops in numpy, their gradients against finite differences."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.mm_rq_vae_losses import TEMPERATURE, info_nce, mmd, squared_distances


def pair(rows: int, dims: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dims, generator=generator, dtype=torch.float64)
    return x, x * 0.5 + torch.randn(rows, dims, generator=generator, dtype=torch.float64) + 1


def mmd_loop(x, y):
    """Pair by pair, from the formula."""
    both = [*x, *y]
    apart = [((a - b) ** 2).sum() for i, a in enumerate(both) for j, b in enumerate(both) if i != j]
    s2 = 0.5 * np.mean(apart)

    def k(left, right):
        return np.mean([np.exp(-((a - b) ** 2).sum() / (2 * s2)) for a in left for b in right])

    return k(x, x) + k(y, y) - 2 * k(x, y)


def info_nce_loop(a, b):
    def one_way(left, right):
        found = []
        for i, row in enumerate(left):
            cosine = [row @ o / (np.linalg.norm(row) * np.linalg.norm(o)) for o in right]
            e = np.exp(np.array(cosine) / TEMPERATURE)
            found.append(-np.log(e[i] / e.sum()))
        return np.mean(found)

    return (one_way(a, b) + one_way(b, a)) / 2


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 10_000))
def test_they_equal_the_loops(rows, dims, seed):
    x, y = pair(rows, dims, seed)
    assert float(mmd(x, y)) == pytest.approx(mmd_loop(x.numpy(), y.numpy()), rel=1e-9, abs=1e-12)
    expected = info_nce_loop(x.numpy(), y.numpy())
    assert float(info_nce(x, y)) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    distances = ((x[:, None] - y[None]) ** 2).sum(2)
    torch.testing.assert_close(squared_distances(x, y), distances, rtol=1e-9, atol=1e-9)


def test_mmd_sees_sets_and_not_rows():
    x, y = pair(30, 4, 1)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    assert float(mmd(x, x[order])) == pytest.approx(0, abs=1e-12)
    assert float(mmd(x, y)) > 0.01
    assert float(mmd(torch.ones(5, 2), torch.ones(5, 2))) == 0


@pytest.mark.parametrize("moving", ["x", "y"])
def test_the_gradient_of_mmd_holds_the_width_fixed(moving):
    """Central differences of the formula with s^2 as it is where they are taken."""
    at = dict(zip("xy", pair(5, 3, 2), strict=True))
    both = torch.cat([at["x"], at["y"]])
    mean = torch.cdist(both, both).square().sum() / (10 * 9)
    moved = at[moving].clone().requires_grad_()
    (3 * mmd(**{"x_BD": at["x"], "y_BD": at["y"], f"{moving}_BD": moved})).backward()

    def value(x, y):
        def k(a, b):
            return torch.exp(-torch.cdist(a, b).square() / mean).mean()

        return (k(x, x) + k(y, y) - 2 * k(x, y)).item()

    for row, dim in np.ndindex(5, 3):
        step = torch.zeros(5, 3, dtype=torch.float64)
        step[row, dim] = 1e-5
        ends = [value(**{**at, moving: at[moving] + sign * step}) for sign in (1, -1)]
        slope = 3 * (ends[0] - ends[1]) / 2e-5
        assert moved.grad[row, dim].item() == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_info_nce_falls_as_partners_come_together():
    x, y = pair(40, 8, 4)
    far, near = float(info_nce(x, y)), float(info_nce(x, x + 0.01 * y))
    assert near < 0.2 < 1 < far
    assert float(info_nce(x[:1], y[:1])) == 0
