"""Two modalities that say the same in other words, and a small MM-RQ-VAE, in numpy too."""

import numpy as np
import torch

from models.mm_rq_vae import MmRqVaeNet, MmRqVaeOptions
from models.mm_rq_vae_training import _Rows
from tests.models.blobs import blobs

SMALL = MmRqVaeOptions(
    levels=2, codes=8, hidden=(16,), latent_dims=4, epochs=4, batch_size=128, learning_rate=2e-3
)


def two(rows: int = 600, seed: int = 0) -> dict[str, torch.Tensor]:
    """Text and audio that turn around one hidden place in 3 dims; some items lack one."""
    generator = torch.Generator().manual_seed(seed)
    hidden = blobs(rows, 3, 9, seed=seed)
    x = {
        name: torch.tanh(hidden @ torch.randn(3, dims, generator=generator) / 2)
        + 0.05 * torch.randn(rows, dims, generator=generator)
        for name, dims in (("text", 10), ("audio", 7))
    }
    x["audio"][:40] = 0
    x["text"][40:60] = 0
    return x


def net_of(options: MmRqVaeOptions, x: dict[str, torch.Tensor]) -> tuple[MmRqVaeNet, _Rows]:
    rows = _Rows(x, None)
    generator = torch.Generator().manual_seed(4)
    net = MmRqVaeNet(rows.dims, options, generator)
    with torch.no_grad():
        for stack in net.stacks:
            for level, book in enumerate(stack.books):
                book.copy_(torch.randn(book.shape, generator=generator) / 2 ** (level + 1))
    return net, rows


def perceptron(layers, x):
    layers = [tensor.detach().double().numpy() for tensor in layers]
    for index in range(0, len(layers), 2):
        x = (np.maximum(x, 0) if index else x) @ layers[index].T + layers[index + 1]
    return x
