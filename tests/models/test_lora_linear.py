"""The fast LoRA layer against peft's own."""

import copy

import pytest
import torch
from torch import nn

from models.lora_linear import LoraLinear, use_fast_lora
from ray_jobs.mme_sid_lora import LoraSettings, adapter_tensors, add_lora


class Net(nn.Module):
    def __init__(self, bias=False):
        super().__init__()
        self.gate_proj = nn.Linear(6, 10, bias=bias)
        self.up_proj = nn.Linear(6, 10, bias=False)
        self.down_proj = nn.Linear(10, 6, bias=False)

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


def pair(dropout=0.0, bias=False):
    """The same net with peft's layers and with ours."""
    torch.manual_seed(0)
    theirs = Net(bias)
    add_lora(theirs, LoraSettings(rank=3, alpha=6, dropout=dropout), fast=False)
    for parameter in theirs.parameters():
        parameter.data.normal_()
    ours = copy.deepcopy(theirs)
    replaced = use_fast_lora(ours)
    return theirs, ours, replaced


def test_values_and_gradients_are_pefts():
    theirs, ours, replaced = pair()
    assert replaced == 3
    assert isinstance(ours.up_proj, LoraLinear)
    inputs = [torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    answers = []
    for net, x in zip((theirs, ours), inputs, strict=True):
        x.requires_grad_()
        y = net(x)
        y.square().sum().backward()
        grads = [p.grad for p in net.parameters() if p.requires_grad]
        answers.append([y, x.grad, *grads])
        assert all(p.grad is None for p in net.parameters() if not p.requires_grad)
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


def test_gradients_with_dropout_are_the_slopes_of_what_was_computed():
    _, ours, _ = pair(dropout=0.4)
    ours = ours.double().train()
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    trained = [p for p in ours.parameters() if p.requires_grad]

    def seeded(x, *_):
        torch.manual_seed(5)  # one mask for all evaluations
        return ours(x)

    assert torch.autograd.gradcheck(seeded, (x, *trained))


def test_dropout_acts_in_training_alone_and_keeps_the_mean():
    theirs, ours, _ = pair(dropout=0.5)
    x = torch.randn(3, 6)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    layer = ours.train().up_proj
    mean = torch.stack([layer(x) for _ in range(8000)]).mean(0)
    torch.testing.assert_close(mean, theirs.eval().up_proj(x), atol=0.6, rtol=0.1)
    assert not torch.equal(layer(x), layer(x))


def test_names_are_pefts_and_weights_are_the_layers():
    theirs, ours, _ = pair()
    assert list(theirs.state_dict()) == list(ours.state_dict())
    saved = adapter_tensors(ours)
    assert "base_model.model.gate_proj.lora_A.weight" in saved
    assert torch.equal(
        saved["base_model.model.up_proj.lora_B.weight"],
        ours.up_proj.lora_B["default"].weight,
    )


def test_layers_with_a_bias_keep_pefts_forward():
    theirs, ours, replaced = pair(bias=True)
    assert replaced == 2
    x = torch.randn(3, 6)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_adapters_of_a_bfloat16_base_are_float32():
    net = Net().to(torch.bfloat16)
    add_lora(net, LoraSettings())
    y = net(torch.randn(3, 6, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    lora = [p for name, p in net.named_parameters() if "lora_" in name]
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in lora)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"rank": 0}, "rank must be at least 1, got 0"), ({"dropout": 1.0}, "dropout must .* 1.0")],
)
def test_bad_settings_name_field_and_value(change, message):
    with pytest.raises(ValueError, match=message):
        LoraSettings(**change)
