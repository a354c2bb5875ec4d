"""The tabulated forward pass gives the model's own logits, whoever else is in the request."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.batch import MISSING_CODE, ItemLookup, ItemTable, Vocabulary, make_batch, track_rows
from models.number_rows import CONTEXT
from models.ranker_config import RankerConfig
from models.rankers import build_ranker
from serving.fast_scores import FastScores

TRACKS = np.arange(10, 310, dtype=np.int64)
NUMBERS = (CONTEXT[0], "track_plays_7d")
MODELS = ["mcca", "mcca_wo_msc", "mcca_wo_mjc", "din", "din_sid"]


def made(model, numbers=()):
    """A model with random weights, its tables, and its FastScores."""
    rng = np.random.default_rng(3)
    config = RankerConfig(
        model=model,
        id_rows=201,
        families=("text", "audio", "joint"),
        levels=3,
        codes=16,
        history_length=50,
        numbers=numbers,
    )
    torch.manual_seed(5)
    ranker = build_ranker(config).eval()
    with torch.no_grad():
        for name, parameter in ranker.named_parameters():
            if "activation" in name or name.endswith(("1.weight", "3.weight")):
                parameter.uniform_(-0.5, 1.5)  # PReLU slopes, all 0.25 at the start
    codes_IFL = rng.integers(0, 16, (len(TRACKS), 3, 3))
    codes_IFL[rng.random((len(TRACKS), 3)) < 0.1] = MISSING_CODE
    items = ItemTable(track_ids_I=TRACKS, codes_IFL=codes_IFL)
    vocabulary = Vocabulary(track_ids_I=TRACKS[:200], train_counts_I=np.ones(200, dtype=np.int64))
    lookup = ItemLookup.of(items, vocabulary, torch.device("cpu"))
    return ranker, lookup, FastScores.of(ranker, config, lookup)


def of_model(ranker, lookup, history_L, tracks_C, numbers_CN=None):
    rows = track_rows(
        torch.from_numpy(tracks_C),
        torch.from_numpy(np.tile(history_L, len(tracks_C))),
        torch.arange(len(tracks_C) + 1) * len(history_L),
        history_length=50,
        numbers_BN=numbers_CN,
    )
    with torch.inference_mode():
        return ranker(make_batch(rows, lookup)).numpy()


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
def test_models_without_target_attention_have_none(model):
    assert made(model)[2] is None
