"""Multimodal frequency-aware fusion: how much each score head counts, by the item's frequency.

    f_i = minmax(log(1 + count_i));   w_i = softmax(MLP2(MLP1(f_i)) / T)

MLP1 is 1-64-10, MLP2 10-64-H, both with ReLU; T = 1e-3 (MME-SID, paper section 3). [INT] The paper
names the temperature alone: logits are divided by it, as a softmax temperature commonly is, so that
an item has almost one head.

The weights depend on the item and not on the user. So the sum of the weighted heads' scores is a
product with one vector an item, sum_h w_h(f_i) head_h(i), and ranking costs what one head costs.

Shapes: I rows of items with the padding, N any items, H heads.
"""

import torch
from torch import Tensor, nn

HIDDEN, LIFTED = 64, 10
"""Widths of the paper's two MLPs."""


def frequencies(counts_I: Tensor) -> Tensor:
    """minmax(log(1 + count)) (I,) float32 in 0..1 over the items; row 0, the padding, has 0.

    Zeros where all items have one count. ValueError without items or for a negative count.
    """
    if counts_I.ndim != 1 or len(counts_I) < 2 or int(counts_I.min()) < 0:
        raise ValueError(
            f"counts_I must be (1 + items,) counts of at least 0, got shape "
            f"{tuple(counts_I.shape)} from {int(counts_I.min()) if len(counts_I) else None}"
        )
    log_I = torch.log1p(counts_I.double())
    least, most = log_I[1:].min(), log_I[1:].max()
    scaled_I = (log_I - least) / (most - least) if most > least else torch.zeros_like(log_I)
    scaled_I[0] = 0.0
    return scaled_I.float()


class FrequencyFusion(nn.Module):
    """Frequencies (N,) -> weights (N, H) that add up to 1."""

    def __init__(self, heads: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.lift = nn.Sequential(nn.Linear(1, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, LIFTED))
        self.weigh = nn.Sequential(nn.Linear(LIFTED, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, heads))

    def forward(self, frequency_N: Tensor) -> Tensor:
        # In float32 also under autocast: at T = 1e-3 bfloat16's steps of 2^-8 would be 4 nats.
        with torch.autocast(frequency_N.device.type, enabled=False):
            logits_NH = self.weigh(self.lift(frequency_N.float().unsqueeze(1)))
            return (logits_NH / self.temperature).softmax(dim=1)
