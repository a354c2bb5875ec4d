"""MME-SID: a decoder LLM that reads items as vectors and scores the whole catalogue (section 3).

    h_t   = LLM(v(i_1), ..., v(i_t))                 items in place of tokens, the last state
    s_ti  = sum_h w_h(f_i) <h_t, head_h(i)>  =  <h_t, matrix(i)>
    loss  = sum_t CE(s_t, i_t+1) over all items, at every position

The item side with its fusion is `models/mme_sid_items.py`, the decoder `models/llama.py`, LoRA
inside it or merged into it. The backbone's own weights are frozen.

A retriever needs two things of it: `item_matrix`, which a trained model keeps, and `last_vectors`
of users; their products are the scores.

Shapes: P positions of packed sequences, S sequences, I rows of items with the padding, N drawn
items, D LLM width, F families, L levels, K codes, Z code width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.item_cross_entropy import full_cross_entropy, sampled_cross_entropy
from models.llama import Llama, load_llama, merge_lora
from models.mme_sid_items import MmeSidConfig, MmeSidItems

OWN = "items."
"""How the names of the item side's tensors begin; an adapter's end with lora_A.weight or so."""


class MmeSid(nn.Module):
    """See `MmeSidItems` for the tables. The backbone's parameters without LoRA must be frozen."""

    def __init__(
        self,
        backbone: Llama,
        config: MmeSidConfig,
        *,
        raw: Mapping[str, Tensor],
        codes_IFL: Tensor,
        code_embeddings: Mapping[str, Tensor] | None,
        counts_I: Tensor,
    ) -> None:
        super().__init__()
        self.backbone, self.config = backbone, config
        self.items = MmeSidItems(
            config,
            backbone.sizes.hidden,
            raw=raw,
            codes_IFL=codes_IFL,
            code_embeddings=code_embeddings,
            counts_I=counts_I,
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the backbone's weights, hence of hidden states and of products with items."""
        return self.backbone.norm.weight.dtype

    def user_vectors(self, rows_P: Tensor, lengths_S: Tensor) -> Tensor:
        """h (P, D): after every position of the packed sequences of item rows."""
        inputs_PD = self.items.inputs(rows_P).to(self.dtype)
        hidden_PD: Tensor = self.backbone(inputs_PD, lengths_S)
        return hidden_PD

    def last_vectors(self, rows_P: Tensor, lengths_S: Tensor) -> Tensor:
        """h (S, D) at the last position of each sequence: the users' vectors."""
        ends_S = lengths_S.to(rows_P.device).cumsum(0) - 1
        return self.user_vectors(rows_P, lengths_S)[ends_S]

    def item_matrix(self) -> Tensor:
        """(I, D): the folded heads of every item; of row 0, the padding, nothing is to be read."""
        return self.items.matrix().to(self.dtype)

    def forward(
        self,
        rows_P: Tensor,
        lengths_S: Tensor,
        targets_P: Tensor,
        drawn_N: Tensor | None = None,
        log_q_N: Tensor | None = None,
    ) -> Tensor:
        """The sum of the positions' losses, a float32 scalar, plus the consistency term.

        Over all items, or over drawn ones with the logarithms of their probabilities. The
        consistency term counts once a position: weight * P * distance.
        """
        hidden_PD = self.user_vectors(rows_P, lengths_S)
        if drawn_N is None or log_q_N is None:
            loss = full_cross_entropy(hidden_PD, self.item_matrix(), targets_P)
        else:
            items_XD = self.items.matrix(torch.cat([targets_P, drawn_N])).to(self.dtype)
            target_PD, drawn_ND = items_XD.split([len(targets_P), len(drawn_N)])
            loss = sampled_cross_entropy(
                hidden_PD, target_PD, drawn_ND, targets_P, drawn_N, log_q_N
            )
        if self.config.consistency:
            distance = self.items.consistency(rows_P.unique())
            loss = loss + self.config.consistency * len(targets_P) * distance
        return loss


def own_tensors(model: MmeSid) -> dict[str, Tensor]:
    """The item side's parameters and frozen tables, by the names that `build` takes."""
    return {f"{OWN}{name}": tensor for name, tensor in model.items.state_dict().items()}


def build(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    base_tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype,
    device: torch.device | str,
) -> MmeSid:
    """A trained model in evaluation mode, its LoRA merged into the base's weights.

    `config`: `mme_sid` (the fields of `MmeSidConfig`), `base` (the checkpoint's config.json) and
    `lora_scale` (alpha / r). `tensors`: the model folder's own and adapter tensors. ValueError for
    tensors that do not fit.
    """
    own = {name.removeprefix(OWN): t for name, t in tensors.items() if name.startswith(OWN)}
    adapter = {name: tensor for name, tensor in tensors.items() if not name.startswith(OWN)}
    # An adapter's modules are named without the prefix that checkpoints with a language head have.
    plain = {name.removeprefix("model."): tensor for name, tensor in base_tensors.items()}
    merged = merge_lora(plain, adapter, config["lora_scale"]) if adapter else plain
    backbone = load_llama(config["base"], merged, dtype=dtype, device=device)
    sizes = MmeSidConfig(**config["mme_sid"])
    items = own["frequency_I"].shape[0]
    # Shapes alone: every value is replaced by the saved one.
    model = MmeSid(
        backbone,
        sizes,
        raw={
            name: torch.ones(items, dim)
            for name, dim in zip(sizes.families, sizes.dims, strict=True)
        },
        codes_IFL=own["codes_IFL"],
        code_embeddings={
            name: torch.ones(sizes.levels, sizes.codes, sizes.code_width) for name in sizes.families
        },
        counts_I=torch.ones(items, dtype=torch.int64),
    )
    try:
        model.items.load_state_dict(own)
    except RuntimeError as error:
        raise ValueError(f"the tensors are not those of this MmeSidConfig: {error}") from error
    return model.to(device).eval().requires_grad_(False)
