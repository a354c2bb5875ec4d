"""The recorded passes on a GPU give the model's own logits.

pytest -m gpu tests/serving/test_cuda_scores.py
"""

import numpy as np
import pytest
import torch

from models.batch import ItemLookup
from models.ranker_config import RankerConfig
from serving.cuda_scores import BUCKETS, CudaScores
from serving.score_tables import ScoreTables
from tests.serving.random_ranker import MODELS, NUMBERS, TRACKS, of_model, random_ranker

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


def on_cuda(model, numbers=()) -> tuple[torch.nn.Module, ItemLookup, CudaScores]:
    ranker, config, lookup = random_ranker(model, numbers)
    assert isinstance(config, RankerConfig)
    return ranker, lookup, CudaScores(ScoreTables.of(ranker, config, lookup))


@pytest.mark.parametrize("model", MODELS)
def test_logits_are_the_models(model):
    ranker, lookup, scores = on_cuda(model)
    for listens in (50, 0, 1, 80, 7):  # a short history after a long one
        rng = np.random.default_rng(listens)
        history_L = rng.choice(np.append(TRACKS, [5, 999]), listens)
        for count in (300, 1, 128, 129):
            logits = scores.logits(history_L, TRACKS[:count]).numpy()
            expected = of_model(ranker, lookup, history_L, TRACKS[:count])
            np.testing.assert_allclose(logits, expected, atol=2e-5)


def test_numbers_take_part():
    ranker, lookup, scores = on_cuda("mcca", NUMBERS)
    numbers_CN = torch.rand(40, 2, generator=torch.Generator().manual_seed(1)) * 9
    logits = scores.logits(TRACKS[:9], TRACKS[20:60], numbers_CN).numpy()
    expected = of_model(ranker, lookup, TRACKS[:9], TRACKS[20:60], numbers_CN)
    np.testing.assert_allclose(logits, expected, atol=2e-5)
    shifted = scores.logits(TRACKS[:9], TRACKS[20:60], numbers_CN + 3).numpy()
    assert np.abs(logits - shifted).max() > 1e-3


def test_more_candidates_than_the_largest_bucket():
    ranker, lookup, scores = on_cuda("mcca")
    tracks_C = np.resize(TRACKS, BUCKETS[-1] + 70)
    logits = scores.logits(TRACKS[:9], tracks_C).numpy()
    np.testing.assert_allclose(logits, of_model(ranker, lookup, TRACKS[:9], tracks_C), atol=2e-5)
