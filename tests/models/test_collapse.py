"""Spectra against numpy's SVD, and ranks against their definitions and known tables."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models import collapse
from models.collapse import spectrum

tables = arrays(
    np.float32,
    st.tuples(st.integers(1, 30), st.integers(1, 12)),
    elements=st.floats(-100, 100, width=32, allow_subnormal=False),
)


@given(tables)
def test_singular_values_are_numpys(table_ND):
    found = spectrum(torch.from_numpy(table_ND))
    expected = np.linalg.svd(table_ND.astype(np.float64), compute_uv=False)
    padded = np.zeros(table_ND.shape[1])
    padded[: len(expected)] = expected
    np.testing.assert_allclose(
        found.singular_values_D, padded, rtol=1e-6, atol=1e-6 * padded.max(initial=0)
    )
    assert found.rows == len(table_ND)


@given(tables.filter(lambda table: np.abs(table).max() > 1e-3), st.floats(1e-3, 1e3))
def test_ranks_keep_their_bounds_and_know_no_scale(table_ND, factor):
    found = spectrum(torch.from_numpy(table_ND).double())
    rank = np.linalg.matrix_rank(table_ND.astype(np.float64))
    assert 1 - 1e-9 <= found.stable_rank <= rank + 1e-5
    assert 1 - 1e-9 <= found.effective_rank <= len(found.singular_values_D) + 1e-6
    scaled = spectrum(torch.from_numpy(table_ND).double() * factor)
    assert scaled.effective_rank == pytest.approx(found.effective_rank, rel=1e-6)
    assert scaled.stable_rank == pytest.approx(found.stable_rank, rel=1e-6)


def test_effective_rank_is_the_entropy_of_the_shares():
    random = np.random.default_rng(0)
    table_ND = random.normal(size=(500, 8)) * np.geomspace(1, 1e-2, 8)
    found = spectrum(torch.from_numpy(table_ND))
    sigma = np.linalg.svd(table_ND, compute_uv=False)
    p = sigma / sigma.sum()
    assert found.effective_rank == pytest.approx(np.exp(-np.sum(p * np.log(p))), rel=1e-9)
    assert found.stable_rank == pytest.approx(np.sum(sigma**2) / sigma[0] ** 2, rel=1e-9)


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_a_projection_keeps_the_rank_of_what_it_projects(rank):
    """64 dims projected to 256 leave three quarters of them dead: the collapse of the paper."""
    generator = torch.Generator().manual_seed(1)
    basis, _ = torch.linalg.qr(torch.randn(400, rank, generator=generator))
    out, _ = torch.linalg.qr(torch.randn(64, rank, generator=generator))
    found = spectrum(basis @ out.T)  # `rank` equal singular values, the rest 0
    assert found.effective_rank == pytest.approx(rank, rel=1e-3)
    assert found.stable_rank == pytest.approx(rank, rel=1e-5)
    assert found.collapsed_share == pytest.approx(1 - rank / 64)


def test_a_table_of_zeros_has_rank_0():
    found = spectrum(torch.zeros(5, 3))
    assert (found.effective_rank, found.stable_rank, found.collapsed_share) == (0, 0, 1)


def test_chunks_change_nothing(monkeypatch):
    table_ND = torch.randn(100, 7, generator=torch.Generator().manual_seed(2))
    whole = spectrum(table_ND).singular_values_D
    monkeypatch.setattr(collapse, "CHUNK_VALUES", 50)
    np.testing.assert_allclose(spectrum(table_ND).singular_values_D, whole, rtol=1e-12)


def test_plain_says_what_a_report_needs():
    plain = spectrum(torch.eye(4)).plain()
    assert plain == {
        "rows": 4,
        "dims": 4,
        "effective_rank": pytest.approx(4),
        "stable_rank": pytest.approx(4),
        "collapsed_share": 0.0,
    }


def test_tables_that_have_no_spectrum_are_refused():
    with pytest.raises(ValueError, match=r"\(rows, dims\).*\(3,\)"):
        spectrum(torch.zeros(3))
    with pytest.raises(ValueError, match="at least one of each"):
        spectrum(torch.zeros(0, 3))
    table = torch.ones(4, 2)
    table[2, 1] = torch.nan
    with pytest.raises(ValueError, match="row 2"):
        spectrum(table)
