"""MERT-v1 (95M, 330M) as it is published -> the native HuBERT of transformers, without its code.

With the flags of the released models MERT's own class computes what HuBERT computes (Li et al.
2023, arXiv 2306.00107; the flags are checked here). Tensor names are the same but for the two
parts of the weight norm of the positional convolution, which torch now calls parametrizations.
`masked_spec_embed` is left out: it replaces masked frames in training.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from feature_repo.artifacts import write_json
from feature_repo.errors import InputError
from ray_jobs.conversion import Conversion
from ray_jobs.published_config import CONFIG, ConfigRules, read_config

SAMPLE_RATE = 24_000
PREPROCESSOR = "preprocessor_config.json"
RULES = ConfigRules(
    model="MERT-v1",
    kept={
        "hidden_size": int,
        "num_hidden_layers": int,
        "num_attention_heads": int,
        "intermediate_size": int,
        "conv_dim": list,
        "conv_kernel": list,
        "conv_stride": list,
        "num_conv_pos_embeddings": int,
        "num_conv_pos_embedding_groups": int,
        "layer_norm_eps": float,
        "do_stable_layer_norm": bool,
    },
    required={
        "model_type": ("mert_model",),
        "architectures": (["MERTModel"], ...),
        "feature_extractor_cqt": (False, ...),
        "deepnorm": (False, ...),
        "feat_extract_norm": ("group",),
        "feat_extract_activation": ("gelu",),
        "feat_proj_layer_norm": (True, ...),
        "hidden_act": ("gelu",),
        "conv_bias": (False,),
        "conv_pos_batch_norm": (False, ...),
        "sample_rate": (SAMPLE_RATE, ...),
        "adapter_attn_dim": (None, ...),
    },
    left_out=frozenset(
        {
            "activation_dropout", "apply_spec_augment", "attention_dropout", "bos_token_id",
            "classifier_proj_size", "ctc_loss_reduction", "ctc_zero_infinity", "eos_token_id",
            "feat_extract_dropout", "feat_proj_dropout", "final_dropout", "hidden_dropout",
            "hidden_dropout_prob", "layerdrop", "mask_channel_length",
            "mask_channel_min_space", "mask_channel_other", "mask_channel_prob",
            "mask_channel_selection", "mask_feature_length", "mask_feature_min_masks",
            "mask_feature_prob", "mask_time_length", "mask_time_min_masks",
            "mask_time_min_space", "mask_time_other", "mask_time_prob", "mask_time_selection",
            "num_feat_extract_layers", "pad_token_id", "use_weighted_layer_sum", "vocab_size",
            # Bins of the CQT branch, which is off; and a shift inside the softmax of DeepNorm's
            # layers, off as well, that cancels.
            "feature_extractor_cqt_bins", "attention_relax",
        }
    ),
)  # fmt: skip
PLAIN: dict[str, Any] = {
    "model_type": "hubert",
    "architectures": ["HubertModel"],
    "feat_extract_norm": "group",
    "feat_extract_activation": "gelu",
    "feat_proj_layer_norm": True,
    "hidden_act": "gelu",
    "conv_bias": False,
    "conv_pos_batch_norm": False,
    "apply_spec_augment": False,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
    # transformers 5 gives the last state of a pre-norm model before its final norm, 4 after it.
    "tie_last_hidden_states": True,
    "dtype": "float32",
}
RENAMED = {
    "encoder.pos_conv_embed.conv.weight_g": (
        "encoder.pos_conv_embed.conv.parametrizations.weight.original0"
    ),
    "encoder.pos_conv_embed.conv.weight_v": (
        "encoder.pos_conv_embed.conv.parametrizations.weight.original1"
    ),
}
LEFT_OUT = ("masked_spec_embed",)


def conversion(folder: Path) -> Conversion:
    """Refuses another architecture, and a model for sound at another rate than 24 kHz."""
    config = PLAIN | RULES.plain(read_config(folder), folder / CONFIG)
    if len({len(config[key]) for key in ("conv_dim", "conv_kernel", "conv_stride")}) > 1:
        raise InputError(f"{folder / CONFIG}: conv_dim, conv_kernel and conv_stride differ in size")
    _check_sound(folder)
    files = (folder / CONFIG, folder / PREPROCESSOR)
    return Conversion(
        config=config,
        inputs=tuple(path for path in files if path.is_file()),
        shapes=_shapes(config),
        convert=_native,
        write_input=_write_input,
    )


def _check_sound(folder: Path) -> None:
    """The rate must be said by one of the two files, and be the model's."""
    sound = read_config(folder, PREPROCESSOR) if (folder / PREPROCESSOR).is_file() else {}
    rate = sound.get("sampling_rate", read_config(folder).get("sample_rate"))
    if rate != SAMPLE_RATE:
        raise InputError(
            f"{folder}: sampling_rate of {PREPROCESSOR} or sample_rate of {CONFIG} is {rate!r}; "
            f"MERT-v1 needs {SAMPLE_RATE}"
        )
    if sound.get("do_normalize", True) is not True:
        raise InputError(
            f"{folder / PREPROCESSOR}: do_normalize is {sound['do_normalize']!r}; the encoder "
            "brings every window to zero mean and unit variance: expected true"
        )


def _write_input(target: Path) -> dict[str, Any]:
    sound = {"do_normalize": True, "sampling_rate": SAMPLE_RATE}
    write_json(target / PREPROCESSOR, sound)
    return sound


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    from transformers import HubertConfig, HubertModel

    with torch.device("meta"):
        model = HubertModel(HubertConfig(**config))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _native(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """float32, as it was published."""
    return {} if name in LEFT_OUT else {RENAMED.get(name, name): tensor.float()}
