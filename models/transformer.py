"""A target-attention transformer: the candidate at the end of the history, pre-norm blocks.

    tokens     W [e^r, e^z for every ID family z] + position, of the listens and of the candidate
    block      x <- x + Attention(LN(x));  x <- x + W_2 GELU(W_1 LN(x)), W_1 four times as wide
    predictor  MLP on [LN(x) at the candidate, its token]

Behaviour Sequence Transformer (Chen et al. 2019) with today's block. Every listen sees all others
and the candidate, in every block. A row holds one candidate, so candidates never see each
other. Positions count from the candidate backwards: the newest listen has the same one in a
history of any length.

Shapes: B rows, T history positions, S = T + 1 tokens, R of them after a block, H heads, D width.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from models.attention import score_tower
from models.batch import Batch
from models.item_embedding import ItemEmbedding
from models.numbers import Numbers
from models.ranker_config import EMBEDDING_STD, RankerConfig

WIDENING = 4


class Block(nn.Module):
    """One pre-norm block: (B, S, D) -> (B, R, D), the last R tokens, which see all S."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.to_query = nn.Linear(width, width, bias=False)
        self.to_key_value = nn.Linear(width, 2 * width, bias=False)
        self.from_heads = nn.Linear(width, width, bias=False)
        self.before_wide = nn.LayerNorm(width)
        self.widen = nn.Linear(width, WIDENING * width)
        self.narrow = nn.Linear(WIDENING * width, width)

    def weights(self, x_BSD: Tensor, seen_BS: Tensor) -> Tensor:
        """The last token's attention to each token, the mean of the heads, (B, S): sums to 1."""
        q_BH1d, k_BHSd, _ = self._heads(x_BSD, 1)
        scores_BHS = (q_BH1d @ k_BHSd.transpose(2, 3)).squeeze(2) / q_BH1d.shape[-1] ** 0.5
        return scores_BHS.masked_fill(~seen_BS[:, None], -torch.inf).softmax(-1).mean(1)

    def forward(self, x_BSD: Tensor, seen_BS: Tensor, tokens: int) -> Tensor:
        q, k, v = self._heads(x_BSD, tokens)
        mixed_BHRd = scaled_dot_product_attention(q, k, v, attn_mask=seen_BS[:, None, None, :])
        x_BRD = x_BSD[:, -tokens:] + self.from_heads(mixed_BHRd.transpose(1, 2).flatten(2))
        return x_BRD + self.narrow(gelu(self.widen(self.before_wide(x_BRD))))

    def _heads(self, x_BSD: Tensor, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, R, d), keys and values (B, H, S, d), d = D / H."""
        normed_BSD = self.before_attention(x_BSD)
        query_BRD = self.to_query(normed_BSD[:, -tokens:])
        key_BSD, value_BSD = self.to_key_value(normed_BSD).chunk(2, dim=-1)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (query_BRD, key_BSD, value_BSD)
        )
        return q, k, v


class TargetTransformer(nn.Module):
    """Logits (B,) of a batch."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        assert config.heads  # RankerConfig gave both their defaults
        assert config.layers
        width = config.embedding_width
        self.items = ItemEmbedding(config, range(len(config.families)), width)
        self.to_token = nn.Linear(self.items.width, width)
        # Tokens of variance 1, from embeddings that start small: with torch's own start they are
        # lost beside the positions: 2,400 rows of 60 tracks were not learned in ten epochs.
        nn.init.normal_(self.to_token.weight, std=1 / (EMBEDDING_STD * self.items.width**0.5))
        self.position = nn.Embedding(config.history_length + 1, width)
        nn.init.normal_(self.position.weight, std=EMBEDDING_STD)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.numbers = Numbers(config.numbers)
        self.tower = score_tower(2 * width + self.numbers.width, config.tower_hidden)

    def forward(self, batch: Batch) -> Tensor:
        target_BD = self.to_token(self.items.target(batch))
        x_BSD, seen_BS = self._tokens(batch, target_BD)
        for block in self.blocks[:-1]:
            x_BSD = block(x_BSD, seen_BS, x_BSD.shape[1])
        # Nothing reads the listens after the last block: it makes the candidate alone.
        candidate_BD = self.blocks[-1](x_BSD, seen_BS, 1).squeeze(1)
        inputs = [self.norm(candidate_BD), target_BD, *self.numbers(batch)]
        return self.tower(torch.cat(inputs, dim=-1)).squeeze(-1)

    def weights(self, batch: Batch) -> list[Tensor]:
        """The candidate's attention to each listen, (B, T) a block, the mean of its heads.

        What is left of 1 is its attention to itself; padding has 0.
        """
        x_BSD, seen_BS = self._tokens(batch, self.to_token(self.items.target(batch)))
        weights = []
        for module in self.blocks:
            block = cast(Block, module)
            weights.append(block.weights(x_BSD, seen_BS)[:, :-1])
            x_BSD = block(x_BSD, seen_BS, x_BSD.shape[1])
        return weights

    def _tokens(self, batch: Batch, target_BD: Tensor) -> tuple[Tensor, Tensor]:
        """The listens and, last, the candidate (B, S, D), and which of them are there (B, S)."""
        mask_BT = batch.history_mask_BT
        # The candidate is 0 positions back, the newest listen 1; padding is not seen.
        places_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
        back_BT = (mask_BT.sum(1, keepdim=True).long() - places_T).clamp(min=0)
        listens_BTD = self.to_token(self.items.history(batch)) + self.position(back_BT)
        candidate_B1D = (target_BD + self.position.weight[0]).unsqueeze(1)
        x_BSD = torch.cat([listens_BTD, candidate_B1D], dim=1)
        return x_BSD, torch.cat([mask_BT > 0, torch.ones_like(mask_BT[:, :1], dtype=torch.bool)], 1)
