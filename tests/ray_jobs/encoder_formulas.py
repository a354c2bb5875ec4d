"""What the published encoders compute, written down from their papers and code in float64.

An oracle for the native models: nothing of transformers and nothing of ours. Tensors come under
the published names (`weight_g`, `W_pack`). All states are given, the input of the first layer
first, the encoder's output last.

Shapes: B windows, T samples, C channels, F frames or tokens, D hidden, H heads, E dims of a head.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv1d

NORM_EPS = 1e-5


def mert_states(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], windows_BT: Tensor
) -> list[Tensor]:
    """(B, F, D) of every state of MERT-v1: HuBERT with a GroupNorm after the first convolution."""
    t = {name: tensor.double() for name, tensor in tensors.items()}
    samples_BT = windows_BT.double()
    mean = samples_BT.mean(1, keepdim=True)
    variance = ((samples_BT - mean) ** 2).mean(1, keepdim=True)
    x = ((samples_BT - mean) / torch.sqrt(variance + 1e-7))[:, None]
    for layer, stride in enumerate(config["conv_stride"]):
        name = f"feature_extractor.conv_layers.{layer}"
        x = conv1d(x, t[f"{name}.conv.weight"], stride=stride)
        if layer == 0:  # GroupNorm with a group for each channel: over time
            centred = x - x.mean(2, keepdim=True)
            x = centred / torch.sqrt((centred**2).mean(2, keepdim=True) + NORM_EPS)
            weight, bias = t[f"{name}.layer_norm.weight"], t[f"{name}.layer_norm.bias"]
            x = x * weight[:, None] + bias[:, None]
        x = gelu(x)
    x = layer_norm(x.transpose(1, 2), t, "feature_projection.layer_norm")
    x = linear(x, t, "feature_projection.projection")
    x = x + positions(x, t, config)
    pre_norm = config["do_stable_layer_norm"]
    if not pre_norm:
        x = layer_norm(x, t, "encoder.layer_norm")
    states = [x]
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layers.{layer}"
        if pre_norm:
            x = x + attention(layer_norm(x, t, f"{name}.layer_norm"), t, name, config)
            x = x + feed_forward(layer_norm(x, t, f"{name}.final_layer_norm"), t, name)
        else:
            x = layer_norm(x + attention(x, t, name, config), t, f"{name}.layer_norm")
            x = layer_norm(x + feed_forward(x, t, name), t, f"{name}.final_layer_norm")
        states.append(x)
    if pre_norm:
        states[-1] = layer_norm(x, t, "encoder.layer_norm")
    return states


def positions(x: Tensor, t: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    """GELU of a grouped convolution over frames, w = g v / |v| for each of its taps."""
    name = "encoder.pos_conv_embed.conv"
    v = t[f"{name}.weight_v"]
    weight = t[f"{name}.weight_g"] * v / torch.sqrt((v**2).sum((0, 1), keepdim=True))
    taps, groups = config["num_conv_pos_embeddings"], config["num_conv_pos_embedding_groups"]
    y = conv1d(x.transpose(1, 2), weight, t[f"{name}.bias"], padding=taps // 2, groups=groups)
    return gelu(y[..., : x.shape[1]]).transpose(1, 2)


def attention(x: Tensor, t: Mapping[str, Tensor], name: str, config: Mapping[str, Any]) -> Tensor:
    heads = config["num_attention_heads"]
    size = x.shape[-1] // heads
    out = []
    q, k, v = (linear(x, t, f"{name}.attention.{part}_proj") for part in "qkv")
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / size**0.5
        out.append(torch.softmax(scores, -1) @ v[..., part])
    return linear(torch.cat(out, -1), t, f"{name}.attention.out_proj")


def feed_forward(x: Tensor, t: Mapping[str, Tensor], name: str) -> Tensor:
    x = gelu(linear(x, t, f"{name}.feed_forward.intermediate_dense"))
    return linear(x, t, f"{name}.feed_forward.output_dense")


def linear(x: Tensor, t: Mapping[str, Tensor], name: str) -> Tensor:
    return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]


def layer_norm(x: Tensor, t: Mapping[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + NORM_EPS)
    return scaled * t[f"{name}.weight"] + t[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def baichuan_states(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], ids: list[int]
) -> list[Tensor]:
    """(F, D) of every state of Baichuan2-7B for one text; the last one under the final norm."""
    t = {name.removeprefix("model."): tensor.double() for name, tensor in tensors.items()}
    eps, heads = config["rms_norm_eps"], config["num_attention_heads"]
    x = t["embed_tokens.weight"][torch.tensor(ids)]
    frames, hidden = x.shape
    size = hidden // heads
    states = [x]
    # Angles in float32, as the original computes them.
    inverse = 1.0 / 10_000 ** (torch.arange(0, size, 2).float() / size)
    angles = torch.outer(torch.arange(frames).float(), inverse)
    angles = torch.cat([angles, angles], -1)
    cosine, sine = angles.cos().double(), angles.sin().double()
    hidden_from = torch.ones(frames, frames, dtype=torch.bool).triu(1)
    for layer in range(config["num_hidden_layers"]):
        name = f"layers.{layer}"
        n = rms_norm(x, t[f"{name}.input_layernorm.weight"], eps)
        packed = n @ t[f"{name}.self_attn.W_pack.weight"].T
        q, k, v = packed.reshape(frames, 3, heads, size).permute(1, 2, 0, 3)
        q, k = (y * cosine + rotated_half(y) * sine for y in (q, k))
        scores = (q @ k.transpose(1, 2) / size**0.5).masked_fill(hidden_from, -torch.inf)
        mixed = (torch.softmax(scores, -1) @ v).transpose(0, 1).reshape(frames, hidden)
        x = x + mixed @ t[f"{name}.self_attn.o_proj.weight"].T
        n = rms_norm(x, t[f"{name}.post_attention_layernorm.weight"], eps)
        gate, up = (n @ t[f"{name}.mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        x = x + (gate * torch.sigmoid(gate) * up) @ t[f"{name}.mlp.down_proj.weight"].T
        states.append(x)
    states[-1] = rms_norm(x, t["norm.weight"], eps)
    return states


def rotated_half(y: Tensor) -> Tensor:
    first, second = y.chunk(2, -1)
    return torch.cat([-second, first], -1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / torch.sqrt((x**2).mean(-1, keepdim=True) + eps)
