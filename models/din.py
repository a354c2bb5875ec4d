"""DIN on track ids alone: the baseline that MCCA is compared with.

Target attention of the candidate's ID embedding over the history's ID embeddings, then an MLP on
[h^r, e^r_t] (Zhou et al., KDD 2018). Same attention unit, tower and batch as MCCA, so that a
difference between the two comes from the semantic IDs.
"""

import torch
from torch import Tensor, nn

from models.attention import TargetAttention, score_tower
from models.batch import Batch
from models.numbers import Numbers
from models.ranker_config import RankerConfig
from models.track_embedding import TrackEmbedding


class DIN(nn.Module):
    """Logits (B,) of a batch."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        width = config.embedding_width
        self.track_embedding = TrackEmbedding(config.id_rows, width)
        self.attention = TargetAttention(width, config.attention_hidden)
        self.numbers = Numbers(config.numbers)
        self.tower = score_tower(2 * width + self.numbers.width, config.tower_hidden)

    def forward(self, batch: Batch) -> Tensor:
        target_BD = self.track_embedding(batch.target_ids_B)
        history_BTD = self.track_embedding(batch.history_ids_BT)
        interest_BD = self.attention(history_BTD, target_BD, batch.history_mask_BT)
        inputs = [interest_BD, target_BD, *self.numbers(batch)]
        return self.tower(torch.cat(inputs, dim=-1)).squeeze(-1)
