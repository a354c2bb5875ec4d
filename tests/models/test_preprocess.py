"""Preprocessing: statistics against numpy and scikit-learn, missing rows, round trips."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler, normalize

from models.preprocess import MODES, Preprocess, joint


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(7, 7, generator=generator)
    return torch.randn(500, 7, generator=generator) @ mixing + 3 * mixing[0]


def test_standard_is_z_score_then_unit_norm(x):
    expected = normalize(StandardScaler().fit_transform(x.double().numpy()))
    found = Preprocess.fit(x).apply(x)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_l2_is_centre_then_unit_norm(x):
    expected = normalize((x - x.mean(0)).numpy())
    np.testing.assert_allclose(Preprocess.fit(x, "l2").apply(x).numpy(), expected, atol=1e-6)


def test_whiten_is_pca_whitening_then_unit_norm(x):
    step = Preprocess.fit(x, "whiten", dims=4)
    whitened = PCA(4, whiten=True, svd_solver="full").fit_transform(x.double().numpy())
    found = step.apply(x).numpy()
    np.testing.assert_allclose(np.abs(found), np.abs(normalize(whitened)), atol=1e-5)
    raw = (x - step.mean_D) @ step.projection_DP
    np.testing.assert_allclose(np.cov(raw.T.numpy(), bias=True), np.eye(4), atol=1e-4)
    assert Preprocess.fit(x, "whiten", dims=64).projection_DP.shape == (7, 7)


def test_none_changes_nothing(x):
    assert torch.equal(Preprocess.fit(x, "none").apply(x), x)


@pytest.mark.parametrize("mode", MODES)
def test_tensors_round_trip(x, mode):
    step = Preprocess.fit(x, mode, dims=3)
    back = Preprocess.from_tensors(mode, step.tensors())
    assert set(step.tensors()) == set(MODES[mode])
    assert all(tensor.dtype == torch.float32 for tensor in step.tensors().values())
    assert torch.equal(back.apply(x), step.apply(x))


@pytest.mark.parametrize("mode", MODES)
def test_rows_are_independent_and_missing_ones_stay_zero(x, mode):
    step = Preprocess.fit(x, mode, dims=3)
    with_missing = torch.cat([x, torch.zeros(40, 7)])
    again = Preprocess.fit(with_missing, mode, dims=3)  # missing rows do not count
    for name, tensor in again.tensors().items():
        torch.testing.assert_close(tensor, step.tensors()[name])
    found = step.apply(with_missing)
    assert not found[500:].any()
    one_by_one = torch.cat([step.apply(row) for row in x[:20].split(1)])
    torch.testing.assert_close(found[:20], one_by_one, rtol=0, atol=1e-7)


@pytest.mark.parametrize("mode", MODES)
def test_constant_dimensions_and_rows_never_give_nan(x, mode):
    x[:, 2] = 0.1
    step = Preprocess.fit(x, mode, dims=7)
    assert step.apply(x).isfinite().all()
    if mode == "standard":
        assert not step.apply(x)[:, 2].any()
    for rows in (torch.full((60, 3), 0.1), torch.zeros(5, 3), torch.ones(1, 3)):
        step = Preprocess.fit(rows, mode)
        assert all(tensor.isfinite().all() for tensor in step.tensors().values())
        assert torch.equal(step.apply(rows), rows if mode == "none" else torch.zeros_like(rows))


def test_joint_concatenates_in_the_order_given(x):
    tail = x[:, :2] * 100
    both = joint({"text": x, "audio": tail})
    assert torch.equal(both, torch.cat([x, tail], 1))
    assert torch.equal(joint({"audio": tail, "text": x})[:, :2], tail)
    for wrong in ({}, {"text": x, "audio": tail[:9]}):
        with pytest.raises(ValueError, match="equal row counts"):
            joint(wrong)


def test_errors_name_what_is_wrong(x):
    with pytest.raises(ValueError, match=r"mode must be one of standard, .* got 'zca'"):
        Preprocess.fit(x, "zca")
    with pytest.raises(ValueError, match="mode must be one of"):
        Preprocess.from_tensors("zca", {})
    with pytest.raises(ValueError, match="dims must be at least 1"):
        Preprocess.fit(x, "whiten", dims=0)
    step = Preprocess.fit(x)
    with pytest.raises(ValueError, match="fitted on 7 dims, got 6"):
        step.apply(x[:, :6])
    tensors = step.tensors()
    with pytest.raises(ValueError, match=r"standard stores \['mean', 'scale'\], got \['mean'\]"):
        Preprocess.from_tensors("standard", {"mean": tensors["mean"]})
    with pytest.raises(ValueError, match="scale has shape"):
        Preprocess.from_tensors("standard", {**tensors, "scale": tensors["scale"][:3]})
    with pytest.raises(ValueError, match="scale holds values that are not finite"):
        Preprocess.from_tensors("standard", {**tensors, "scale": tensors["scale"] / 0})
    x[4] = float("inf")
    for call in (lambda: Preprocess.fit(x), lambda: step.apply(x)):
        with pytest.raises(ValueError, match="row 4"):
            call()
