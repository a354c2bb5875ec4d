"""A checkpoint's tensors into a network, by name, all of them and nothing else."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def take_weights(
    network: nn.Module,
    named: Mapping[str, Tensor],
    *,
    dtype: torch.dtype,
    device: torch.device | str,
) -> None:
    """Gives a network on the meta device its parameters.

    Raises ValueError with the names that lack or are too many, or a tensor's shape.
    """
    expected = dict(network.named_parameters())
    if missing := sorted(expected.keys() - named.keys()):
        raise ValueError(f"tensors: {len(missing)} missing, for instance {missing[0]}")
    if unknown := sorted(named.keys() - expected.keys()):
        raise ValueError(f"tensors: {len(unknown)} unknown, for instance {unknown[0]}")
    for name, parameter in expected.items():
        if named[name].shape != parameter.shape:
            shapes = f"{tuple(named[name].shape)}, expected {tuple(parameter.shape)}"
            raise ValueError(f"tensors: {name} has shape {shapes}")
    placed = {name: tensor.to(device, dtype) for name, tensor in named.items()}
    network.load_state_dict(placed, assign=True)
