"""What a HuBERT-shaped audio encoder's shape depends on, read from a converted `config.json`.

`HubertSizes.from_config` refuses what `models.encoders.hubert` does not compute: constant-Q
features, DeepNorm, layer norms in the convolutions, biases there, adapters, unknown fields.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

_FIXED: Mapping[str, tuple[Any, ...]] = {
    "model_type": ("hubert",),
    "hidden_act": ("gelu",),
    "feat_extract_activation": ("gelu",),
    "feat_extract_norm": ("group",),
    "feat_proj_layer_norm": (True,),
    "conv_bias": (False,),
    "conv_pos_batch_norm": (False,),
    "is_encoder_decoder": (False,),
    "chunk_size_feed_forward": (0,),
}
_WITHOUT_EFFECT = {
    *("_name_or_path", "architectures", "dtype", "id2label", "initializer_range", "label2id"),
    *("output_attentions", "output_hidden_states", "problem_type", "return_dict", "torch_dtype"),
    *("transformers_version", "tie_last_hidden_states", "sample_rate", "tokenizer_class"),
    # of training and of heads that are not there
    *("activation_dropout", "attention_dropout", "feat_proj_dropout", "final_dropout"),
    *("hidden_dropout", "hidden_dropout_prob", "layerdrop", "apply_spec_augment"),
    *("mask_feature_length", "mask_feature_min_masks", "mask_feature_prob"),
    *("mask_time_length", "mask_time_min_masks", "mask_time_prob", "gradient_checkpointing"),
    *("ctc_loss_reduction", "ctc_zero_infinity", "classifier_proj_size"),
    *("use_weighted_layer_sum", "vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"),
}
_SIZES: Mapping[str, str] = {
    "hidden_size": "hidden",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "intermediate",
    "conv_dim": "conv_dim",
    "conv_kernel": "conv_kernel",
    "conv_stride": "conv_stride",
    "num_conv_pos_embeddings": "position_taps",
    "num_conv_pos_embedding_groups": "position_groups",
    "do_stable_layer_norm": "pre_norm",
    "layer_norm_eps": "layer_norm_eps",
}


@dataclass(frozen=True, kw_only=True)
class HubertSizes:
    """Sizes of an encoder: convolutions, a convolution over positions, transformer layers."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    conv_dim: tuple[int, ...]
    conv_kernel: tuple[int, ...]
    conv_stride: tuple[int, ...]
    position_taps: int
    position_groups: int
    pre_norm: bool
    """LayerNorm before attention and before the feed-forward net (330M) or after them (95M)."""
    layer_norm_eps: float

    def __post_init__(self) -> None:
        lengths = {len(self.conv_dim), len(self.conv_kernel), len(self.conv_stride)}
        if len(lengths) != 1 or not self.conv_dim:
            raise ValueError(
                "conv_dim, conv_kernel, conv_stride: expected equally many, got "
                f"{len(self.conv_dim)}, {len(self.conv_kernel)}, {len(self.conv_stride)}"
            )
        for name in ("heads", "position_groups"):
            if self.hidden % getattr(self, name):
                value = getattr(self, name)
                raise ValueError(f"{name}: expected a divisor of hidden {self.hidden}, got {value}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "HubertSizes":
        """Raises ValueError, with the field, for what is not known here."""
        known = _FIXED.keys() | _WITHOUT_EFFECT | _SIZES.keys() | {"num_feat_extract_layers"}
        if unknown := {name for name in set(config) - known if config[name] not in (None, False)}:
            raise ValueError(f"config: unknown fields {', '.join(sorted(unknown))}")
        for name, values in _FIXED.items():
            if config.get(name, values[0]) not in values:
                raise ValueError(f"config: {name} is {config[name]!r}, expected {values[0]!r}")
        if missing := [name for name in _SIZES if config.get(name) is None]:
            raise ValueError(f"config: missing fields {', '.join(missing)}")
        sizes = {ours: config[name] for name, ours in _SIZES.items()}
        for name in ("conv_dim", "conv_kernel", "conv_stride"):
            sizes[name] = tuple(sizes[name])
        return cls(**sizes)

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return prod(self.conv_stride)

    def frames(self, samples: int) -> int:
        """Frames of a window: (samples - 400) // 320 + 1 at MERT's kernels and strides."""
        for kernel, stride in zip(self.conv_kernel, self.conv_stride, strict=True):
            samples = (samples - kernel) // stride + 1 if samples >= kernel else 0
        return samples
