"""Llama's decoder in plain torch, on packed sequences: the backbone of text vectors and MME-SID.

    layer     x <- x + W_o Attention(rope(W_q n), rope(W_k n), W_v n),  n = RMSNorm(x)
              x <- x + W_down (silu(W_gate m) * W_up m),                m = RMSNorm(x)
    RMSNorm   w * x / sqrt(mean(x^2) + eps)
    answer    RMSNorm of the last layer

Parameters have the names of Hugging Face's `LlamaModel`, so that its checkpoints load by key and
peft finds its targets (`gate_proj`, ...). There is no language head. Sequences lie one after the
other (`models.packed_attention`): nothing is padded. Norms and rotations are computed in float32.

Shapes: P tokens of S sequences, D hidden, H heads of queries, G of keys and values, E dims of a
head, F half of them; of a LoRA R its rank.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint

from models.llama_sizes import LlamaSizes
from models.named_weights import take_weights
from models.packed_attention import Packed, causal_attention


class RmsNorm(nn.Module):
    """w * x / sqrt(mean(x^2) + eps) over the last axis, in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(x.dtype)


class Attention(nn.Module):
    """Causal attention with rotary positions; H / G heads of queries share one of keys."""

    def __init__(self, sizes: LlamaSizes) -> None:
        super().__init__()
        self.head_dim = sizes.head_dim
        queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        self.q_proj = nn.Linear(sizes.hidden, queries, bias=False)
        self.k_proj = nn.Linear(sizes.hidden, keys, bias=False)
        self.v_proj = nn.Linear(sizes.hidden, keys, bias=False)
        self.o_proj = nn.Linear(queries, sizes.hidden, bias=False)

    def forward(self, x_PD: Tensor, cos_PF: Tensor, sin_PF: Tensor, packed: Packed) -> Tensor:
        q_PHE, k_PGE, v_PGE = (
            project(x_PD).unflatten(-1, (-1, self.head_dim))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q_PHE, k_PGE = rotated(q_PHE, cos_PF, sin_PF), rotated(k_PGE, cos_PF, sin_PF)
        return self.o_proj(causal_attention(q_PHE, k_PGE, v_PGE, packed).flatten(1))


class Mlp(nn.Module):
    """W_down (silu(W_gate x) * W_up x)"""

    def __init__(self, sizes: LlamaSizes) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(sizes.hidden, sizes.intermediate, bias=False)
        self.up_proj = nn.Linear(sizes.hidden, sizes.intermediate, bias=False)
        self.down_proj = nn.Linear(sizes.intermediate, sizes.hidden, bias=False)

    def forward(self, x_PD: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(x_PD)) * self.up_proj(x_PD))


class Layer(nn.Module):
    """One decoder layer: (P, D) -> (P, D)."""

    def __init__(self, sizes: LlamaSizes) -> None:
        super().__init__()
        self.self_attn = Attention(sizes)
        self.mlp = Mlp(sizes)
        self.input_layernorm = RmsNorm(sizes.hidden, sizes.rms_norm_eps)
        self.post_attention_layernorm = RmsNorm(sizes.hidden, sizes.rms_norm_eps)

    def forward(self, x_PD: Tensor, cos_PF: Tensor, sin_PF: Tensor, packed: Packed) -> Tensor:
        x_PD = x_PD + self.self_attn(self.input_layernorm(x_PD), cos_PF, sin_PF, packed)
        return x_PD + self.mlp(self.post_attention_layernorm(x_PD))


