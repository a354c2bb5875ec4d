"""Tiny encoders with random weights, in the folders that the real ones are published in.

Names, shapes and files are written out by hand, not by transformers, which is what they test:
MERT-v1 with `weight_g` and `weight_v`, Baichuan2 with `W_pack`, shards with an index, and a
sentencepiece model trained with Baichuan2's options. Each folder carries a module that fails when
it is run, under the name that `auto_map` gives.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ray_jobs.tokenizer_parity import write_fast_tokenizer

CONV_KERNEL, CONV_STRIDE = [10, 3, 3, 3, 3, 2, 2], [5, 2, 2, 2, 2, 2, 2]
HIDDEN, HEADS, CHANNELS, POSITIONS = 32, 4, 24, 128
GROUPS = 2
"""Of the positional convolution, 16 in MERT. On a CPU torch 2.13 computes bfloat16 convolutions
of 128 taps with 2, 4 or 8 channels a group wrongly; MERT has 48 or 64, these have 16."""
TRAP = 'raise RuntimeError("code of a model\'s folder was run")\n'
SENTENCES = (
    "over the hills and far away", "The Rocky Road to Dublin", "la la la  la", "naïve café",
    "слово за слово", "彼の歌は夜の海", "你好世界", "음악이 흐른다", "שלום עולם", "مرحبا بالعالم",
    "year 1999 and 2024", "rain  on the   roof\tand snow", "Ωρφέας και Ευρυδίκη", "don't stop!",
)  # fmt: skip


def mert_config(*, large: bool) -> dict[str, Any]:
    """As on the Hub, but for the sizes."""
    return {
        "_name_or_path": "m-a-p/MERT-v1",
        "activation_dropout": 0.1,
        "apply_spec_augment": True,
        "architectures": ["MERTModel"],
        "attention_dropout": 0.1,
        "attention_relax": 32.0 if large else -1.0,
        "auto_map": {
            "AutoConfig": "configuration_MERT.MERTConfig",
            "AutoModel": "modeling_MERT.MERTModel",
        },
        "bos_token_id": 1,
        "classifier_proj_size": 256,
        "conv_bias": False,
        "conv_dim": [CHANNELS] * 7,
        "conv_kernel": CONV_KERNEL,
        "conv_stride": CONV_STRIDE,
        "ctc_loss_reduction": "sum",
        "ctc_zero_infinity": False,
        "deepnorm": False,
        "do_stable_layer_norm": large,
        "eos_token_id": 2,
        "feat_extract_activation": "gelu",
        "feat_extract_dropout": 0.0,
        "feat_extract_norm": "group",
        "feat_proj_dropout": 0.1,
        "feat_proj_layer_norm": True,
        "feature_extractor_cqt": False,
        "feature_extractor_cqt_bins": 336,
        "final_dropout": 0.1,
        "gradient_checkpointing": False,
        "hidden_act": "gelu",
        "hidden_dropout": 0.1,
        "hidden_dropout_prob": 0.1,
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": 48,
        "layer_norm_eps": 1e-05,
        "layerdrop": 0.1,
        "mask_feature_length": 10,
        "mask_feature_min_masks": 0,
        "mask_feature_prob": 0.0,
        "mask_time_length": 10,
        "mask_time_min_masks": 2,
        "mask_time_prob": 0.05,
        "model_type": "mert_model",
        "num_attention_heads": HEADS,
        "num_conv_pos_embedding_groups": GROUPS,
        "num_conv_pos_embeddings": POSITIONS,
        "num_feat_extract_layers": 7,
        "num_hidden_layers": 3,
        "pad_token_id": 0,
        "sample_rate": 24000,
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
        "torch_dtype": "float32",
        "transformers_version": "4.27.1",
        "use_weighted_layer_sum": False,
        "vocab_size": 32,
    }


def mert_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """The state dict of the authors' class, which has a weight norm of torch before 2.0."""
    draw = _Draw(seed)
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    tensors = {"masked_spec_embed": draw.uniform(hidden)}
    channels = 1
    for layer, kernel in enumerate(CONV_KERNEL):
        name = f"feature_extractor.conv_layers.{layer}"
        tensors[f"{name}.conv.weight"] = draw.matrix(CHANNELS, channels, kernel)
        channels = CHANNELS
        if layer == 0:
            tensors |= draw.norm(f"{name}.layer_norm", CHANNELS)
    tensors |= draw.norm("feature_projection.layer_norm", CHANNELS)
    tensors |= draw.linear("feature_projection.projection", hidden, CHANNELS)
    conv = "encoder.pos_conv_embed.conv"
    tensors[f"{conv}.bias"] = draw.uniform(hidden)
    tensors[f"{conv}.weight_g"] = 1 + draw.uniform(1, 1, POSITIONS)
    tensors[f"{conv}.weight_v"] = draw.matrix(hidden, hidden // GROUPS, POSITIONS)
    tensors |= draw.norm("encoder.layer_norm", hidden)
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layers.{layer}"
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            tensors |= draw.linear(f"{name}.attention.{part}", hidden, hidden)
        tensors |= draw.norm(f"{name}.layer_norm", hidden)
        tensors |= draw.linear(f"{name}.feed_forward.intermediate_dense", wide, hidden)
        tensors |= draw.linear(f"{name}.feed_forward.output_dense", hidden, wide)
        tensors |= draw.norm(f"{name}.final_layer_norm", hidden)
    return tensors


def published_mert(folder: Path, *, large: bool = False, **changed: Any) -> Path:
    """`pytorch_model.bin` and its configs; `changed` keys of config.json, None takes one out."""
    config = mert_config(large=large)
    folder.mkdir(parents=True)
    torch.save(mert_tensors(config), folder / "pytorch_model.bin")
    write(folder / "config.json", with_changes(config, changed))
    write_sound_settings(folder, rate=24_000)
    (folder / "modeling_MERT.py").write_text(TRAP)
    (folder / "configuration_MERT.py").write_text(TRAP)
    return folder


def baichuan_config(**sizes: int) -> dict[str, Any]:
    return {
        "architectures": ["BaichuanForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_baichuan.BaichuanConfig",
            "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
        },
        "tokenizer_class": "BaichuanTokenizer",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": 56,
        "max_position_embeddings": 4096,
        "model_max_length": 4096,
        "model_type": "baichuan",
        "num_attention_heads": HEADS,
        "num_hidden_layers": 3,
        "rms_norm_eps": 1e-06,
        "_from_model_config": True,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.29.2",
        "use_cache": True,
        "vocab_size": 512,
        "z_loss_weight": 0,
    } | sizes


def baichuan_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    draw = _Draw(seed)
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    tensors = {"model.embed_tokens.weight": draw.uniform(config["vocab_size"], hidden) * 10}
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        tensors |= {
            f"{name}.self_attn.W_pack.weight": 2 * draw.matrix(3 * hidden, hidden),
            f"{name}.self_attn.o_proj.weight": draw.matrix(hidden, hidden),
            f"{name}.self_attn.rotary_emb.inv_freq": draw.uniform(hidden // HEADS // 2),
            f"{name}.mlp.gate_proj.weight": draw.matrix(wide, hidden),
            f"{name}.mlp.down_proj.weight": draw.matrix(hidden, wide),
            f"{name}.mlp.up_proj.weight": draw.matrix(wide, hidden),
            f"{name}.input_layernorm.weight": 1 + draw.uniform(hidden),
            f"{name}.post_attention_layernorm.weight": 1 + draw.uniform(hidden),
        }
    tensors["model.norm.weight"] = 1 + draw.uniform(hidden)
    tensors["lm_head.weight"] = draw.matrix(config["vocab_size"], hidden)
    return tensors


def published_baichuan(folder: Path, *, shards: int = 2, **changed: Any) -> Path:
    """Sharded `.bin` with an index, and the tokenizer with the settings that name its code."""
    config = baichuan_config()
    folder.mkdir(parents=True)
    write_bins(folder, baichuan_tensors(config), shards)
    write(folder / "config.json", with_changes(config, changed))
    sentencepiece_model(folder / "tokenizer.model")
    tokenizer = {
        "add_bos_token": False,
        "add_eos_token": False,
        "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]},
        "bos_token": {"__type": "AddedToken", "content": "<s>"},
        "model_max_length": 4096,
        "tokenizer_class": "BaichuanTokenizer",
    }
    write(folder / "tokenizer_config.json", tokenizer)
    for name in ("modeling_baichuan.py", "configuration_baichuan.py", "tokenization_baichuan.py"):
        (folder / name).write_text(TRAP)
    return folder


def write_bins(folder: Path, tensors: dict[str, Tensor], shards: int) -> None:
    """`pytorch_model.bin`, or shards with their index."""
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    names = list(tensors)
    where = {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        torch.save({name: tensors[name] for name in part}, folder / file)
        where |= dict.fromkeys(part, file)
    write(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": where})


def sentencepiece_model(path: Path, **changed: Any) -> Path:
    """Byte-pair encoding without a dummy prefix and normalisation, digits apart, byte fallback."""
    import sentencepiece

    options: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 480,
        "add_dummy_prefix": False,
        "split_digits": True,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "max_sentencepiece_length": 32,
        "control_symbols": ["<reserved_106>", "<reserved_107>"],
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3),
        model_prefix=str(path.with_suffix("")),
        minloglevel=2,
        num_threads=1,
        **(options | changed),
    )
    path.with_suffix(".vocab").unlink()
    return path


def hubert_folder(folder: Path, *, rate: int = 16_000, **sizes: Any) -> Path:
    """A HuBERT as transformers saves it, with the feature extractor's settings."""
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(0)
    tiny = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": 3,
        "num_attention_heads": HEADS,
        "intermediate_size": 48,
        "conv_dim": [CHANNELS] * 7,
        "num_conv_pos_embeddings": POSITIONS,
        "num_conv_pos_embedding_groups": GROUPS,
    }
    HubertModel(HubertConfig(**tiny | sizes)).save_pretrained(folder)
    write_sound_settings(folder, rate=rate)
    return folder


def wav2vec2_folder(folder: Path) -> Path:
    """A large wav2vec2: layer norms and biases in the convolutions, pre-norm layers."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=HIDDEN, num_hidden_layers=3, num_attention_heads=HEADS, intermediate_size=48,
        conv_dim=[CHANNELS] * 7, conv_bias=True, feat_extract_norm="layer",
        do_stable_layer_norm=True, num_conv_pos_embeddings=POSITIONS,
        num_conv_pos_embedding_groups=GROUPS,
    )  # fmt: skip
    Wav2Vec2Model(config).save_pretrained(folder)
    write_sound_settings(folder, rate=16_000)
    return folder


def write_sound_settings(folder: Path, *, rate: int) -> None:
    settings = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "do_normalize": True,
        "feature_size": 1,
        "padding_value": 0.0,
        "sampling_rate": rate,
    }
    write(folder / "preprocessor_config.json", settings)


def bert_folder(folder: Path) -> Path:
    """A BERT of two layers whose pieces include single letters."""
    from transformers import BertConfig, BertModel, BertTokenizer

    torch.manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "reel", "jig", "air", "slow", "by"]
    words += [*".,[]<>/_!?0167", *letters, *(f"##{sign}" for sign in (*letters, *"0167"))]
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def llama_folder(folder: Path, tokenizer_from: Path, **sizes: int) -> Path:
    """A decoder of Llama-3.2's shape (shared keys, llama3 rotary scaling, a token at the start)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    tiny = {
        "vocab_size": 512,
        "hidden_size": HIDDEN,
        "num_hidden_layers": 3,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "intermediate_size": 56,
    }
    config = LlamaConfig(
        **tiny | sizes, max_position_embeddings=4096, tie_word_embeddings=True,
        rms_norm_eps=1e-5, rope_parameters=scaling,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    source = folder.with_name(f"{folder.name}-tokenizer")
    source.mkdir()
    (source / "tokenizer.model").write_bytes(tokenizer_from.read_bytes())
    write(source / "tokenizer_config.json", {"add_bos_token": True})
    write_fast_tokenizer(source, folder, vocab_size=512)
    return folder


def with_changes(config: dict[str, Any], changed: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in (config | changed).items() if value is not None}


def as_safetensors(folder: Path) -> None:
    """Turns the one `.bin` of a folder into safetensors."""
    path = folder / "pytorch_model.bin"
    save_file(torch.load(path, weights_only=True), folder / "model.safetensors")
    path.unlink()


def write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2))


class _Draw:
    """Weights that keep the size of what goes through them."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator) * 0.4 - 0.2

    def matrix(self, *shape: int) -> Tensor:
        scale = (torch.tensor(shape[1:]).prod().item()) ** -0.5
        return torch.randn(shape, generator=self.generator) * scale

    def linear(self, name: str, out: int, width: int) -> dict[str, Tensor]:
        return {f"{name}.weight": self.matrix(out, width), f"{name}.bias": self.uniform(out)}

    def norm(self, name: str, width: int) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + self.uniform(width), f"{name}.bias": self.uniform(width)}
