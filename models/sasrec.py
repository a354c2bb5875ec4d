"""SASRec: self-attention over a user's items so far; a score is a product with an item's vector.

    x = sqrt(D) E[item] + P[place],  dropped out
    block   x <- x + Drop(Attention(LN(x)));  x <- x + Drop(W_2 Drop(relu(W_1 LN(x))))
    h = LN(x),  score of item i after position p = <h_p, E_i>

Kang and McAuley 2018 (arXiv 1808.09781), section III: a position sees itself and earlier ones, the
two layers of a block's net are as wide as the embedding, and scores share the input's embedding
table, which is what is published as the items' collaborative embeddings. Places are counted from
the newest item, which has the last one, as in the paper's sequences padded on the left.

Histories are packed; the linear layers see real positions only, and attention alone pads to the
longest history of a batch, behind its positions, where a causal mask keeps it from being seen.

Shapes: I rows of items with the padding, S histories, P their positions, T the longest one,
H heads, D width, d = D / H.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

EMBEDDING_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class SasRecConfig:
    items: int
    """Rows of the item table with row 0, the padding."""
    width: int = 64
    layers: int = 2
    heads: int = 1
    length: int = 50
    """Items of the longest history."""
    dropout: float = 0.2

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.items < 2:
            raise ValueError(f"items must be at least 2, the padding and one, got {self.items}")
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads {self.heads}, got {self.width}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be from 0 to below 1, got {self.dropout}")


class Block(nn.Module):
    """One block over packed positions: (P, D) -> (P, D)."""

    def __init__(self, config: SasRecConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.before_attention = nn.LayerNorm(width)
        self.to_query_key_value = nn.Linear(width, 3 * width)
        self.from_heads = nn.Linear(width, width)
        self.before_net = nn.LayerNorm(width)
        self.net_in = nn.Linear(width, width)
        self.net_out = nn.Linear(width, width)
        self.drop = nn.Dropout(config.dropout)

    def forward(
        self, x_PD: Tensor, history_P: Tensor, place_P: Tensor, padded: tuple[int, int]
    ) -> Tensor:
        """`history_P`, `place_P`: where each position lies in the padded (S, T)."""
        qkv_P3D = self.to_query_key_value(self.before_attention(x_PD))
        qkv_ST3D = qkv_P3D.new_zeros(*padded, qkv_P3D.shape[1])
        qkv_ST3D[history_P, place_P] = qkv_P3D
        # (S, T, 3, H, d) -> three of (S, H, T, d)
        q, k, v = qkv_ST3D.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed_SHTd = scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed_PD = mixed_SHTd.transpose(1, 2).flatten(2)[history_P, place_P]
        x_PD = x_PD + self.drop(self.from_heads(mixed_PD))
        inner_PD = self.drop(torch.relu(self.net_in(self.before_net(x_PD))))
        return x_PD + self.drop(self.net_out(inner_PD))


class SasRec(nn.Module):
    def __init__(self, config: SasRecConfig) -> None:
        super().__init__()
        self.config = config
        self.item = nn.Embedding(config.items, config.width)
        self.place = nn.Embedding(config.length, config.width)
        for table in (self.item, self.place):
            nn.init.normal_(table.weight, std=EMBEDDING_STD)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, rows_P: Tensor, lengths_S: Tensor) -> Tensor:
        """Hidden states (P, D). ValueError for a history longer than the model's `length`."""
        histories, longest = len(lengths_S), int(lengths_S.max()) if len(lengths_S) else 0
        if longest > self.config.length:
            raise ValueError(
                f"histories may have {self.config.length} items, got one of {longest}: cut it to "
                "its last"
            )
        history_P = torch.repeat_interleave(
            torch.arange(histories, device=rows_P.device), lengths_S, output_size=len(rows_P)
        )
        starts_S = lengths_S.cumsum(0) - lengths_S
        place_P = torch.arange(len(rows_P), device=rows_P.device) - starts_S[history_P]
        from_newest_P = self.config.length - lengths_S[history_P] + place_P
        x_PD = self.item(rows_P) * self.config.width**0.5 + self.place(from_newest_P)
        x_PD = self.drop(x_PD)
        for block in self.blocks:
            x_PD = block(x_PD, history_P, place_P, (histories, longest))
        return self.norm(x_PD)

    def user_vectors(self, rows_P: Tensor, lengths_S: Tensor) -> Tensor:
        """The newest position's hidden state (S, D) of each history. ValueError for empty ones."""
        if len(lengths_S) and int(lengths_S.min()) < 1:
            raise ValueError("a user vector needs a history of at least one item")
        return self(rows_P, lengths_S)[lengths_S.cumsum(0) - 1]

    def item_matrix(self) -> Tensor:
        """E (I, D): a score is a product with one of its rows. Row 0 is the padding, untrained."""
        return self.item.weight
