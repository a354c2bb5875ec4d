"""Leaving a fitted row out, against plain numpy that takes it from the means one row at a time."""

import numpy as np
import pytest
import torch

from models.left_out import left_out
from models.pq import PqOptions, slices
from models.psrq import PsrqOptions
from models.quantizers import fit_quantizer
from models.residual_codebook import Codebook
from tests.models.blobs import blobs


def without_row(book, x, codes, row):
    """Residual books from which one fitted row is taken, and then encodes it: plain numpy."""
    fitted = residual = x[row]
    weight, found, errors = book.prefix_weight, [], []
    for level in range(book.levels):
        c = book.residuals[level].double().numpy().copy()
        q = book.prefixes[level - 1].double().numpy().copy() if level and book.prefixes else 0 * c
        own, n = codes[row, level], (codes[:, level] == codes[row, level]).sum()
        c_fitted = c[own].copy()
        if n > 1:
            c[own] = (n * c[own] - fitted) / (n - 1)
            q[own] = (n * q[own] - (x[row] - fitted)) / (n - 1)
        distance = ((residual - c) ** 2).sum(1)
        if level and book.prefixes:
            distance += weight**2 * (((x[row] - residual) - q) ** 2).sum(1)
        if n == 1:
            distance[own] = np.inf
        found.append(int(distance.argmin()))
        fitted, residual = fitted - c_fitted, residual - c[found[-1]]
        errors.append((residual**2).sum())
    return found, errors


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_leaving_a_row_out_is_taking_it_from_the_means(weight):
    x = blobs(150, 6, 5, seed=1)
    x[-1] += 40  # a centroid of its own
    found = fit_quantizer(x, PsrqOptions(levels=3, codes=24, prefix_weight=weight))
    sizes = [torch.bincount(found.codes_NL[:, level], minlength=24) for level in range(3)]
    codes, errors = left_out(found.book, x, found.codes_NL, sizes)
    assert sizes[0][found.codes_NL[-1, 0]] == 1
    assert (codes != found.codes_NL).any()
    for row in range(len(x)):
        expected = without_row(found.book, x.double().numpy(), found.codes_NL.numpy(), row)
        assert codes[row].tolist() == expected[0]
        np.testing.assert_allclose(errors[row], expected[1], rtol=1e-6)


def test_leaving_a_row_out_of_pq_is_so_in_every_slice():
    x = blobs(120, 7, 4, seed=2)
    found = fit_quantizer(x, PqOptions(levels=3, codes=16))
    book = found.book
    sizes = [torch.bincount(found.codes_NL[:, level], minlength=16) for level in range(3)]
    codes, errors = left_out(book, x, found.codes_NL, sizes)
    total = ((x.double() - book.mean_D.double()) ** 2).sum(1).numpy().copy()
    parts = zip(slices(x, 3), slices(book.mean_D[None], 3), book.subspaces, strict=True)
    for level, (x_slice, mean, subspace) in enumerate(parts):
        as_vq = Codebook(residuals=(subspace,))
        own = found.codes_NL[:, [level]].numpy()
        for row in range(len(x)):
            (code,), (error,) = without_row(as_vq, x_slice.double().numpy(), own, row)
            assert codes[row, level] == code
            total[row] += error - ((x_slice[row].double() - mean[0].double()) ** 2).sum().item()
        np.testing.assert_allclose(errors[:, level], total, rtol=1e-6)