class Llama(nn.Module):
    """The decoder. `recompute` = True keeps only each layer's input for the backward pass and
    computes the rest again: a third more arithmetic for a fraction of the memory."""

    def __init__(self, sizes: LlamaSizes, *, recompute: bool = False) -> None:
        super().__init__()
        self.sizes, self.recompute = sizes, recompute
        self.embed_tokens = nn.Embedding(sizes.vocab, sizes.hidden)
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
        self.norm = RmsNorm(sizes.hidden, sizes.rms_norm_eps)

    def embed(self, ids_P: Tensor) -> Tensor:
        """(P, D): the rows of token ids."""
        return self.embed_tokens(ids_P)

    def forward(self, embeds_PD: Tensor, lengths_S: Tensor, *, layers: int | None = None) -> Tensor:
        """(P, D): states of the last layer under the final norm.

        `lengths_S` integers that sum to P, best on the host (`Packed`). With `layers` = k below
        their number: the plain states after the first k (0: the embeddings), which Hugging Face
        calls `hidden_states[k]`.
        """
        wanted = len(self.layers) if layers is None else layers
        if not 0 <= wanted <= len(self.layers):
            raise ValueError(f"layers: expected 0 to {len(self.layers)}, got {layers}")
        packed = Packed(lengths_S, embeds_PD.device)
        if embeds_PD.ndim != 2 or len(embeds_PD) != packed.tokens:
            shape = tuple(embeds_PD.shape)
            raise ValueError(f"embeds_PD: expected ({packed.tokens}, D) by lengths_S, got {shape}")
        cos_PF, sin_PF = rotary(self.sizes, packed)
        x_PD = embeds_PD
        for layer in self.layers[:wanted]:
            if self.recompute and torch.is_grad_enabled():
                x_PD = checkpoint(layer, x_PD, cos_PF, sin_PF, packed, use_reentrant=False)
            else:
                x_PD = layer(x_PD, cos_PF, sin_PF, packed)
        return self.norm(x_PD) if wanted == len(self.layers) else x_PD


def rotary(sizes: LlamaSizes, packed: Packed) -> tuple[Tensor, Tensor]:
    """(P, F) float32 each: cosine and sine of position x frequency."""
    angles_PF = packed.positions_P[:, None] * sizes.frequencies().to(packed.device)
    return angles_PF.cos(), angles_PF.sin()


def rotated(x_PHE: Tensor, cos_PF: Tensor, sin_PF: Tensor) -> Tensor:
    """Each pair (i, i + E/2) of dims turned by its angle, in float32; the type stays."""
    a_PHF, b_PHF = x_PHE.float().chunk(2, dim=-1)
    cos_P1F, sin_P1F = cos_PF[:, None], sin_PF[:, None]
    turned = (a_PHF * cos_P1F - b_PHF * sin_P1F, b_PHF * cos_P1F + a_PHF * sin_P1F)
    return torch.cat(turned, dim=-1).to(x_PHE.dtype)


def load_llama(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    recompute: bool = False,
) -> Llama:
    """A decoder with a checkpoint's weights, in evaluation mode.

    `config` is its `config.json`, `tensors` its state dict, with or without the prefix `model.`;
    `lm_head.weight` is left out. Raises ValueError with the names that lack or are too many, or
    a tensor's shape.
    """
    named = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    named.pop("lm_head.weight", None)
    with torch.device("meta"):
        model = Llama(LlamaSizes.from_config(config), recompute=recompute)
    take_weights(model, named, dtype=dtype, device=device)
    return model.eval()


_A, _B = ".lora_A.weight", ".lora_B.weight"


def merge_lora(
    tensors: Mapping[str, Tensor], adapter_tensors: Mapping[str, Tensor], scale: float
) -> dict[str, Tensor]:
    """`tensors` with W + scale * B A for every pair that peft saved.

    `adapter_tensors` has `<module>.lora_A.weight` (R, in) and `<module>.lora_B.weight` (out, R),
    with peft's `base_model.model.` before the name or without; `scale` is lora_alpha / R (or
    / sqrt(R) for rsLoRA). Sums are in float32, answers in W's type. Raises ValueError for a
    tensor that is neither, for half a pair and for a module that `tensors` lacks.
    """
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in adapter_tensors.items():
        kind = _A if name.endswith(_A) else _B
        if not name.endswith(kind):
            raise ValueError(f"adapter: {name} is no lora_A.weight and no lora_B.weight")
        module = name.removesuffix(kind).removeprefix("base_model.model.")
        pairs.setdefault(module, {})[kind] = tensor
    merged = dict(tensors)
    for module, pair in pairs.items():
        name = f"{module}.weight"
        if len(pair) != 2:
            raise ValueError(f"adapter: {module} has {', '.join(pair)} alone")
        if name not in merged:
            raise ValueError(f"adapter: {name} is not among the tensors that it changes")
        w = merged[name]
        update = scale * (pair[_B].float() @ pair[_A].float())
        if update.shape != w.shape:
            shapes = f"{tuple(update.shape)}, expected {tuple(w.shape)}"
            raise ValueError(f"adapter: {module} changes shape {shapes}")
        merged[name] = (w.float() + update.to(w.device)).to(w.dtype)
    return merged
