"""Counted arithmetic against torch's own counter, on the model itself."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from models.mme_sid_flops import (
    forward_flops,
    item_flops,
    layer_weights,
    score_flops,
    training_flops,
)
from ray_jobs.mme_sid_lora import LoraSettings, add_lora
from tests.models import mme_sid_world as world


def counted(work) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_weights_are_those_of_the_layers_matrices():
    backbone = world.backbone()
    matrices = [p.numel() for name, p in backbone.named_parameters() if "proj" in name]
    assert sum(matrices) == 2 * layer_weights(backbone.sizes)


def test_forward_is_what_torch_counts_without_attention():
    backbone = world.backbone()
    x = torch.randn(12, 32)
    found = counted(lambda: backbone(x, torch.tensor([12])))
    assert found == 12 * forward_flops(backbone.sizes, 0)  # attention on a CPU is not counted
    attention = forward_flops(backbone.sizes, 50) - forward_flops(backbone.sizes, 0)
    # Scores and mix, 2 T E each a head, over the half of the keys that a token sees on average.
    assert attention == 2 * 2 * (2 * 50 * 8 * 4) / 2


def test_training_counts_no_gradient_of_a_frozen_weight():
    backbone = world.backbone()
    torch.manual_seed(0)
    # peft's own layers: torch does not count products that are added in place, as ours are.
    add_lora(backbone, LoraSettings(rank=3, alpha=3, dropout=0.0), fast=False)
    x = torch.randn(12, 32, requires_grad=True)
    found = counted(lambda: backbone(x, torch.tensor([12])).sum().backward())
    assert found == 12 * training_flops(backbone.sizes, 0, 3)


def test_item_side_and_scores():
    ours = world.model()
    rows = torch.arange(1, 41)
    found = counted(lambda: ours.items.inputs(rows))
    assert found == 40 * item_flops(ours.config, 32, folded=False)
    fusion = 2 * (1 * 64 + 64 * 10 + 10 * 64 + 64 * 3)
    assert counted(lambda: ours.items.matrix(rows)) == 40 * (
        item_flops(ours.config, 32, folded=True) + fusion
    )
    h, table = torch.randn(5, 32), torch.randn(40, 32)
    assert counted(lambda: h @ table.T) == 5 * score_flops(32, 40)
