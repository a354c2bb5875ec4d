"""The parts that rankers share: target attention, the tower that scores.

Shapes: B rows, T history positions, D embedding width, H hidden width of the attention net.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from models.attention_pooling import AttentionPooling


class TargetAttention(nn.Module):
    """h_B = sum_j a(key_j (+) query) key_j, with a = a feed-forward net giving one weight.

    No softmax: the weights' sum keeps the strength of the interest (DIN, section 4.3; MCCA takes
    the same form, paper section 2). Padding has weight 0; an empty history gives zeros.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        # W [key ; query] = W_key key + W_query query: the query's half once a row, not once a
        # position, which saves half of the first layer.
        self.from_key = nn.Linear(width, hidden)
        self.from_query = nn.Linear(width, hidden, bias=False)
        self.activation = nn.PReLU(hidden)
        self.to_weight = nn.Linear(hidden, 1)

    def weights(self, keys_BTD: Tensor, query_BD: Tensor, mask_BT: Tensor) -> Tensor:
        """One weight a history position, (B, T)."""
        hidden_BTH = self.from_key(keys_BTD) + self.from_query(query_BD).unsqueeze(1)
        flat = self.activation(hidden_BTH.flatten(0, 1)).view_as(hidden_BTH)
        return self.to_weight(flat).squeeze(-1) * mask_BT

    def forward(
        self,
        keys_BTD: Tensor,
        query_BD: Tensor,
        mask_BT: Tensor,
        projected_BTH: Tensor | None = None,
    ) -> Tensor:
        """`projected_BTH`: W_key keys, where they are known already (on a CPU)."""
        if keys_BTD.device.type == "cpu":
            if projected_BTH is None:
                projected_BTH = linear(keys_BTD, self.from_key.weight)
            # Of the keys' type already, unless autocast made them bfloat16.
            projected_BTH = projected_BTH.to(keys_BTD.dtype)
            query_BH = (self.from_query(query_BD) + self.from_key.bias).to(keys_BTD.dtype)
            with torch.autocast("cpu", enabled=False):
                return AttentionPooling.apply(
                    keys_BTD,
                    projected_BTH,
                    query_BH,
                    mask_BT,
                    self.activation.weight,
                    self.to_weight.weight.squeeze(0),
                    self.to_weight.bias.squeeze(0),
                )
        weights_BT = self.weights(keys_BTD, query_BD, mask_BT)
        return torch.bmm(weights_BT.unsqueeze(1), keys_BTD).squeeze(1)


def score_tower(width: int, hidden: tuple[int, ...]) -> nn.Sequential:
    """MLP width -> hidden... -> 1 with PReLU, DIN's 200-80-1 by default."""
    layers: list[nn.Module] = []
    for outputs in hidden:
        layers += [nn.Linear(width, outputs), nn.PReLU(outputs)]
        width = outputs
    return nn.Sequential(*layers, nn.Linear(width, 1))
