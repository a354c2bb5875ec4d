"""MCCA: multi-codebook cross-attention (paper section 2).

    item       e^z = sum_l E^z_l[id^z_l]  for the families z: text, audio, ..., joint
    attention  h^z = sum_j a^z(e^z_j (+) e^o_t) e^z_j   every family queried by the JOINT target
               h^r = sum_j a^r(e^r_j (+) e^r_t) e^r_j   track ids queried by the target's own id
    predictor  MLP on [h^text, h^audio, ..., h^o, h^r, e^r_t, e^o_t]

The code tables start at random and are trained end to end; centroids are not used here. Open in
the paper, chosen here: one attention net a family, the sizes of `RankerConfig`, PReLU.

Shapes: B rows, T history positions, F families (the joint one last), L levels, D width.
"""

import torch
from torch import Tensor, nn

from models.attention import TargetAttention, score_tower, track_embedding
from models.batch import MISSING_CODE, Batch
from models.ranker_config import EMBEDDING_STD, RankerConfig


class CodeEmbedding(nn.Module):
    """Sum over the levels of one family's code embeddings: codes (..., L) -> (..., D).

    A missing code adds nothing, so a track without the modality is a zero vector.
    """

    def __init__(self, levels: int, codes: int, width: int) -> None:
        super().__init__()
        self.padding_row = levels * codes
        # All levels in one table, level l at rows l * codes: one gather-and-sum a family.
        self.table = nn.EmbeddingBag(
            levels * codes + 1, width, mode="sum", padding_idx=self.padding_row
        )
        nn.init.normal_(self.table.weight, std=EMBEDDING_STD)
        with torch.no_grad():
            self.table.weight[self.padding_row].zero_()
        self.first_row_L: Tensor
        self.register_buffer("first_row_L", torch.arange(levels) * codes, persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        rows = torch.where(codes == MISSING_CODE, self.padding_row, codes + self.first_row_L)
        return self.table(rows.flatten(0, -2)).view(*codes.shape[:-1], -1)


class MCCA(nn.Module):
    """Logits (B,) of a batch."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        width, families = config.embedding_width, len(config.families)
        self.track_embedding = track_embedding(config)
        self.code_embeddings = nn.ModuleList(
            CodeEmbedding(config.levels, config.codes, width) for _ in range(families)
        )
        self.code_attentions = nn.ModuleList(
            TargetAttention(width, config.attention_hidden) for _ in range(families)
        )
        self.track_attention = TargetAttention(width, config.attention_hidden)
        self.tower = score_tower((families + 3) * width, config.tower_hidden)

    def forward(self, batch: Batch) -> Tensor:
        mask_BT = batch.history_mask_BT
        joint_target_BD = self.code_embeddings[-1](batch.target_codes_BFL[:, -1])
        interests = [
            attention(embed(batch.history_codes_BTFL[:, :, family]), joint_target_BD, mask_BT)
            for family, (embed, attention) in enumerate(
                zip(self.code_embeddings, self.code_attentions, strict=True)
            )
        ]
        target_BD = self.track_embedding(batch.target_ids_B)
        history_BTD = self.track_embedding(batch.history_ids_BT)
        interests.append(self.track_attention(history_BTD, target_BD, mask_BT))
        return self.tower(torch.cat([*interests, target_BD, joint_target_BD], dim=-1)).squeeze(-1)
