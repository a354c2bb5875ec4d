"""The tabulated forward pass gives the model's own logits, whoever else is in the request."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


@pytest.mark.parametrize("model", ["dnn", "deepfm", "sim", "transformer"])
def test_models_without_target_attention_have_no_tables(model):
    assert ScoreTables.of(*random_ranker(model)) is None
