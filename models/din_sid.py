"""DIN with the semantic IDs of one family: the paper's Table 3, any quantizer.

An item is [e^r, e^z]: the embedding of its track id, and beside it the sum of its code embeddings
of `RankerConfig.family`. DIN's attention and MLP see both as it sees any two fields of an item
(Zhou et al., KDD 2018, section 4); the paper does not say how they are joined.

Shapes: B rows, T history positions, X = 2 D width of an item.
"""

import torch
from torch import Tensor, nn

from models.attention import TargetAttention, score_tower
from models.batch import Batch
from models.item_embedding import ItemEmbedding
from models.numbers import Numbers
from models.ranker_config import RankerConfig


class DINWithIDs(nn.Module):
    """Logits (B,) of a batch."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        family = [config.families.index(str(config.family))]
        self.items = ItemEmbedding(config, family, config.embedding_width)
        self.attention = TargetAttention(self.items.width, config.attention_hidden)
        self.numbers = Numbers(config.numbers)
        self.tower = score_tower(2 * self.items.width + self.numbers.width, config.tower_hidden)

    def forward(self, batch: Batch) -> Tensor:
        target_BX = self.items.target(batch)
        interest_BX = self.attention(self.items.history(batch), target_BX, batch.history_mask_BT)
        inputs = [interest_BX, target_BX, *self.numbers(batch)]
        return self.tower(torch.cat(inputs, dim=-1)).squeeze(-1)
