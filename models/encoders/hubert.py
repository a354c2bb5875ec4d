"""MERT and other HuBERT-shaped audio encoders in plain torch: the reference of the fast path.

    front end   7 convolutions, GELU after each, GroupNorm of each channel over time in the first
    projection  W LN(x) + b
    positions   x + GELU(a grouped convolution over 128 frames)
    layer       post-norm (95M)  m = LN(x + Attention(x));  x = LN(m + W_2 GELU(W_1 m))
                pre-norm (330M)  m = x + Attention(LN(x));  x = m + W_2 GELU(W_1 LN(m))

State i is the input of layer i + 1, as in Hugging Face's `hidden_states`; the last one is the
encoder's output, under the final LayerNorm of a pre-norm encoder (`tie_last_hidden_states`).
Only the mean over time of the wanted states is kept. Parameters have the names of `HubertModel`,
the weight norm of the position convolution folded.

GroupNorm and means run over time, so windows must have one length and no padding.

Shapes: B windows, T samples, C channels, F frames, D hidden, H heads, K wanted states.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, gelu, group_norm, scaled_dot_product_attention

from models.encoders.hubert_sizes import HubertSizes
from models.named_weights import take_weights

NORMALISE_EPS = 1e-7
"""As Hugging Face's feature extractor adds it to a window's variance."""


def normalised(samples_BT: Tensor) -> Tensor:
    """(B, T) float32: every window with mean 0 and variance 1.

    int16 samples count as fractions of 32768, so that quiet windows are treated alike.
    """
    if samples_BT.dtype == torch.int16:
        samples_BT = samples_BT.float() / 32768
    variance_B1, mean_B1 = torch.var_mean(samples_BT.float(), dim=1, correction=0, keepdim=True)
    return (samples_BT.float() - mean_B1) * torch.rsqrt(variance_B1 + NORMALISE_EPS)


class Convolution(nn.Module):
    """A convolution's weights; the first has a GroupNorm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, bias=False)
        self.layer_norm = nn.GroupNorm(outputs, outputs) if norm else None

    def forward(self, x_BCF: Tensor) -> Tensor:
        x_BCF = self.conv(x_BCF)
        if (norm := self.layer_norm) is not None:
            x_BCF = group_norm(x_BCF, norm.num_groups, norm.weight, norm.bias, norm.eps)
        return gelu(x_BCF)


class FrontEnd(nn.Module):
    """(B, T) -> (B, C, F)"""

    def __init__(self, sizes: HubertSizes) -> None:
        super().__init__()
        inputs = (1, *sizes.conv_dim)
        shapes = zip(inputs, sizes.conv_dim, sizes.conv_kernel, sizes.conv_stride, strict=False)
        self.conv_layers = nn.ModuleList(
            Convolution(*shape, norm=i == 0) for i, shape in enumerate(shapes)
        )

    def forward(self, samples_BT: Tensor) -> Tensor:
        x_BCF = samples_BT.unsqueeze(1)
        for layer in self.conv_layers:
            x_BCF = layer(x_BCF)
        return x_BCF


class Projection(nn.Module):
    """W LN(x) + b: (B, F, C) -> (B, F, D)"""

    def __init__(self, sizes: HubertSizes) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(sizes.conv_dim[-1], eps=sizes.layer_norm_eps)
        self.projection = nn.Linear(sizes.conv_dim[-1], sizes.hidden)

    def forward(self, x_BFC: Tensor) -> Tensor:
        return self.projection(self.layer_norm(x_BFC))


class Positions(nn.Module):
    """GELU of a grouped convolution over `position_taps` frames: (B, F, D) -> (B, F, D)"""

    def __init__(self, sizes: HubertSizes) -> None:
        super().__init__()
        taps = sizes.position_taps
        self.conv = nn.Conv1d(
            sizes.hidden, sizes.hidden, taps, padding=taps // 2, groups=sizes.position_groups
        )

    def forward(self, x_BFD: Tensor) -> Tensor:
        conv, frames = self.conv, x_BFD.shape[1]
        x_BDF = x_BFD.transpose(1, 2)
        x_BDF = conv1d(x_BDF, conv.weight, conv.bias, padding=conv.padding, groups=conv.groups)
        return gelu(x_BDF[..., :frames]).transpose(1, 2)  # an even kernel makes one frame more


