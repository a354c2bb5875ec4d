"""The tabulated forward pass gives the model's own logits, whoever else is in the request."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import serving.fast_scores
from serving.fast_scores import FastScores
from serving.score_kernel import logits, workspace_size
from serving.score_tables import ScoreTables
from tests.serving.random_ranker import MODELS, NUMBERS, TRACKS, of_model, random_ranker


def made(model, numbers=()):
    """The model, its lookup and its FastScores."""
    ranker, config, lookup = random_ranker(model, numbers)
    return ranker, lookup, FastScores(ScoreTables.of(ranker, config, lookup))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("listens", [0, 1, 7, 50, 80])
def test_logits_are_the_models(model, listens):
    ranker, lookup, fast = made(model)
    rng = np.random.default_rng(listens)
    history_L = rng.choice(np.append(TRACKS, [5, 999]), listens)  # two are unknown
    logits = fast.logits(history_L, TRACKS).numpy()
    assert np.std(logits) > 1e-3
    np.testing.assert_allclose(logits, of_model(ranker, lookup, history_L, TRACKS), atol=2e-5)


@pytest.mark.parametrize("model", MODELS)
def test_numbers_take_part(model):
    ranker, lookup, fast = made(model, NUMBERS)
    history_L, tracks_C = TRACKS[:9], TRACKS[20:60]
    numbers_CN = torch.from_numpy(
        np.random.default_rng(1).uniform(0, 9, (40, 2)).astype(np.float32)
    )
    logits = fast.logits(history_L, tracks_C, numbers_CN).numpy()
    expected = of_model(ranker, lookup, history_L, tracks_C, numbers_CN)
    np.testing.assert_allclose(logits, expected, atol=2e-5)
    assert np.abs(logits - fast.logits(history_L, tracks_C, numbers_CN + 3).numpy()).max() > 1e-3


@settings(max_examples=30, deadline=None)
@given(
    picked=st.lists(st.integers(0, len(TRACKS) - 1), min_size=1, max_size=60, unique=True),
    listens=st.integers(0, 60),
)
def test_a_logit_does_not_depend_on_the_other_candidates(picked, listens):
    _, _, fast = MCCA
    history_L = TRACKS[:listens]
    all_I = fast.logits(history_L, TRACKS).numpy()
    np.testing.assert_allclose(fast.logits(history_L, TRACKS[picked]), all_I[picked], atol=1e-5)


MCCA = made("mcca")


@pytest.mark.parametrize("model", MODELS)
def test_a_catalogue_too_large_for_a_table_has_the_same_logits(model, monkeypatch):
    tables = ScoreTables.of(*random_ranker(model))
    tabulated = FastScores(tables)
    monkeypatch.setattr(serving.fast_scores, "TABLE_BYTES", 0)
    fast = FastScores(tables)
    tracks_C = np.append(TRACKS, 999)  # one is unknown
    logits = fast.logits(TRACKS[:50], tracks_C)
    np.testing.assert_allclose(logits, tabulated.logits(TRACKS[:50], tracks_C), atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 20),
    candidates=st.integers(1, 300),
    positions=st.integers(0, 9),
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    numbers=st.integers(0, 3),
)
def test_the_kernels_logits_are_the_formulas(width, candidates, positions, widths, numbers):
    units, widths_D = 2, [*widths, 1]
    rng = np.random.default_rng(width)

    def drawn(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    rows_RN, keys_ZTN = (
        drawn(50, units * width + widths[0]),
        drawn(units, positions, width + widths[0]),
    )
    weight_ZH, slope_ZH, bias_Z = drawn(units, width), drawn(units, width), drawn(units)
    weight_XO, numbers_CX = drawn(numbers, widths[0]), drawn(candidates, numbers)
    slopes_D = [drawn(before) for before in widths]
    weights_D = [drawn(before, after) for before, after in pairwise(widths_D)]
    biases_D = [drawn(after) for after in widths_D[1:]]
    rows_C = rng.integers(0, 50, candidates)
    size = workspace_size(rows_RN.shape[1], units * positions, numbers, max(widths_D))
    logits_C = np.empty(candidates, dtype=np.float32)
    logits(
        rows_RN,
        rows_C,
        keys_ZTN,
        weight_ZH * slope_ZH,
        weight_ZH,
        weight_ZH * (1 - slope_ZH),
        bias_Z,
        weight_XO,
        numbers_CX,
        np.array(widths_D),
        np.concatenate(slopes_D),
        np.concatenate([weight_IO.ravel() for weight_IO in weights_D]),
        np.concatenate(biases_D),
        np.empty(size, dtype=np.float32),
        logits_C,
    )
    # s = sum_h w_h PReLU(p_h + q_h) + bias, then the tower, in double precision
    doubled_CN, keys_ZTN = rows_RN[rows_C].astype(np.float64), keys_ZTN.astype(np.float64)
    q_CZH = doubled_CN[:, : units * width].reshape(candidates, units, width)
    h_CZTH = keys_ZTN[None, :, :, :width] + q_CZH[:, :, None]
    active_CZTH = np.where(h_CZTH > 0, h_CZTH, slope_ZH[:, None] * h_CZTH)
    scores_CZT = (active_CZTH * weight_ZH[:, None]).sum(-1) + bias_Z[:, None]
    x_CO = doubled_CN[:, units * width :] + np.tensordot(scores_CZT, keys_ZTN[..., width:], 2)
    x_CO += numbers_CX.astype(np.float64) @ weight_XO
    for slope_O, weight_IO, bias_O in zip(slopes_D, weights_D, biases_D, strict=True):
        x_CO = np.where(x_CO > 0, x_CO, slope_O * x_CO) @ weight_IO + bias_O
    scale = max(1, np.abs(x_CO).max())
    np.testing.assert_allclose(logits_C, x_CO[:, 0], atol=1e-5 * scale)


@pytest.mark.parametrize("model", ["dnn", "deepfm", "sim", "transformer"])
def test_models_without_target_attention_have_no_tables(model):
    assert ScoreTables.of(*random_ranker(model)) is None
