"""The tabulated forward pass gives the model's own logits, whoever else is in the request."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import serving.fast_scores
from serving.attention_kernel import attention_scores, negated_columns
from serving.fast_scores import FastScores
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


@pytest.mark.parametrize("width", [1, 8, 19, 64])
@pytest.mark.parametrize("candidates", [1, 16, 37])
def test_attention_scores_are_the_formulas(width, candidates):
    units, positions = 2, 5
    rng = np.random.default_rng(width)

    def drawn(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    keys_ZTN, rows_RN = drawn(units, positions, width + 3), drawn(50, units * width + 4)
    weight_ZH, slope_ZH, bias_Z = drawn(units, width), drawn(units, width), drawn(units)
    rows_C = rng.integers(0, 50, candidates)
    negated_QC = np.empty((units * width, candidates), dtype=np.float32)
    negated_columns(rows_RN, rows_C, negated_QC)
    queries_CQ = rows_RN[rows_C, : units * width]
    np.testing.assert_array_equal(negated_QC, -queries_CQ.T)

    scores_ZTC = np.empty((units, positions, candidates), dtype=np.float32)
    attention_scores(
        keys_ZTN,
        negated_QC,
        weight_ZH * slope_ZH,
        weight_ZH,
        weight_ZH * (1 - slope_ZH),
        bias_Z,
        scores_ZTC,
    )
    # s = sum_h w_h PReLU(p_h + q_h) + bias, in double precision
    p_ZTCH = keys_ZTN[:, :, None, :width].astype(np.float64)
    q_ZTCH = queries_CQ.reshape(candidates, units, width).transpose(1, 0, 2)[:, None]
    h_ZTCH = p_ZTCH + q_ZTCH
    active_ZTCH = np.where(h_ZTCH > 0, h_ZTCH, slope_ZH[:, None, None] * h_ZTCH)
    expected = (active_ZTCH * weight_ZH[:, None, None]).sum(-1) + bias_Z[:, None, None]
    np.testing.assert_allclose(scores_ZTC, expected, atol=1e-4)


@pytest.mark.parametrize("model", ["dnn", "deepfm", "sim", "transformer"])
def test_models_without_target_attention_have_no_tables(model):
    assert ScoreTables.of(*random_ranker(model)) is None
