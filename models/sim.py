"""Two-stage attention for long histories, after SIM (Pi et al., CIKM 2020).

    search     the `top_k` positions j of the history with the greatest relevance to the candidate:
               soft: <x_j, x_t>; hard: codes that the last family's IDs share from the front
    attention  h = sum over those j of a(x_j (+) x_t) x_j, DIN's
    predictor  MLP on [h, x_t]                      x = [e^r, e^z for every ID family z]

The costly part, the attention net, sees `top_k` positions of however many. Ties, as between a
candidate without an ID and every listen, go to the newest. SIM trains its soft search by a loss
of its own; here the search reads the embeddings that the attention trains, and has no gradient.

Shapes: B rows, T history positions, J positions kept, X width of an item, L levels.
"""

import torch
from torch import Tensor, nn

from models.attention import TargetAttention, score_tower
from models.batch import MISSING_CODE, Batch
from models.item_embedding import ItemEmbedding
from models.numbers import Numbers
from models.ranker_config import RankerConfig


class SIM(nn.Module):
    """Logits (B,) of a batch."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        self.top_k, self.search = config.top_k, config.search
        families = range(len(config.families))
        self.items = ItemEmbedding(config, families, config.embedding_width)
        self.attention = TargetAttention(self.items.width, config.attention_hidden)
        self.numbers = Numbers(config.numbers)
        self.tower = score_tower(2 * self.items.width + self.numbers.width, config.tower_hidden)

    def forward(self, batch: Batch) -> Tensor:
        target_BX, history_BTX = self.items.target(batch), self.items.history(batch)
        mask_BT = batch.history_mask_BT
        with torch.no_grad():
            if self.search == "hard":
                relevance_BT = shared_prefix(batch).to(history_BTX.dtype)
            else:
                relevance_BT = (history_BTX * target_BX.unsqueeze(1)).sum(-1)
            kept_BJ = newest_of_greatest(relevance_BT.masked_fill(mask_BT == 0, -torch.inf))
            kept_BJ = kept_BJ[:, : self.top_k]
        kept_BJX = history_BTX.gather(1, kept_BJ.unsqueeze(-1).expand(-1, -1, self.items.width))
        interest_BX = self.attention(kept_BJX, target_BX, mask_BT.gather(1, kept_BJ))
        inputs = [interest_BX, target_BX, *self.numbers(batch)]
        return self.tower(torch.cat(inputs, dim=-1)).squeeze(-1)


def shared_prefix(batch: Batch) -> Tensor:
    """Codes that each listen's ID shares with the candidate's from the front, (B, T) int64."""
    target_B1L = batch.target_codes_BFL[:, -1].unsqueeze(1)
    same_BTL = (batch.history_codes_BTFL[:, :, -1] == target_B1L) & (target_B1L != MISSING_CODE)
    return same_BTL.long().cumprod(-1).sum(-1)


def newest_of_greatest(relevance_BT: Tensor) -> Tensor:
    """Positions (B, T) by falling relevance, the later one first where two are equal."""
    order_BT = relevance_BT.flip(1).sort(dim=1, descending=True, stable=True).indices
    return relevance_BT.shape[1] - 1 - order_BT
