"""The item side against a transcription in plain numpy, and its checks."""

import numpy as np
import pytest
import torch

from models.frequency_fusion import FrequencyFusion, frequencies
from models.mme_sid_items import MmeSidConfig, MmeSidItems
from tests.models import mme_sid_world as world


def items(**changes) -> MmeSidItems:
    torch.manual_seed(0)
    return MmeSidItems(world.config(**changes), 32, **world.tables())


def numpy_of(module) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in module.state_dict().items()}


def rms(table):
    return np.sqrt(np.square(table).mean())


def numpy_parts(side: MmeSidItems) -> list[np.ndarray]:
    """u_m of every row, from the tables that were given and the trained parameters."""
    state, given = numpy_of(side), world.tables()
    parts = []
    for place, family in enumerate(world.FAMILIES):
        raw = given["raw"][family].double().numpy()
        raw = raw / rms(raw[(raw != 0).any(1)])
        table = state[f"code_tables.{place}.table.weight"]
        codes = given["codes_IFL"][:, place].numpy()
        sid = np.zeros((len(codes), world.WIDTH))
        for row, of_row in enumerate(codes):
            for level, code in enumerate(of_row):
                if code >= 0:
                    sid[row] += table[level * world.CODES + code]
        parts.append(np.hstack([raw @ state[f"projections.{place}.weight"].T, sid]))
    return parts


def silu(x):
    return x / (1 + np.exp(-x))


def numpy_features(side: MmeSidItems) -> list[np.ndarray]:
    state, parts = numpy_of(side), numpy_parts(side)
    return [silu(np.hstack(parts) @ state["mix.weight"].T + state["mix.bias"]), *parts]


def numpy_weights(side: MmeSidItems) -> np.ndarray:
    state = numpy_of(side)
    counts = world.tables()["counts_I"].double().numpy()
    logs = np.log1p(counts)
    f = (logs - logs[1:].min()) / (logs[1:].max() - logs[1:].min())
    x = f[:, None]
    for name in ("lift", "weigh"):
        weights = [
            state[f"fusion.{name}.{layer}.{kind}"]
            for layer in (0, 2)
            for kind in ("weight", "bias")
        ]
        x = np.maximum(x @ weights[0].T + weights[1], 0) @ weights[2].T + weights[3]
    scaled = np.exp((x - x.max(1, keepdims=True)) / side.config.temperature)
    return scaled / scaled.sum(1, keepdims=True)


def test_inputs_are_those_of_the_formula():
    side = items()
    rows = torch.tensor([1, 3, 4, 40, 1])
    expected = numpy_features(side)[0] @ numpy_of(side)["outputs.0.weight"].T / np.sqrt(32)
    np.testing.assert_allclose(side.inputs(rows).detach(), expected[rows], atol=1e-5)


@pytest.mark.parametrize("temperature", [0.7, 1e-3])
def test_one_matrix_holds_the_sum_over_the_weighted_heads(temperature):
    side = items(temperature=temperature)
    state, features, weights = numpy_of(side), numpy_features(side), numpy_weights(side)
    heads = np.stack(
        [x @ state[f"outputs.{head}.weight"].T for head, x in enumerate(features)], axis=1
    ) / np.sqrt(32)
    np.testing.assert_allclose(side.heads().detach(), heads, atol=1e-5)
    np.testing.assert_allclose(side.head_weights()[1:].detach(), weights[1:], atol=2e-3)
    h = np.random.default_rng(1).normal(size=32)
    scores = (weights * (heads @ h)).sum(1)  # sum_h w_h(f_i) <h, head_h(i)>
    np.testing.assert_allclose(
        (side.matrix() @ torch.from_numpy(h).float()).detach()[1:],
        scores[1:],
        atol=2e-2 if temperature < 0.1 else 1e-4,
    )
    rows = torch.tensor([2, 3, 4])
    torch.testing.assert_close(side.matrix(rows), side.matrix()[rows])
    exact = (side.head_weights().unsqueeze(2) * side.heads()).sum(1)
    torch.testing.assert_close(side.matrix(), exact, atol=1e-5, rtol=1e-4)


def test_code_tables_start_as_the_quantizers_up_to_one_number():
    side, books = items(), world.tables()["code_embeddings"]
    codes_IL = world.tables()["codes_IFL"][:, 1]
    for place, family in enumerate(world.FAMILIES):
        table = side.code_table(place).table.weight[:-1].detach()
        ratio = table / books[family].flatten(0, 1)
        assert ratio.std() < 1e-5 * ratio.mean()
    has = (codes_IL >= 0).all(1)
    assert float(side.code_vectors(1)[has].square().mean()) == pytest.approx(1, abs=1e-4)


