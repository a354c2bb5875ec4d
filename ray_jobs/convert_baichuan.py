"""Baichuan (7B, versions 1 and 2) as it is published -> the native Llama of transformers.

The decoder is Llama's (Yang et al. 2023, arXiv 2309.10305, section 2): the fused `W_pack` holds
the rows of the query, key and value projections, one after the other. The head is left out: an
encoder reads hidden states. The 13B model is refused: it has ALiBi instead of rotary positions.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from feature_repo.errors import InputError
from ray_jobs.conversion import Conversion
from ray_jobs.published_config import CONFIG, ConfigRules, read_config
from ray_jobs.tokenizer_parity import TOKENIZER_MODEL, TOKENIZER_SETTINGS, write_fast_tokenizer

RULES = ConfigRules(
    model="Baichuan-7B",
    kept={
        "hidden_size": int,
        "num_hidden_layers": int,
        "num_attention_heads": int,
        "intermediate_size": int,
        "max_position_embeddings": int,
        "vocab_size": int,
        "rms_norm_eps": float,
    },
    required={
        "model_type": ("baichuan",),
        "architectures": (["BaichuanForCausalLM"], ["BaiChuanForCausalLM"], ...),
        "hidden_act": ("silu",),
        "bos_token_id": (1, ...),
        "eos_token_id": (2, ...),
        "pad_token_id": (0, ...),
        "rope_theta": (10_000.0, ...),
        "rope_scaling": (None, ...),
        "torch_dtype": ("bfloat16", "float16", "float32", ...),
    },
    left_out=frozenset({"model_max_length", "tie_word_embeddings", "z_loss_weight"}),
)
PLAIN: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaModel"],
    "hidden_act": "silu",
    "rope_theta": 10_000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEAD = "lm_head.weight"
ROTARY = ".rotary_emb.inv_freq"
"""A buffer that early checkpoints carry; it follows from the config."""
PACKED = ".self_attn.W_pack.weight"


def conversion(folder: Path) -> Conversion:
    raw = read_config(folder)
    if raw.get("model_type") == "baichuan" and "max_position_embeddings" not in raw:
        raise InputError(
            f"{folder / CONFIG}: max_position_embeddings is missing, as in Baichuan 13B, which has "
            f"ALiBi and no rotary positions (hidden_size={raw.get('hidden_size')!r}); only the 7B "
            "models are of Llama's shape"
        )
    config = PLAIN | RULES.plain(raw, folder / CONFIG)
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    if hidden % heads:
        raise InputError(f"{folder / CONFIG}: num_attention_heads={heads} does not divide {hidden}")
    config |= {"num_key_value_heads": heads, "head_dim": hidden // heads}
    config["dtype"] = raw.get("torch_dtype", "float32")
    files = (folder / CONFIG, folder / TOKENIZER_MODEL, folder / TOKENIZER_SETTINGS)
    return Conversion(
        config=config,
        inputs=tuple(path for path in files if path.is_file()),
        shapes=_shapes(config),
        convert=_native,
        write_input=lambda target: write_fast_tokenizer(
            folder, target, vocab_size=config["vocab_size"]
        ),
    )


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    from transformers import LlamaConfig, LlamaModel

    with torch.device("meta"):
        model = LlamaModel(LlamaConfig(**config))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _native(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if name == HEAD or name.endswith(ROTARY):
        return {}
    name = name.removeprefix("model.")
    if not name.endswith(PACKED):
        return {name: tensor}
    if tensor.shape[0] % 3:
        raise InputError(f"{name} has {tensor.shape[0]} rows, expected those of three projections")
    layer = name.removesuffix(PACKED)
    parts = tensor.chunk(3)  # W_pack = [W_q; W_k; W_v]
    return {f"{layer}.self_attn.{part}_proj.weight": parts[n] for n, part in enumerate("qkv")}
