"""Attention weights against the formula in plain numpy, for each model that has them."""

import numpy as np
import pytest
import torch

from models.batch import MISSING_CODE, Batch
from models.ranker_config import MODELS, RankerConfig
from models.rankers import build_ranker
from serving.page.explain import attention_weights

FAMILIES = ("text", "audio", "joint")
B, T, LEVELS, CODES, ROWS = 4, 6, 2, 5, 12
TEXT, AUDIO, JOINT = range(3)


def random_batch(seed=0):
    """The first row's history is empty, the second's is full; some codes are missing."""
    random = np.random.default_rng(seed)

    def codes(*shape):
        drawn = random.integers(0, CODES, (*shape, len(FAMILIES), LEVELS))
        drawn[random.random(drawn.shape[:-1]) < 0.2] = MISSING_CODE
        return torch.from_numpy(drawn)

    lengths = np.array([0, T, 3, 1])
    return Batch(
        target_ids_B=torch.from_numpy(random.integers(0, ROWS, B)),
        target_codes_BFL=codes(B),
        history_ids_BT=torch.from_numpy(random.integers(0, ROWS, (B, T))),
        history_codes_BTFL=codes(B, T),
        history_mask_BT=torch.from_numpy((np.arange(T) < lengths[:, None]).astype(np.float32)),
    )


def ranker(model):
    torch.manual_seed(1)
    config = RankerConfig(
        model=model,
        id_rows=ROWS,
        families=FAMILIES,
        levels=LEVELS,
        codes=CODES,
        history_length=T,
        embedding_width=4,
        attention_hidden=3,
        tower_hidden=(5,),
    )
    return build_ranker(config).eval()


class Numpy:
    """The model's weights, and its embeddings and attention as the paper writes them."""

    def __init__(self, model):
        self.weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}

    def codes(self, name, codes):
        """e = sum_l E_l[id_l]; a missing code adds nothing."""
        table = self.weights[f"{name}.table.weight"]
        rows = np.where(codes == MISSING_CODE, LEVELS * CODES, codes + CODES * np.arange(LEVELS))
        return table[rows].sum(-2)

    def attention(self, name, keys_BTD, query_BD, mask_BT):
        """a(key (+) query): one hidden layer over both, PReLU, one weight."""
        w = {part: self.weights[f"{name}.{part}"] for part in self._parts(name)}
        both = np.concatenate([w["from_key.weight"], w["from_query.weight"]], axis=1)
        query_BTD = np.broadcast_to(query_BD[:, None], keys_BTD.shape)
        inputs = np.concatenate([keys_BTD, query_BTD], axis=-1)
        hidden = inputs @ both.T + w["from_key.bias"]
        active = np.where(hidden > 0, hidden, w["activation.weight"] * hidden)
        return (active @ w["to_weight.weight"][0] + w["to_weight.bias"]) * mask_BT

    def _parts(self, name):
        return [key.removeprefix(f"{name}.") for key in self.weights if key.startswith(f"{name}.")]


def expected_mcca(plain, batch, queries):
    """`queries`: family -> the family whose target queries it, in the order of the model."""
    target, history = batch.target_codes_BFL.numpy(), batch.history_codes_BTFL.numpy()
    mask = batch.history_mask_BT.numpy()
    place = {family: n for n, family in enumerate(queries)}
    weights = {}
    for family, query in queries.items():
        keys = plain.codes(f"code_embeddings.{place[family]}", history[:, :, family])
        asked = plain.codes(f"code_embeddings.{place[query]}", target[:, query])
        name = f"code_attentions.{place[family]}"
        weights[FAMILIES[family]] = plain.attention(name, keys, asked, mask)
    return weights | {"track": expected_track(plain, batch, "track_attention")}


def expected_track(plain, batch, name):
    table = plain.weights["track_embedding.weight"]
    keys, query = table[batch.history_ids_BT.numpy()], table[batch.target_ids_B.numpy()]
    return plain.attention(name, keys, query, batch.history_mask_BT.numpy())


def expected_din_sid(plain, batch):
    def items(ids, codes):
        table = plain.weights["items.track_embedding.weight"]
        semantic = plain.codes("items.code_embeddings.0", codes.numpy())
        return np.concatenate([table[ids.numpy()], semantic], axis=-1)

    keys = items(batch.history_ids_BT, batch.history_codes_BTFL[:, :, TEXT])
    query = items(batch.target_ids_B, batch.target_codes_BFL[:, TEXT])
    return plain.attention("attention", keys, query, batch.history_mask_BT.numpy())


EXPECTED = {
    "mcca": lambda plain, batch: expected_mcca(plain, batch, dict.fromkeys(range(3), JOINT)),
    "mcca_wo_msc": lambda plain, batch: expected_mcca(plain, batch, {JOINT: JOINT}),
    "mcca_wo_mjc": lambda plain, batch: expected_mcca(plain, batch, {TEXT: TEXT, AUDIO: AUDIO}),
    "din": lambda plain, batch: {"track": expected_track(plain, batch, "attention")},
    "din_sid": lambda plain, batch: {"track+text": expected_din_sid(plain, batch)},
}


@pytest.mark.parametrize("model", MODELS)
@torch.inference_mode()
def test_weights_are_those_of_the_formula(model):
    built, batch = ranker(model), random_batch()
    weights = attention_weights(built, FAMILIES, batch)
    expected = EXPECTED.get(model, lambda *_: {})(Numpy(built), batch)
    assert list(weights) == list(expected)
    for name, weights_BT in expected.items():
        assert weights_BT[1].all(), "the oracle says nothing of this net"
        np.testing.assert_allclose(weights[name].numpy(), weights_BT, atol=1e-6)
