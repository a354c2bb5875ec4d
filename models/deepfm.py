"""DeepFM: pairwise products of the fields, and an MLP on the same embeddings (Guo et al. 2017).

    fields   v_i = the item fields [e^r, e^z ...] of the candidate, and their mean over the history
    logit    sum_i w_i  +  sum_{i<j} <v_i, v_j>  +  MLP([v_1, v_2, ...])

w_i is the one-dim embedding of the same ids and codes. The sum over pairs costs one pass:
sum_{i<j} <v_i, v_j> = (||sum_i v_i||^2 - sum_i ||v_i||^2) / 2.

Shapes: B rows, X width of an item, G fields, D width of one.
"""

import torch
from torch import Tensor, nn

from models.attention import score_tower
from models.batch import Batch
from models.item_embedding import ItemEmbedding, mean_history
from models.numbers import Numbers
from models.ranker_config import RankerConfig


class DeepFM(nn.Module):
    """Logits (B,) of a batch."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        families = range(len(config.families))
        self.items = ItemEmbedding(config, families, config.embedding_width)
        self.first_order = ItemEmbedding(config, families, 1)
        self.numbers = Numbers(config.numbers)
        self.tower = score_tower(2 * self.items.width + self.numbers.width, config.tower_hidden)

    def forward(self, batch: Batch) -> Tensor:
        flat_BX = _fields(self.items, batch)
        v_BGD = flat_BX.unflatten(1, (2 * self.items.fields, -1))
        pairs_B = (v_BGD.sum(1).square() - v_BGD.square().sum(1)).sum(1) / 2
        deep_B = self.tower(torch.cat([flat_BX, *self.numbers(batch)], dim=-1)).squeeze(-1)
        return _fields(self.first_order, batch).sum(1) + pairs_B + deep_B


def _fields(items: ItemEmbedding, batch: Batch) -> Tensor:
    """The candidate's fields, then the history's, side by side."""
    taste_BX = mean_history(items.history(batch), batch.history_mask_BT)
    return torch.cat([items.target(batch), taste_BX], dim=-1)
