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
TOP_K, HEADS, LAYERS = 3, 2, 2
WITHOUT_ATTENTION = {"dnn", "deepfm"}


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


OPTIONS = {"sim": {"top_k": TOP_K}, "transformer": {"heads": HEADS, "layers": LAYERS}}


def ranker(model, **options):
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
        **OPTIONS.get(model, {}) | options,
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


def items_of(plain, ids, codes):
    """x = [e^r, e^z for every ID family z]."""
    table = plain.weights["items.track_embedding.weight"]
    parts = [
        plain.codes(f"items.code_embeddings.{family}", codes.numpy()[..., family, :])
        for family in range(len(FAMILIES))
    ]
    return np.concatenate([table[ids.numpy()], *parts], axis=-1)


def expected_sim(plain, batch):
    keys = items_of(plain, batch.history_ids_BT, batch.history_codes_BTFL)
    query = items_of(plain, batch.target_ids_B, batch.target_codes_BFL)
    mask = batch.history_mask_BT.numpy()
    weights = plain.attention("attention", keys, query, mask)
    relevance = np.where(mask > 0, (keys * query[:, None]).sum(-1), -np.inf)
    left_out = np.argsort(-relevance, axis=1)[:, TOP_K:]
    np.put_along_axis(weights, left_out, 0, axis=1)
    return weights


def expected_transformer(plain, batch):
    """Blocks as the module's first lines write them; weights of the last token."""
    w, mask = plain.weights, batch.history_mask_BT.numpy()

    def norm(name, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    items = [
        items_of(plain, batch.history_ids_BT, batch.history_codes_BTFL),
        items_of(plain, batch.target_ids_B, batch.target_codes_BFL)[:, None],
    ]
    back = np.maximum(mask.sum(1, keepdims=True).astype(int) - np.arange(T), 0)
    places = np.concatenate([back, np.zeros((B, 1), int)], axis=1)
    x = linear("to_token", np.concatenate(items, axis=1)) + w["position.weight"][places]
    seen = np.concatenate([mask > 0, np.ones((B, 1), bool)], axis=1)
    found = {}
    for n in range(LAYERS):
        normed = norm(f"blocks.{n}.before_attention", x)
        q = linear(f"blocks.{n}.to_query", normed)
        k, v = np.split(linear(f"blocks.{n}.to_key_value", normed), 2, axis=-1)
        of_heads, mixed = [], []
        for head in np.split(np.arange(q.shape[-1]), HEADS):
            scores = q[..., head] @ k[..., head].transpose(0, 2, 1) / np.sqrt(len(head))
            shares = np.exp(np.where(seen[:, None], scores, -np.inf))
            shares /= shares.sum(-1, keepdims=True)
            of_heads.append(shares)
            mixed.append(shares @ v[..., head])
        found[f"block {n + 1}"] = np.mean(of_heads, axis=0)[:, -1, :-1]
        x = x + linear(f"blocks.{n}.from_heads", np.concatenate(mixed, axis=-1))
        wide = torch.nn.functional.gelu(
            torch.from_numpy(linear(f"blocks.{n}.widen", norm(f"blocks.{n}.before_wide", x)))
        )
        x = x + linear(f"blocks.{n}.narrow", wide.numpy())
    return found


EXPECTED = {
    "sim": lambda plain, batch: {"track+text+audio+joint": expected_sim(plain, batch)},
    "transformer": expected_transformer,
    "mcca": lambda plain, batch: expected_mcca(plain, batch, dict.fromkeys(range(3), JOINT)),
    "mcca_wo_msc": lambda plain, batch: expected_mcca(plain, batch, {JOINT: JOINT}),
    "mcca_wo_mjc": lambda plain, batch: expected_mcca(plain, batch, {TEXT: TEXT, AUDIO: AUDIO}),
    "din": lambda plain, batch: {"track": expected_track(plain, batch, "attention")},
    "din_sid": lambda plain, batch: {"track+text": expected_din_sid(plain, batch)},
}


def test_every_model_with_attention_is_explained():
    assert set(EXPECTED) == set(MODELS) - WITHOUT_ATTENTION


@pytest.mark.parametrize("model", MODELS)
@torch.inference_mode()
def test_weights_are_those_of_the_formula(model):
    built, batch = ranker(model), random_batch()
    weights = attention_weights(built, FAMILIES, batch)
    expected = EXPECTED.get(model, lambda *_: {})(Numpy(built), batch)
    assert list(weights) == list(expected)
    for name, weights_BT in expected.items():
        said = weights_BT[1] != 0
        assert said.sum() == (TOP_K if model == "sim" else T), "the oracle says nothing of this net"
        np.testing.assert_allclose(weights[name].numpy(), weights_BT, atol=1e-6)


@torch.inference_mode()
def test_what_sim_s_own_pass_reads_is_the_history_by_these_weights():
    model, batch, read = ranker("sim"), random_batch(), []
    model.attention.register_forward_hook(lambda *given: read.append(given[2]))
    model(batch)
    (weights_BT,) = attention_weights(model, FAMILIES, batch).values()
    interest_BX = torch.einsum("bt,btx->bx", weights_BT, model.items.history(batch))
    torch.testing.assert_close(read[0], interest_BX, atol=1e-6, rtol=1e-5)


@torch.inference_mode()
def test_what_the_transformer_s_own_blocks_mix_is_the_tokens_by_these_weights():
    model, batch = ranker("transformer", heads=1), random_batch()
    values, mixed = [], []
    for block in model.blocks:
        block.to_key_value.register_forward_hook(
            lambda _, __, both: values.append(both.chunk(2, dim=-1)[1])
        )
        block.from_heads.register_forward_pre_hook(lambda _, given: mixed.append(given[0][:, -1]))
    model(batch)
    values_BSD, mixed_BD = list(values), list(mixed)
    weights = attention_weights(model, FAMILIES, batch)
    assert list(weights) == ["block 1", "block 2"]
    for block, weights_BT in enumerate(weights.values()):
        weights_BS = torch.cat([weights_BT, 1 - weights_BT.sum(1, keepdim=True)], dim=1)
        expected_BD = torch.einsum("bs,bsd->bd", weights_BS, values_BSD[block])
        torch.testing.assert_close(mixed_BD[block], expected_BD, atol=1e-6, rtol=1e-5)
