"""MCCA: multi-codebook cross-attention (paper section 2), and its two ablations.

    item       e^z = sum_l E^z_l[id^z_l]  for the families z: text, audio, ..., joint
    attention  h^z = sum_j a^z(e^z_j (+) e^o_t) e^z_j   every family queried by the JOINT target
               h^r = sum_j a^r(e^r_j (+) e^r_t) e^r_j   track ids queried by the target's own id
    predictor  MLP on [h^text, h^audio, ..., h^o, h^r, e^r_t, e^o_t]

    mcca_wo_msc  only the joint sequence:      MLP on [h^o, h^r, e^r_t, e^o_t]
    mcca_wo_mjc  no joint family: each family's own target queries its own sequence, h^z =
                 sum_j a^z(e^z_j (+) e^z_t) e^z_j; MLP on [h^text, ..., h^r, e^r_t, e^text_t, ...]

The code tables are trained end to end. Open in the paper, chosen here: one attention net a
family, the sizes of `RankerConfig`, PReLU, and which target embeddings the predictor of
mcca_wo_mjc sees.

Shapes: B rows, T history positions, F families (the joint one last), L levels, D width.
"""

from typing import cast

import torch
from torch import Tensor, nn

from models.attention import TargetAttention, score_tower
from models.batch import Batch
from models.code_embedding import CodeEmbedding
from models.numbers import Numbers
from models.ranker_config import RankerConfig
from models.track_embedding import TrackEmbedding


def family_queries(config: RankerConfig) -> dict[int, int]:
    """The families whose sequences are read, and the family whose target embedding queries each."""
    joint = len(config.families) - 1
    if config.model == "mcca_wo_msc":
        return {joint: joint}
    if config.model == "mcca_wo_mjc":
        return {family: family for family in range(joint)}
    return dict.fromkeys(range(joint + 1), joint)


class MCCA(nn.Module):
    """Logits (B,) of a batch."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        width = config.embedding_width
        self.queries = family_queries(config)
        self.families = tuple(self.queries)
        self.targets = sorted(set(self.queries.values()))
        self.track_embedding = TrackEmbedding(config.id_rows, width)
        self.code_embeddings = nn.ModuleList(
            CodeEmbedding(config.levels, config.codes, width) for _ in self.queries
        )
        self.code_attentions = nn.ModuleList(
            TargetAttention(width, config.attention_hidden) for _ in self.queries
        )
        self.track_attention = TargetAttention(width, config.attention_hidden)
        self.numbers = Numbers(config.numbers)
        parts = len(self.queries) + len(self.targets) + 2
        self.tower = score_tower(parts * width + self.numbers.width, config.tower_hidden)

    def forward(self, batch: Batch) -> Tensor:
        mask_BT = batch.history_mask_BT
        code_embeddings = cast(list[CodeEmbedding], list(self.code_embeddings))
        embeds = dict(zip(self.families, code_embeddings, strict=True))
        targets = {
            family: embeds[family](batch.target_codes_BFL[:, family]) for family in self.targets
        }
        interests = []
        for (family, query), module in zip(self.queries.items(), self.code_attentions, strict=True):
            attention = cast(TargetAttention, module)
            keys_BTD, projected_BTH = embeds[family].projected(
                batch.history_codes_BTFL[:, :, family], attention.from_key.weight
            )
            interests.append(attention(keys_BTD, targets[query], mask_BT, projected_BTH))
        target_BD = self.track_embedding(batch.target_ids_B)
        history_BTD = self.track_embedding(batch.history_ids_BT)
        interests.append(self.track_attention(history_BTD, target_BD, mask_BT))
        inputs = [*interests, target_BD, *targets.values(), *self.numbers(batch)]
        return self.tower(torch.cat(inputs, dim=-1)).squeeze(-1)