class Attention(nn.Module):
    """Every frame sees all frames of its window."""

    def __init__(self, sizes: HubertSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(sizes.hidden, sizes.hidden) for _ in range(4)
        )

    def forward(self, x_BFD: Tensor) -> Tensor:
        q, k, v = (
            project(x_BFD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed_BHFd = scaled_dot_product_attention(q, k, v)
        return self.out_proj(mixed_BHFd.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """W_2 GELU(W_1 x)"""

    def __init__(self, sizes: HubertSizes) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(sizes.hidden, sizes.intermediate)
        self.output_dense = nn.Linear(sizes.intermediate, sizes.hidden)

    def forward(self, x_BFD: Tensor) -> Tensor:
        return self.output_dense(gelu(self.intermediate_dense(x_BFD)))


class Layer(nn.Module):
    """One transformer layer, pre-norm or post-norm."""

    def __init__(self, sizes: HubertSizes) -> None:
        super().__init__()
        self.pre_norm = sizes.pre_norm
        self.attention = Attention(sizes)
        self.feed_forward = FeedForward(sizes)
        self.layer_norm = nn.LayerNorm(sizes.hidden, eps=sizes.layer_norm_eps)
        self.final_layer_norm = nn.LayerNorm(sizes.hidden, eps=sizes.layer_norm_eps)

    def forward(self, x_BFD: Tensor) -> Tensor:
        if self.pre_norm:
            x_BFD = x_BFD + self.attention(self.layer_norm(x_BFD))
            return x_BFD + self.feed_forward(self.final_layer_norm(x_BFD))
        x_BFD = self.layer_norm(x_BFD + self.attention(x_BFD))
        return self.final_layer_norm(x_BFD + self.feed_forward(x_BFD))


class Transformer(nn.Module):
    """The weights of positions and layers."""

    def __init__(self, sizes: HubertSizes) -> None:
        super().__init__()
        self.pos_conv_embed = Positions(sizes)
        self.layer_norm = nn.LayerNorm(sizes.hidden, eps=sizes.layer_norm_eps)
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))


class Hubert(nn.Module):
    """The encoder. Computes in its parameters' type, means over time in float32."""

    def __init__(self, sizes: HubertSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.feature_extractor = FrontEnd(sizes)
        self.feature_projection = Projection(sizes)
        self.encoder = Transformer(sizes)

    def forward(self, samples_BT: Tensor, states: Sequence[int]) -> Tensor:
        """(B, K, D) float32: the mean over time of each state in `states`, 0 to `layers`.

        `samples_BT` int16 or float, not normalised yet, all windows of one length without
        padding. Layers above the highest wanted state are not computed.
        """
        check_states(states, self.sizes.layers)
        if not self.sizes.frames(samples_BT.shape[1]):
            raise ValueError(f"samples_BT: {samples_BT.shape[1]} samples make no frame")
        dtype = self.feature_projection.projection.weight.dtype
        x_BCF = self.feature_extractor(normalised(samples_BT).to(dtype))
        x_BFD = self.feature_projection(x_BCF.transpose(1, 2))
        encoder, pre_norm = self.encoder, self.sizes.pre_norm
        x_BFD = x_BFD + encoder.pos_conv_embed(x_BFD)
        if not pre_norm:
            x_BFD = encoder.layer_norm(x_BFD)
        means = {0: x_BFD.float().mean(1)}
        for i, layer in enumerate(encoder.layers[: max(states)], 1):
            x_BFD = layer(x_BFD)
            last = pre_norm and i == self.sizes.layers
            if i in states:
                means[i] = (encoder.layer_norm(x_BFD) if last else x_BFD).float().mean(1)
        return torch.stack([means[i] for i in states], dim=1)


def check_states(states: Sequence[int], layers: int) -> None:
    """Raises ValueError unless `states` has numbers from 0 to `layers`."""
    if not states or not all(0 <= state <= layers for state in states):
        raise ValueError(f"states: expected numbers from 0 to {layers}, got {list(states)}")


_POSITIONS = "encoder.pos_conv_embed.conv."
_NORMS = ("weight_g", "parametrizations.weight.original0")
_DIRECTIONS = ("weight_v", "parametrizations.weight.original1")
_OF_TRAINING = "masked_spec_embed"


def load_hubert(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Hubert:
    """An encoder with a checkpoint's weights, in evaluation mode and without gradients.

    `config` is its `config.json`, `tensors` the state dict of `HubertModel`, the position
    convolution's weight norm under either of its names or folded. Raises ValueError with the
    names that lack or are too many, or a tensor's shape.
    """
    named = folded(tensors)
    named.pop(_OF_TRAINING, None)
    with torch.device("meta"):
        model = Hubert(HubertSizes.from_config(config))
    take_weights(model, named, dtype=dtype, device=device)
    return model.eval().requires_grad_(False)


def folded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with W = g v / |v| in place of the two factors, the norm of each tap (dim 2)."""
    named = dict(tensors)
    for norm, direction in zip(_NORMS, _DIRECTIONS, strict=True):
        if _POSITIONS + norm in named and _POSITIONS + direction in named:
            g, v = named.pop(_POSITIONS + norm).float(), named.pop(_POSITIONS + direction).float()
            named[f"{_POSITIONS}weight"] = g * v / v.norm(dim=(0, 1), keepdim=True)
    return named
