"""Rows in clusters, for the tests of quantizers."""

import torch


def blobs(n: int, d: int, clusters: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, d, generator=generator) * 2
    pick = torch.randint(0, clusters, (n,), generator=generator)
    return centres[pick] + torch.randn(n, d, generator=generator)
