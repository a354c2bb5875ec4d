"""An item as a vector: its ID embedding, and beside it the embeddings of its semantic IDs.

Shapes: B rows, T history positions, F families that are seen, L levels, D width of one embedding,
X width of an item's fields side by side; `...` any leading shape.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.batch import Batch
from models.code_embedding import CodeEmbedding
from models.ranker_config import RankerConfig
from models.track_embedding import TrackEmbedding


class ItemEmbedding(nn.Module):
    """[e^r, e^z for the families z]: the fields of an item side by side, as DIN has them.

    `families` are positions in `config.families`. Item (..., X) with X = (1 + F) D.
    """

    def __init__(self, config: RankerConfig, families: Sequence[int], width: int) -> None:
        super().__init__()
        self.families = tuple(families)
        self.fields = 1 + len(self.families)
        self.width = self.fields * width
        self.track_embedding = TrackEmbedding(config.id_rows, width)
        self.code_embeddings = nn.ModuleList(
            CodeEmbedding(config.levels, config.codes, width) for _ in self.families
        )

    def target(self, batch: Batch) -> Tensor:
        """The candidates, (B, X)."""
        return self._items(batch.target_ids_B, batch.target_codes_BFL)

    def history(self, batch: Batch) -> Tensor:
        """The listens, (B, T, X); zeros at padding."""
        return self._items(batch.history_ids_BT, batch.history_codes_BTFL)

    def _items(self, ids: Tensor, codes: Tensor) -> Tensor:
        semantic = [
            embed(codes[..., family, :])
            for family, embed in zip(self.families, self.code_embeddings, strict=True)
        ]
        return torch.cat([self.track_embedding(ids), *semantic], dim=-1)


def mean_history(history_BTX: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean of the real positions, (B, X); zeros for an empty history."""
    total_BX = (history_BTX * mask_BT.unsqueeze(-1)).sum(1)
    return total_BX / mask_BT.sum(1, keepdim=True).clamp(min=1)
