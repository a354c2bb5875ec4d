"""The perceptron against numpy in float64, and its bits against every way to cut up the rows."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from models.exact_mlp import ExactMlp


def mlp(widths: list[int], seed: int = 0) -> ExactMlp:
    generator = torch.Generator().manual_seed(seed)
    pairs = list(pairwise(widths))
    return ExactMlp(
        weights=tuple(torch.randn(o, d, generator=generator) / d**0.5 for d, o in pairs),
        biases=tuple(torch.randn(o, generator=generator) * 0.1 for _, o in pairs),
    )


def rows(n: int, d: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def reference(net: ExactMlp, x: torch.Tensor) -> np.ndarray:
    y = x.double().numpy()
    for index, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
        y = (np.maximum(y, 0) if index else y) @ weight.double().numpy().T + bias.double().numpy()
    return y


@pytest.mark.parametrize("widths", [[7, 3], [64, 256, 32], [1000, 50, 20, 5], [2049, 8]])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_is_the_perceptron_to_float32_rounding(widths, scale):
    net, x = mlp(widths), rows(40, widths[0]) * scale
    expected = reference(net, x)
    assert np.abs(net(x).numpy() - expected).max() < 4e-6 * np.abs(expected).max()


def test_a_rows_bits_depend_on_that_row_alone(monkeypatch):
    net, x = mlp([300, 128, 16]), rows(700, 300)
    whole = net(x)
    order = torch.randperm(700, generator=torch.Generator().manual_seed(2))
    assert torch.equal(net(x[order]), whole[order])
    for size in (1, 3, 16, 257):
        assert torch.equal(torch.cat([net(part) for part in x.split(size)]), whole)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    assert torch.equal(net(x), whole)
    torch.set_num_threads(threads)
    loud = x.clone()
    loud[1:] *= 1e9  # another row's size must not change the rounding of this one
    assert torch.equal(net(loud)[0], whole[0])
    monkeypatch.setattr("models.rows.CHUNK_ELEMENTS", 1)
    assert torch.equal(net(x), whole)


def test_the_order_of_the_sum_does_not_matter():
    """The same columns in another order: other partial sums, the same bits."""
    net, x = mlp([500, 10]), rows(60, 500)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(3))
    shuffled = ExactMlp(weights=(net.weights[0][:, order],), biases=net.biases)
    assert torch.equal(shuffled(x[:, order]), net(x))


def test_zero_rows_give_the_biases_way_through():
    net = mlp([5, 4, 3])
    assert torch.equal(net(torch.zeros(2, 5)), net(torch.zeros(1, 5)).expand(2, -1))
    np.testing.assert_allclose(net(torch.zeros(1, 5)), reference(net, torch.zeros(1, 5)), rtol=1e-6)
    assert net(torch.zeros(0, 5)).shape == (0, 3)


def test_layers_that_do_not_fit_are_named():
    net = mlp([5, 4, 3])
    with pytest.raises(ValueError, match="2 weights and 1 biases"):
        ExactMlp(weights=net.weights, biases=net.biases[:1])
    with pytest.raises(ValueError, match=r"layer 1 takes 4 dims, got weight \(3, 5\)"):
        ExactMlp(weights=(net.weights[0], torch.zeros(3, 5)), biases=net.biases)
    with pytest.raises(ValueError, match="layer 0 must be finite float32"):
        ExactMlp(weights=(net.weights[0].double(), net.weights[1]), biases=net.biases)
