"""Every ranker against a plain numpy transcription of its formulas, and what all must keep."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from models.batch import MISSING_CODE, Batch
from models.ranker_config import MODELS, OWN_OPTIONS, RankerConfig
from models.rankers import RANKERS, build_ranker, load_ranker
from models.sim import newest_of_greatest, shared_prefix
from tests.models.ranker_batches import NUMBERS, B, K, T, changed, config, random_batch, rows_of
from tests.models.ranker_formulas import expected_logits

VARIANTS = [
    *((model, {}) for model in MODELS),
    ("din_sid", {"family": "joint"}),
    ("sim", {"top_k": 2}),
    ("sim", {"top_k": 2, "search": "hard"}),
    ("transformer", {"heads": 2, "layers": 1}),
]


def ranker(model, seed=0, **options):
    torch.manual_seed(seed)
    return build_ranker(config(model, **options)).eval()


def doubled(batch: Batch) -> Batch:
    numbers = {} if batch.numbers_BN is None else {"numbers_BN": batch.numbers_BN.double()}
    return changed(batch, history_mask_BT=batch.history_mask_BT.double(), **numbers)


@pytest.mark.parametrize("numbers", [False, True])
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_forward_equals_the_formulas(name, options, numbers):
    model = ranker(name, numbers=NUMBERS if numbers else (), **options).double()
    if numbers:
        model.numbers.mean_N += torch.tensor([0.5, 0.1, 2.0])
        model.numbers.spread_N *= torch.tensor([1.5, 0.7, 3.0])
    weights = {key: value.numpy() for key, value in model.state_dict().items()}
    batch = doubled(random_batch(numbers=numbers))
    with torch.inference_mode():
        logits = model(batch).numpy()
    of_formula = dict(options)
    if "family" in options:
        of_formula["family"] = config(name).families.index(options["family"])
    expected = expected_logits(name, weights, batch, **of_formula)
    assert np.ptp(expected) > 1e-4
    np.testing.assert_allclose(logits, expected, atol=1e-10)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_a_score_depends_on_its_own_row_only(name, options):
    model, batch = ranker(name, **options), random_batch(1)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    with torch.inference_mode():
        together = model(batch)
        alone = [model(rows_of(batch, slice(row, row + 1))) for row in range(B)]
        torch.testing.assert_close(torch.cat(alone), together, atol=1e-6, rtol=1e-6)
        shuffled = model(rows_of(batch, order))
    torch.testing.assert_close(shuffled, together[order], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_more_padding_changes_no_score(name, options):
    model = ranker(name, history_length=T + 3, **options)
    batch = random_batch(2)
    pad = torch.nn.functional.pad
    longer = changed(
        batch,
        history_ids_BT=pad(batch.history_ids_BT, (0, 3)),
        history_codes_BTFL=pad(batch.history_codes_BTFL, (0, 0, 0, 0, 0, 3), value=MISSING_CODE),
        history_mask_BT=pad(batch.history_mask_BT, (0, 3)),
    )
    with torch.inference_mode():
        torch.testing.assert_close(model(longer), model(batch), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_padding_takes_no_gradient_and_every_other_parameter_does(name, options):
    model = ranker(name, 2, **options).train()
    batches = [random_batch(seed) for seed in range(4)]
    sum(model(batch).sum() for batch in batches).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key
        if key.endswith("track_embedding.weight"):
            assert parameter.grad[0].abs().sum() == 0, key
        if "code_embeddings" in key:
            assert parameter.grad[-1].abs().sum() == 0, key


@pytest.mark.parametrize("name", [name for name in MODELS if name != "din"])
def test_codes_tell_tracks_without_an_id_row_apart(name):
    """What the platform needs for new tracks: din, which sees ids alone, cannot."""
    batch = random_batch(3)
    new = changed(batch, target_ids_B=torch.zeros_like(batch.target_ids_B))
    codes = new.target_codes_BFL.clone()
    codes[1:] = codes[5]
    other = codes.clone()
    other[1:] = (other[1:] + 1) % K
    with torch.inference_mode():
        model = ranker(name)
        one = model(changed(new, target_codes_BFL=codes))
        two = model(changed(new, target_codes_BFL=other))
        assert ((one - two).abs()[1:] > 1e-6).all()
        din = ranker("din")
        torch.testing.assert_close(
            din(changed(new, target_codes_BFL=codes)), din(changed(new, target_codes_BFL=other))
        )


@pytest.mark.parametrize("search", ["soft", "hard"])
def test_sim_that_keeps_all_positions_sees_the_whole_history_in_any_order(search):
    model = ranker("sim", top_k=T, search=search).double()
    batch = doubled(random_batch(4))
    turned = {
        name: getattr(batch, name)[5:6].flip(1)
        for name in ("history_ids_BT", "history_codes_BTFL", "history_mask_BT")
    }
    full = rows_of(batch, slice(5, 6))
    with torch.inference_mode():
        torch.testing.assert_close(model(changed(full, **turned)), model(full))


def test_hard_search_goes_by_the_shared_prefix_then_by_age():
    none, target = [MISSING_CODE, MISSING_CODE], [1, 2]
    listens = [[1, 2], [1, 3], [0, 2], none, [1, 2]]
    batch = rows_of(random_batch(), slice(5, 6))
    history, targets = batch.history_codes_BTFL.clone(), batch.target_codes_BFL.clone()
    history[0, :, -1] = torch.tensor(listens)
    for codes, shared in ((target, [2, 1, 0, 0, 2]), (none, [0, 0, 0, 0, 0])):
        targets[0, -1] = torch.tensor(codes)
        found = shared_prefix(changed(batch, history_codes_BTFL=history, target_codes_BFL=targets))
        assert found.tolist() == [shared]
    assert newest_of_greatest(torch.tensor([[2.0, 1, 0, 0, 2]])).tolist() == [[4, 0, 1, 3, 2]]


def test_the_transformer_knows_the_order_of_listens():
    model, full = ranker("transformer"), rows_of(random_batch(4), slice(5, 6))
    turned = changed(
        full,
        history_ids_BT=full.history_ids_BT.flip(1),
        history_codes_BTFL=full.history_codes_BTFL.flip(1),
    )
    with torch.inference_mode():
        assert (model(turned) - model(full)).abs() > 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_cuda_gives_the_scores_and_gradients_of_the_cpu(name, options):
    model = ranker(name, 4, numbers=NUMBERS, **options)
    batch = random_batch(numbers=True)
    logits = model(batch)
    logits.sum().backward()
    gradients = {key: p.grad.clone() for key, p in model.named_parameters()}
    device = torch.device("cuda")
    model.zero_grad()
    model.to(device)
    there = {name: tensor.to(device) for name, tensor in vars(batch).items()}
    on_device = model(Batch(**there))
    on_device.sum().backward()
    torch.testing.assert_close(on_device.cpu(), logits, atol=1e-5, rtol=1e-5)
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad.cpu(), gradients[key], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_load_ranker_restores_the_same_scores(name):
    model = ranker(name, 3, numbers=NUMBERS)
    model.numbers.mean_N += 1.0
    recorded = dataclasses.asdict(config(name, numbers=NUMBERS))
    restored = load_ranker(recorded, model.state_dict())
    batch = random_batch(numbers=True)
    with torch.inference_mode():
        torch.testing.assert_close(restored(batch), model(batch))


def test_a_model_recorded_before_an_option_existed_is_read():
    recorded = dataclasses.asdict(config("mcca"))
    for name in ("numbers", "family", "top_k", "search", "heads", "layers"):
        del recorded[name]
    model = ranker("mcca")
    load_ranker(recorded, model.state_dict())


def test_every_model_has_a_builder_and_every_builder_a_name():
    assert set(RANKERS) == set(MODELS)


def test_options_of_one_model_have_defaults_there_and_are_none_elsewhere():
    assert (config("transformer").heads, config("transformer").layers) == (4, 2)
    assert (config("sim").top_k, config("sim").search) == (10, "soft")
    assert config("din_sid").family == "text"
    for options in OWN_OPTIONS.values():
        for name in options:
            assert getattr(config("mcca"), name) is None


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        ("mcca", "levels", 0),
        ("mcca", "embedding_width", 0),
        ("mcca", "attention_hidden", 0),
        ("mcca", "tower_hidden", ()),
        ("mcca", "tower_hidden", (8, 0)),
        ("mcca", "families", ()),
        ("mcca_wo_mjc", "families", ("joint",)),
        ("mcca", "heads", 2),
        ("din", "family", "text"),
        ("transformer", "top_k", 5),
        ("transformer", "heads", 3),
        ("transformer", "layers", 0),
        ("sim", "search", "fuzzy"),
        ("sim", "top_k", 0),
        ("din_sid", "family", "image"),
    ],
)
def test_bad_config_names_field_and_value(model, field, value):
    said = re.escape(str(value)) if value != () or field != "families" else "none"
    with pytest.raises(ValueError, match=rf"{field} must .*{said}"):
        RankerConfig(**{**vars(config(model)), field: value})


def test_unknown_model_names_the_choices():
    with pytest.raises(ValueError, match=r"'mcca', .*'transformer'\), got 'wide'"):
        config("wide")


def test_numbers_that_the_batch_lacks_are_an_error():
    with pytest.raises(ValueError, match="must hold 3 numbers a row, got none"):
        ranker("din", numbers=NUMBERS)(random_batch())
    short = changed(random_batch(), numbers_BN=torch.zeros(B, 2))
    with pytest.raises(ValueError, match="must hold 3 numbers a row, got 2"):
        ranker("din", numbers=NUMBERS)(short)
