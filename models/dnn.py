"""A plain deep ranker: the history's mean beside the candidate, then an MLP.

    logit = MLP([mean_j x_j, x_t])        x = [e^r, e^z for every ID family z]

It sees what MCCA sees, but not through attention: what it lacks is the candidate's say in which
listens count.

Shapes: B rows, X width of an item.
"""

import torch
from torch import Tensor, nn

from models.attention import score_tower
from models.batch import Batch
from models.item_embedding import ItemEmbedding, mean_history
from models.numbers import Numbers
from models.ranker_config import RankerConfig


class DNN(nn.Module):
    """Logits (B,) of a batch."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        families = range(len(config.families))
        self.items = ItemEmbedding(config, families, config.embedding_width)
        self.numbers = Numbers(config.numbers)
        self.tower = score_tower(2 * self.items.width + self.numbers.width, config.tower_hidden)

    def forward(self, batch: Batch) -> Tensor:
        taste_BX = mean_history(self.items.history(batch), batch.history_mask_BT)
        inputs = [taste_BX, self.items.target(batch), *self.numbers(batch)]
        return self.tower(torch.cat(inputs, dim=-1)).squeeze(-1)