def test_without_code_embeddings_the_start_is_random_and_of_the_same_size():
    tables = world.tables() | {"code_embeddings": None}
    torch.manual_seed(0)
    first = MmeSidItems(world.config(), 32, **tables)
    torch.manual_seed(1)
    second = MmeSidItems(world.config(), 32, **tables)
    rows = first.code_table(0).table.weight[:-1]
    assert not torch.equal(rows, second.code_table(0).table.weight[:-1])
    assert float(rows.square().mean()) == pytest.approx(1 / world.LEVELS, rel=0.5)


def test_raw_tables_are_frozen_and_code_tables_are_not():
    trained = {name for name, _ in items().named_parameters()}
    assert "code_tables.1.table.weight" in trained
    assert not any(name.startswith("raw_") for name in trained)


def test_families_without_raw_embeddings_or_without_codes():
    tables = world.tables()
    ids_alone = MmeSidItems(world.config(dims=(0, 0)), 32, **tables | {"raw": {}})
    assert [part.shape[1] for part in ids_alone.parts()] == [4, 4]
    torch.testing.assert_close(ids_alone.parts()[1], ids_alone.code_vectors(1))
    raw_alone = MmeSidItems(
        world.config(levels=0),
        32,
        **tables | {"codes_IFL": tables["codes_IFL"][:, :, :0], "code_embeddings": None},
    )
    assert [part.shape[1] for part in raw_alone.parts()] == [4, 4]
    assert raw_alone.matrix().shape == (world.ITEMS + 1, 32)


def test_consistency_is_the_mean_squared_distance_to_the_quantized_embeddings():
    side = items(consistency=0.5)
    rows = torch.tensor([1, 2, 3, 4])
    assert float(side.consistency(rows)) == 0.0
    before = [side.code_vectors(place, rows).detach().numpy() for place in (0, 1)]
    with torch.no_grad():
        for table in side.code_tables:
            table.table.weight[:-1] += torch.randn(
                18, 4, generator=torch.Generator().manual_seed(0)
            )
    after = [side.code_vectors(place, rows).detach().numpy() for place in (0, 1)]
    moved = np.concatenate([b - a for a, b in zip(before, after, strict=True)])
    assert float(side.consistency(rows)) == pytest.approx(np.square(moved).mean(), rel=1e-5)


def test_frequencies_run_from_the_rarest_to_the_most_played():
    scaled = frequencies(torch.tensor([0, 3, 0, 15, 3]))
    np.testing.assert_allclose(scaled, [0, np.log(4) / np.log(16), 0, 1, 0.5], atol=1e-6)
    assert frequencies(torch.tensor([0, 5, 5])).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="counts_I must"):
        frequencies(torch.tensor([0, -1]))


def test_fusion_weights_are_float32_under_autocast():
    fusion = FrequencyFusion(3, 1e-3)
    f = torch.linspace(0, 1, 9)
    with torch.autocast("cpu", torch.bfloat16):
        weights = fusion(f)
    torch.testing.assert_close(weights, fusion(f), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"families": ("a", "a")}, "families must be distinct"),
        ({"dims": (5,)}, "dims must be a width"),
        ({"levels": 0, "dims": (5, 0)}, "levels must be at least 1"),
        ({"codes": 0}, "codes must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"consistency": -1.0}, "consistency must be at least 0, got -1.0"),
    ],
)
def test_bad_sizes_name_field_and_value(change, message):
    with pytest.raises(ValueError, match=message):
        world.config(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["raw"].pop("text"), r"raw\['text'\] must be \(41, 7\), got None"),
        (lambda t: t["codes_IFL"].fill_(6), "codes must be -1 .* to 5, got 6"),
        (lambda t: t.update(codes_IFL=t["codes_IFL"][:9]), r"codes_IFL must be \(41, 2, 3\)"),
        (lambda t: t["code_embeddings"].pop("text"), r"code_embeddings\['text'\] must be"),
    ],
)
def test_tables_that_do_not_fit_are_refused(change, message):
    tables = world.tables()
    change(tables)
    with pytest.raises(ValueError, match=message):
        MmeSidItems(world.config(), 32, **tables)


def test_a_consistency_term_needs_the_quantizers_embeddings():
    tables = world.tables() | {"code_embeddings": None}
    with pytest.raises(ValueError, match="needs the quantizer's code embeddings"):
        MmeSidItems(world.config(consistency=1.0), 32, **tables)
    assert isinstance(world.config(families=["a", "b"]), MmeSidConfig)  # as JSON brings them
