"""What a Llama-shaped decoder's shape depends on, read from Hugging Face's `config.json`.

`LlamaSizes.from_config` takes the fields that make a difference and refuses values that
`models.llama` does not compute: another activation, biases, quantised weights, unknown scalings
of the rotary positions. Fields that it has never seen are refused as well.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_FIXED: Mapping[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1.0,),
    "pretraining_tp": (1,),
    "is_encoder_decoder": (False,),
    "chunk_size_feed_forward": (0,),
}
_WITHOUT_EFFECT = {
    *("architectures", "attention_dropout", "bos_token_id", "dtype", "eos_token_id", "id2label"),
    *("initializer_range", "label2id", "max_position_embeddings", "output_attentions"),
    *("output_hidden_states", "pad_token_id", "problem_type", "return_dict", "torch_dtype"),
    *("tie_word_embeddings", "transformers_version", "use_cache", "_name_or_path"),
}
_SIZES: Mapping[str, str] = {
    "hidden_size": "hidden",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate",
    "vocab_size": "vocab",
    "rms_norm_eps": "rms_norm_eps",
}
_ROPE = frozenset(("rope_theta", "rope_scaling", "rope_parameters"))
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@dataclass(frozen=True, kw_only=True)
class LlamaSizes:
    """Sizes of a decoder without its language head."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    """Of keys and values; divides `heads`."""
    head_dim: int
    intermediate: int
    """Width between gate_proj and down_proj."""
    vocab: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: Mapping[str, Any] | None = None
    """None, or `rope_type: llama3` with factor, low_freq_factor, high_freq_factor and
    original_max_position_embeddings."""

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "heads", "kv_heads", "head_dim", "intermediate", "vocab"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"kv_heads: expected a divisor of heads {self.heads}, got {self.kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim: expected an even number, got {self.head_dim}")
        if self.rope_scaling is not None:
            _check_scaling(self.rope_scaling)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "LlamaSizes":
        """Sizes of a `config.json`, of transformers 4 (rope_theta, rope_scaling) or 5
        (rope_parameters). Raises ValueError, with the field, for what is not known here."""
        unknown = set(config) - _FIXED.keys() - _WITHOUT_EFFECT - _SIZES.keys() - _ROPE
        unknown = {name for name in unknown if config[name] is not None}
        if unknown:
            raise ValueError(f"config: unknown fields {', '.join(sorted(unknown))}")
        for name, known in _FIXED.items():
            if config.get(name, known[0]) not in known:
                raise ValueError(f"config: {name} is {config[name]!r}, expected {known[0]!r}")
        sizes = {
            ours: config[name] for name, ours in _SIZES.items() if config.get(name) is not None
        }
        sizes.setdefault("kv_heads", sizes.get("heads"))
        if missing := [name for name, ours in _SIZES.items() if ours not in sizes]:
            if missing != ["head_dim"]:
                raise ValueError(f"config: missing fields {', '.join(missing)}")
            sizes["head_dim"] = sizes["hidden"] // sizes["heads"]
        rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
        theta = rope.pop("rope_theta", config.get("rope_theta") or 10_000.0)
        kind = rope.setdefault("rope_type", rope.pop("type", "default"))
        return cls(**sizes, rope_theta=theta, rope_scaling=None if kind == "default" else rope)

    def frequencies(self) -> Tensor:
        """(head_dim / 2,) float32: the angle, in radians a token, of each pair of dims.

        theta^(-2i / head_dim). Under `llama3` (Llama 3.1) waves longer than
        original / low_freq_factor tokens turn `factor` times slower, those shorter than
        original / high_freq_factor as before, and those between are blended.
        """
        even = torch.arange(0, self.head_dim, 2, dtype=torch.int64).float()
        plain = 1.0 / self.rope_theta ** (even / self.head_dim)
        if self.rope_scaling is None:
            return plain
        factor, low, high, original = (float(self.rope_scaling[name]) for name in _LLAMA3)
        turns = original * plain / (2 * math.pi)  # of each wave within the original context
        share = ((turns - low) / (high - low)).clamp(0.0, 1.0)
        return share * plain + (1 - share) * plain / factor


def _check_scaling(scaling: Mapping[str, Any]) -> None:
    kind = scaling.get("rope_type")
    if kind != "llama3":
        raise ValueError(f"rope_scaling: rope_type is {kind!r}, expected 'llama3' or none at all")
    if set(scaling) != {"rope_type", *_LLAMA3}:
        expected = ", ".join(("rope_type", *_LLAMA3))
        raise ValueError(f"rope_scaling: fields {sorted(scaling)}, expected {expected}")
    if not scaling["high_freq_factor"] > scaling["low_freq_factor"]:
        raise ValueError("rope_scaling: expected high_freq_factor above low_freq_factor")
