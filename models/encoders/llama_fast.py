"""Llama's decoder at full speed, for vectors: `models.llama` in bf16 without gradients.

Between the products, norms, rotations, sums and silu are fused by `torch.compile`: one layer's two
halves are compiled once for all layers and all numbers of tokens. Attention is flash attention on
packed sequences.

The sums from layer to layer are kept in float32: rounded to bf16 64 times, the vectors of a 7B
Llama come to a cosine of 0.9996 with those of float32.

Shapes: P tokens of S sequences, D hidden, I intermediate, H heads of queries, G of keys and values,
E dims of a head, F half of them.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple, cast

import torch
import torch._inductor.config
from torch import Tensor
from torch.nn.functional import linear, rms_norm, silu

from models.llama import Layer, Llama, rotary, rotated
from models.packed_attention import Packed, causal_attention


class LayerWeights(NamedTuple):
    """One layer; `norm_2` is the next layer's first norm, or the final one."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    norm_1: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
    norm_2: Tensor


def heads_of(
    n_PD: Tensor, w: LayerWeights, cos_PF: Tensor, sin_PF: Tensor, head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys, rotated, and values: (P, H or G, E) each."""
    q_PHE, k_PGE, v_PGE = (
        linear(n_PD, weight).unflatten(1, (-1, head_dim)) for weight in (w.q, w.k, w.v)
    )
    return rotated(q_PHE, cos_PF, sin_PF), rotated(k_PGE, cos_PF, sin_PF), v_PGE


def rest_of_layer(
    x_PD: Tensor, mixed_PD: Tensor, w: LayerWeights, eps: float
) -> tuple[Tensor, Tensor]:
    """The layer's answer in float32, and the next norm of it."""
    x_PD = x_PD + linear(mixed_PD, w.out)
    m_PD = _normed(x_PD, w.norm_1, eps)
    x_PD = x_PD + linear(silu(linear(m_PD, w.gate)) * linear(m_PD, w.up), w.down)
    return x_PD, _normed(x_PD, w.norm_2, eps)


def _normed(x_PD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """As `models.llama.RmsNorm`: in float32, rounded before the weight."""
    return weight_D * rms_norm(x_PD, (x_PD.shape[-1],), eps=eps).to(weight_D.dtype)


@cache
def _compiled(function: Callable) -> Callable:
    # For two small graphs a pool of compiling processes is not worth its start.
    torch._inductor.config.compile_threads = 1
    return torch.compile(function, fullgraph=True, dynamic=True)


class FastLlama:
    """The decoder of a loaded `Llama`; `compiled` = False leaves out torch.compile."""

    def __init__(self, model: Llama, *, compiled: bool = True) -> None:
        self.model, self.compiled = model, compiled
        layers = cast(list[Layer], list(model.layers))
        norms = [layer.input_layernorm.weight for layer in layers[1:]] + [model.norm.weight]
        self.first_norm = layers[0].input_layernorm
        self.layers = [_weights(layer, norm) for layer, norm in zip(layers, norms, strict=True)]

    @torch.inference_mode()
    def __call__(self, ids_P: Tensor, lengths_S: Tensor, *, layers: int | None = None) -> Tensor:
        """(P, D), as `Llama.forward` of the ids' embeddings; float32 below the final norm."""
        sizes = self.model.sizes
        wanted = sizes.layers if layers is None else layers
        if not 0 <= wanted <= sizes.layers:
            raise ValueError(f"layers: expected 0 to {sizes.layers}, got {layers}")
        packed = Packed(lengths_S, ids_P.device)
        if ids_P.shape != (packed.tokens,):
            raise ValueError(f"ids_P: expected ({packed.tokens},), got {tuple(ids_P.shape)}")
        cos_PF, sin_PF = rotary(sizes, packed)
        before, after = heads_of, rest_of_layer
        if self.compiled:
            before, after = _compiled(heads_of), _compiled(rest_of_layer)
        x_PD = self.model.embed(ids_P)
        n_PD = self.first_norm(x_PD)
        x_PD = x_PD.float()
        for w in self.layers[:wanted]:
            q, k, v = before(n_PD, w, cos_PF, sin_PF, sizes.head_dim)
            mixed_PD = causal_attention(q, k, v, packed).flatten(1)
            x_PD, n_PD = after(x_PD, mixed_PD, w, sizes.rms_norm_eps)
        return n_PD if wanted == sizes.layers else x_PD


def _weights(layer: Layer, norm_2: Tensor) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    return LayerWeights(
        q=attention.q_proj.weight,
        k=attention.k_proj.weight,
        v=attention.v_proj.weight,
        out=attention.o_proj.weight,
        norm_1=layer.post_attention_layernorm.weight,
        gate=mlp.gate_proj.weight,
        up=mlp.up_proj.weight,
        down=mlp.down_proj.weight,
        norm_2=norm_2,
    )
