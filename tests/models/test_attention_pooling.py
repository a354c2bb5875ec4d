"""The written-out backward pass of target attention: against autograd on the plain operations."""

import pytest
import torch

from models.attention_pooling import AttentionPooling

B, T, D, H = 5, 4, 3, 6


def inputs(dtype=torch.float64):
    torch.manual_seed(0)
    shapes = [(B, T, D), (B, T, H), (B, H)]
    keys, projected, query = (torch.randn(shape, dtype=dtype) for shape in shapes)
    mask = torch.ones(B, T, dtype=dtype)
    mask[0, 2:], mask[3] = 0, 0  # padding, and an empty history
    slope, weight, bias = (torch.randn(shape, dtype=dtype) for shape in [(H,), (H,), ()])
    return keys, projected, query, mask, slope, weight, bias


def plain(keys, projected, query, mask, slope, weight, bias):
    hidden = projected + query[:, None]
    activated = torch.where(hidden > 0, hidden, slope * hidden)
    scores = (activated @ weight + bias) * mask
    return (scores[..., None] * keys).sum(1)


def test_forward_equals_the_plain_operations():
    torch.testing.assert_close(AttentionPooling.apply(*inputs()), plain(*inputs()))
    assert not AttentionPooling.apply(*inputs())[3].any()


@pytest.mark.parametrize("name", ["keys", "projected", "query", "slope", "weight", "bias"])
def test_every_gradient_equals_autograds(name):
    torch.manual_seed(1)
    towards_BD = torch.randn(B, D, dtype=torch.float64)
    at = ["keys", "projected", "query", "mask", "slope", "weight", "bias"].index(name)
    gradients = []
    for function in (AttentionPooling.apply, plain):
        given = [value.clone() for value in inputs()]
        given[at].requires_grad_()
        (function(*given) * towards_BD).sum().backward()
        gradients.append(given[at].grad)
    torch.testing.assert_close(gradients[0], gradients[1])
