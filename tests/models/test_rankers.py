"""MCCA and DIN against a plain numpy transcription of the paper's formulas."""

import numpy as np
import pytest
import torch

from models.batch import MISSING_CODE, Batch, to_device
from models.ranker_config import RankerConfig
from models.rankers import build_ranker, load_ranker

B, T, F, L, K, D = 6, 5, 3, 2, 4, 8


def config(model: str) -> RankerConfig:
    return RankerConfig(
        model=model,
        id_rows=10,
        families=("text", "audio", "joint"),
        levels=L,
        codes=K,
        history_length=T,
        embedding_width=D,
        attention_hidden=7,
        tower_hidden=(9, 5),
    )


def random_batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def ints(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=generator)

    lengths = torch.tensor([0, 1, 2, 3, 4, 5])
    mask_BT = (torch.arange(T) < lengths[:, None]).float()
    history_codes = ints(K, B, T, F, L)
    history_codes[mask_BT == 0] = MISSING_CODE
    history_codes[5, 0, 1] = MISSING_CODE  # a listened track without audio
    target_codes = ints(K, B, F, L)
    target_codes[2] = MISSING_CODE  # a candidate without any ID
    return Batch(
        target_ids_B=ints(9, B) + 1,
        target_codes_BFL=target_codes,
        history_ids_BT=torch.where(mask_BT > 0, ints(9, B, T) + 1, 0),
        history_codes_BTFL=history_codes,
        history_mask_BT=mask_BT,
    )


def prelu(x, slope):
    return np.where(x > 0, x, slope * x)


def attention(weights, name, keys, query, mask):
    """sum_j a(key_j (+) query) key_j over the real positions, no softmax."""
    both = np.concatenate(
        [weights[f"{name}.from_key.weight"], weights[f"{name}.from_query.weight"]], axis=1
    )
    total = np.zeros(D)
    for key, real in zip(keys, mask, strict=True):
        if real:
            hidden = both @ np.concatenate([key, query]) + weights[f"{name}.from_key.bias"]
            hidden = prelu(hidden, weights[f"{name}.activation.weight"])
            weight = (
                weights[f"{name}.to_weight.weight"] @ hidden + weights[f"{name}.to_weight.bias"]
            )
            total += weight[0] * key
    return total


def tower(weights, x):
    for layer in (0, 2):
        x = weights[f"tower.{layer}.weight"] @ x + weights[f"tower.{layer}.bias"]
        x = prelu(x, weights[f"tower.{layer + 1}.weight"])
    return (weights["tower.4.weight"] @ x + weights["tower.4.bias"])[0]


def code_embedding(weights, family, codes):
    """e = sum_l E_l[id_l]; level l's table starts at row l * K."""
    table = weights[f"code_embeddings.{family}.table.weight"]
    rows = [table[level * K + code] for level, code in enumerate(codes) if code != MISSING_CODE]
    return np.sum(rows, axis=0) if rows else np.zeros(D)


def expected_logits(name, weights, batch):
    logits = []
    for row in range(B):
        mask = batch.history_mask_BT[row].numpy()
        ids = weights["track_embedding.weight"]
        target = ids[batch.target_ids_B[row]]
        listened = ids[batch.history_ids_BT[row].numpy()]
        if name == "din":
            interest = attention(weights, "attention", listened, target, mask)
            logits.append(tower(weights, np.concatenate([interest, target])))
            continue
        joint = code_embedding(weights, F - 1, batch.target_codes_BFL[row, F - 1].tolist())
        parts = []
        for family in range(F):
            history = batch.history_codes_BTFL[row, :, family].tolist()
            keys = [code_embedding(weights, family, codes) for codes in history]
            parts.append(attention(weights, f"code_attentions.{family}", keys, joint, mask))
        parts.append(attention(weights, "track_attention", listened, target, mask))
        logits.append(tower(weights, np.concatenate([*parts, target, joint])))
    return np.array(logits)


@pytest.mark.parametrize("name", ["din", "mcca"])
def test_forward_equals_the_formulas(name):
    torch.manual_seed(0)
    model = build_ranker(config(name)).double().eval()
    weights = {key: value.numpy() for key, value in model.state_dict().items()}
    batch = random_batch()
    doubled = Batch(**{**vars(batch), "history_mask_BT": batch.history_mask_BT.double()})
    with torch.inference_mode():
        logits = model(doubled).numpy()
    np.testing.assert_allclose(logits, expected_logits(name, weights, batch), atol=1e-10)


@pytest.mark.parametrize("name", ["din", "mcca"])
def test_a_score_depends_on_its_own_row_only(name):
    torch.manual_seed(1)
    model = build_ranker(config(name)).eval()
    batch = random_batch()
    alone = []
    with torch.inference_mode():
        together = model(batch)
        for row in range(B):
            alone.append(model(Batch(**{k: v[row : row + 1] for k, v in vars(batch).items()})))
    torch.testing.assert_close(torch.cat(alone), together, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["din", "mcca"])
def test_padding_takes_no_gradient_and_every_other_parameter_does(name):
    torch.manual_seed(2)
    model = build_ranker(config(name))
    model(random_batch()).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key
    assert model.track_embedding.weight.grad[0].abs().sum() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["din", "mcca"])
def test_cuda_gives_the_scores_and_gradients_of_the_cpu(name):
    torch.manual_seed(4)
    model, batch = build_ranker(config(name)), random_batch()
    logits = model(batch)
    logits.sum().backward()
    gradients = {key: p.grad.clone() for key, p in model.named_parameters()}
    device = torch.device("cuda")
    model.zero_grad()
    model.to(device)
    on_device = model(to_device(batch, device))
    on_device.sum().backward()
    torch.testing.assert_close(on_device.cpu(), logits, atol=1e-5, rtol=1e-5)
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad.cpu(), gradients[key], atol=1e-4, rtol=1e-4)


def test_load_ranker_restores_the_same_scores():
    torch.manual_seed(3)
    model = build_ranker(config("mcca")).eval()
    restored = load_ranker(vars(config("mcca")), model.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(restored(random_batch()), model(random_batch()))


@pytest.mark.parametrize(
    ("field", "value"), [("levels", 0), ("embedding_width", 0), ("families", ())]
)
def test_bad_config_names_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        RankerConfig(**{**vars(config("mcca")), field: value})


def test_unknown_model_names_the_choices():
    with pytest.raises(ValueError, match=r"\['din', 'mcca'\], got wide"):
        build_ranker(config("wide"))
