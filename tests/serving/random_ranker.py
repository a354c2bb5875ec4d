"""A ranker with random weights and a small catalogue, and its logits as the model gives them."""

import numpy as np
import torch

from models.batch import MISSING_CODE, ItemLookup, ItemTable, Vocabulary, make_batch, track_rows
from models.number_rows import CONTEXT
from models.ranker_config import RankerConfig
from models.rankers import build_ranker

TRACKS = np.arange(10, 310, dtype=np.int64)
NUMBERS = (CONTEXT[0], "track_plays_7d")
MODELS = ["mcca", "mcca_wo_msc", "mcca_wo_mjc", "din", "din_sid"]


def random_ranker(model, numbers=()):
    """A model with random weights, its config, and the lookup of a small catalogue."""
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
    return ranker, config, lookup


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
