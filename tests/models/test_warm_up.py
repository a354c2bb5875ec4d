"""Made-up requests: what they cover, and that their scores are the model's, row by row."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.batch import Batch, ItemLookup, ItemTable, Vocabulary
from models.ranker_config import RankerConfig
from models.rankers import build_ranker
from models.warm_up import CANDIDATES, WarmUp, made_up_requests

TRACKS_I = np.arange(10, 50, 2)
NAMES = ("user_plays_7d", "hour_sin", "log_since_listen", "without_listen")


@given(st.integers(1, 600), st.integers(1, 60))
@settings(max_examples=25, deadline=None)
def test_histories_are_of_all_lengths_and_all_tracks_known(tracks, history_length):
    catalogue_I = np.arange(tracks) * 3
    warm_up = made_up_requests(catalogue_I, history_length=history_length, names=NAMES)
    lengths = [len(listens_T) for listens_T in warm_up.histories()]
    assert lengths[0] == 0
    assert {1, history_length} < set(lengths)
    assert max(lengths) > history_length  # the model has to cut it
    assert len(warm_up.candidates_C) == min(tracks, CANDIDATES)
    assert len(set(warm_up.candidates_C)) == len(warm_up.candidates_C)
    assert np.isin(warm_up.candidates_C, catalogue_I).all()
    assert np.isin(warm_up.listens_M, catalogue_I).all()
    assert warm_up.numbers_HCN.shape == (len(lengths), len(warm_up.candidates_C), len(NAMES))


def test_numbers_are_raw_as_in_a_batch():
    warm_up = made_up_requests(TRACKS_I, history_length=6, names=NAMES)
    counts_HC, _, since_HC, without_HC = np.moveaxis(warm_up.numbers_HCN, -1, 0)
    assert (counts_HC == np.round(counts_HC)).all()
    assert counts_HC.min() >= 0
    assert len(np.unique(counts_HC)) > 20
    assert np.isnan(since_HC[0]).all()  # without a listen there is no time since it
    assert not np.isnan(since_HC[1:]).any()
    assert without_HC[0].all()
    assert not without_HC[1:].any()


def test_the_same_catalogue_makes_the_same_requests():
    once = made_up_requests(TRACKS_I, history_length=6, names=NAMES).arrays()
    again = made_up_requests(TRACKS_I, history_length=6, names=NAMES).arrays()
    for name, array in once.items():
        np.testing.assert_array_equal(array, again[name])


@pytest.mark.parametrize("model", ["mcca", "din", "transformer"])
def test_scores_are_those_of_each_row_alone(model):
    random = np.random.default_rng(0)
    items = ItemTable(track_ids_I=TRACKS_I, codes_IFL=random.integers(0, 4, (len(TRACKS_I), 2, 3)))
    vocabulary = Vocabulary(track_ids_I=TRACKS_I[::2], train_counts_I=np.ones(10, dtype=np.int64))
    config = RankerConfig(
        model=model,
        id_rows=vocabulary.rows,
        families=("text", "joint"),
        levels=3,
        codes=4,
        history_length=5,
        embedding_width=8,
        numbers=NAMES,
    )
    torch.manual_seed(0)
    ranker = build_ranker(config).eval()
    for parameter in ranker.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    requests = made_up_requests(TRACKS_I, history_length=5, names=NAMES)
    scored = requests.scored(ranker, ItemLookup.of(items, vocabulary, torch.device("cpu")), 5)
    assert scored.scores_HC.shape == (5, len(TRACKS_I))
    assert scored.scores_HC.std() > 0.01
    for h, listens_T in enumerate(scored.histories()):
        newest_T = np.zeros(5, dtype=np.int64)  # 0 is no track: padding
        kept = listens_T[-5:]
        newest_T[: len(kept)] = kept
        for c, track in enumerate(scored.candidates_C):
            row = Batch(
                target_ids_B=torch.from_numpy(vocabulary.id_rows(np.array([track]))),
                target_codes_BFL=torch.from_numpy(items.codes(np.array([track]))),
                history_ids_BT=torch.from_numpy(vocabulary.id_rows(newest_T))[None],
                history_codes_BTFL=torch.from_numpy(items.codes(newest_T))[None],
                history_mask_BT=torch.from_numpy((newest_T != 0).astype(np.float32))[None],
                numbers_BN=torch.from_numpy(scored.numbers_HCN[h, c])[None],
            )
            alone = torch.sigmoid(ranker(row)).item()
            assert scored.scores_HC[h, c] == pytest.approx(alone, abs=1e-6)


def test_arrays_bring_everything_back():
    warm_up = made_up_requests(TRACKS_I, history_length=6, names=())
    back = WarmUp.of(warm_up.arrays())
    assert back.numbers_HCN.shape == (5, len(TRACKS_I), 0)
    assert [len(one) for one in back.histories()] == [0, 1, 3, 6, 9]
