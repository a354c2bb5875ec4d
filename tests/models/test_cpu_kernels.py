"""The compiled loops of the CPU search against numpy and torch's own rounding."""

import numpy as np
import pytest
import torch

from models import cpu_kernels
from models.residual_codebook import Codebook
from models.threads import each, only_each, product
from tests.models.blobs import blobs


def test_rows_are_rounded_as_torch_rounds_them():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 37, generator=generator) * torch.logspace(-9, 9, 60)[:, None]
    x[0, :4] = torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8, 0.0])  # ties to even
    centre = torch.cat([torch.zeros(4), torch.randn(33, generator=generator)])
    low = np.empty((60, 37), dtype=np.uint16)
    norm, error = np.empty((2, 60), dtype=np.float32)
    cpu_kernels.round_rows(x.numpy(), centre.numpy(), low, norm, error)
    expected = (x - centre).bfloat16()
    np.testing.assert_array_equal(low, expected.view(torch.uint16).numpy())
    left = (x - centre).double() - expected.double()
    np.testing.assert_allclose(norm, (x - centre).double().norm(dim=1), rtol=1e-6)
    np.testing.assert_allclose(error, left.norm(dim=1), rtol=1e-6)


@pytest.mark.parametrize("levels", [0, 1, 2])
@pytest.mark.parametrize("k", [5, 67])
@pytest.mark.parametrize("spread", [0.0, 30.0])
def test_limits_hold_and_no_row_gets_a_wrong_code(levels, k, spread):
    """`spread` settles all rows by their products; without it float32 scores are needed."""
    rng = np.random.default_rng(levels)
    n, d, sizes = 300, 24, (7, 9)[:levels]
    x, c = rng.standard_normal((n, d)), rng.standard_normal((k, d))
    x, c = x.astype(np.float32), c.astype(np.float32)
    c[3] = c[1]  # a copy of an earlier centroid
    tables = rng.standard_normal((max(1, sum(sizes)), k)).astype(np.float32)
    tables[:, 3] = tables[:, 1]
    tables[:, 0] += spread
    codes = np.empty((n, levels), dtype=np.int64)
    for level, size in enumerate(sizes):
        codes[:, level] = rng.integers(0, size, n)
    first = np.array([0, 7][:levels], dtype=np.int64)
    table_NK = sum((tables[first[j] + codes[:, j]] for j in range(levels)), np.zeros((n, k)))
    true_NK = x.astype(np.float64) @ c.T.astype(np.float64) + (
        table_NK if levels else tables[:1].astype(np.float64)
    )
    true_NK[:, 3] = -np.inf
    rounded = [torch.from_numpy(values).bfloat16() for values in (x, c)]
    left = [
        np.linalg.norm(values - low.float().numpy(), axis=1) * 1.01
        for values, low in zip((x, c), rounded, strict=True)
    ]
    bits = (rounded[0] @ rounded[1].T).view(torch.uint16).numpy()
    norms = [np.linalg.norm(values, axis=1) * 1.01 for values in (x, c)]
    code, best, second = np.empty(n, dtype=np.int64), *np.empty((2, n), dtype=np.float32)
    cpu_kernels.settle(
        bits, tables, codes, first, np.array([3]),
        norms[0].astype(np.float32), left[0].astype(np.float32), np.full(n, 1e-4, np.float32),
        norms[1].astype(np.float32), left[1].astype(np.float32), np.float32(2.0**-8 * 1.01),
        x, np.arange(n), np.zeros(d, np.float32), c, k, code, best, second,
    )  # fmt: skip
    settled = code >= 0
    assert settled.mean() > 0.9
    np.testing.assert_array_equal(code[settled], true_NK.argmax(1)[settled])
    top = np.sort(true_NK, 1)
    assert (best <= top[:, -1] + 1e-6)[settled].all()
    assert (second >= top[:, -2] - 1e-6)[settled].all()
    assert (second < best)[settled].all()


def test_moved_rows_change_the_sums_as_numpys():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((50, 21)).astype(np.float32)
    rows, was, now = rng.permutation(50)[:40], rng.integers(-1, 6, 40), rng.integers(0, 6, 40)
    sums = rng.standard_normal((6, 21))
    expected = sums.copy()
    np.add.at(expected, now, x[rows].astype(np.float64))
    np.subtract.at(expected, was[was >= 0], x[rows[was >= 0]].astype(np.float64))
    for first, last in ((0, 8), (8, 21)):
        cpu_kernels.move_rows(sums, x, rows, was, now, first, last)
    np.testing.assert_allclose(sums, expected, rtol=0, atol=1e-12)


def test_rows_that_bf16_leaves_open_get_the_codes_of_float32(monkeypatch):
    x = blobs(600, 40, 9)
    near = x[:35] + 1e-5 * blobs(35, 40, 3, seed=1)
    books = (torch.cat([x[:35], near]), torch.cat([near - x[:35]] * 2) + 1e-6 * blobs(70, 40, 3))
    codes = []
    for low_precision in (True, False):
        monkeypatch.setattr(
            "models.nearest.low_precision_pays", lambda codes, low=low_precision: low
        )
        codes.append(Codebook(residuals=books).encode(x))
    assert torch.equal(*codes)


def test_the_first_bad_row_of_all_is_named():
    x = blobs(9000, 300, 3)
    x[8500, 7] = torch.nan
    with pytest.raises(ValueError, match="row 8500 holds a value that is not finite"):
        Codebook(residuals=(x[:70].clone(),)).encode(x)


def test_threads_share_a_product_and_torch_gets_its_own_back():
    a, b = blobs(70, 5, 2).double(), blobs(5, 11, 2).double()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with only_each():
            assert torch.get_num_threads() == 1
            found = product(a, b)
            assert each(lambda part: torch.get_num_threads(), range(3)) == [1, 1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found, a @ b)
