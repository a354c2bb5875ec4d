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
        kept_BJ = self._search(batch, target_BX, history_BTX)
        interest_BX = self.attention(*self._kept(batch, kept_BJ, target_BX, history_BTX))
        inputs = [interest_BX, target_BX, *self.numbers(batch)]
        return self.tower(torch.cat(inputs, dim=-1)).squeeze(-1)

    def weights(self, batch: Batch) -> Tensor:
        """The attention's weight of each position, (B, T): 0 where the search left it out."""
        target_BX, history_BTX = self.items.target(batch), self.items.history(batch)
        kept_BJ = self._search(batch, target_BX, history_BTX)
        weights_BJ = self.attention.weights(*self._kept(batch, kept_BJ, target_BX, history_BTX))
        return torch.zeros_like(batch.history_mask_BT).scatter(1, kept_BJ, weights_BJ)

    @torch.no_grad()
    def _search(self, batch: Batch, target_BX: Tensor, history_BTX: Tensor) -> Tensor:
        """Positions (B, J)."""
        if self.search == "hard":
            relevance_BT = shared_prefix(batch).to(history_BTX.dtype)
        else:
            relevance_BT = (history_BTX * target_BX.unsqueeze(1)).sum(-1)
        padding_BT = batch.history_mask_BT == 0
        return newest_of_greatest(relevance_BT.masked_fill(padding_BT, -torch.inf))[:, : self.top_k]

    def _kept(
        self, batch: Batch, kept_BJ: Tensor, target_BX: Tensor, history_BTX: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the attention reads: keys (B, J, X), query (B, X), mask (B, J)."""
        places_BJX = kept_BJ.unsqueeze(-1).expand(-1, -1, self.items.width)
        kept_BJX = history_BTX.gather(1, places_BJX)
        return kept_BJX, target_BX, batch.history_mask_BT.gather(1, kept_BJ)


def shared_prefix(batch: Batch) -> Tensor:
    """Codes that each listen's ID shares with the candidate's from the front, (B, T) int64."""
    target_B1L = batch.target_codes_BFL[:, -1].unsqueeze(1)
    same_BTL = (batch.history_codes_BTFL[:, :, -1] == target_B1L) & (target_B1L != MISSING_CODE)
    return same_BTL.long().cumprod(-1).sum(-1)


def newest_of_greatest(relevance_BT: Tensor) -> Tensor:
    """Positions (B, T) by falling relevance, the later one first where two are equal."""
    order_BT = relevance_BT.flip(1).sort(dim=1, descending=True, stable=True).indices
    return relevance_BT.shape[1] - 1 - order_BT
