"""Tiny random HuBERT-shaped models of transformers, with and without pre-norm, and windows."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import HubertConfig, HubertModel

from models.encoders.hubert import Hubert, load_hubert

SAMPLES = 120_000
"""5 s at 24 kHz, as MERT reads them."""


def peer(*, pre_norm: bool, hidden: int = 48, channels: int = 32) -> HubertModel:
    torch.manual_seed(7)
    config = HubertConfig(
        hidden_size=hidden,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=80,
        conv_dim=[channels] * 7,
        num_conv_pos_embeddings=128,
        num_conv_pos_embedding_groups=4,
        do_stable_layer_norm=pre_norm,
        apply_spec_augment=False,
        attn_implementation="eager",
    )
    config.tie_last_hidden_states = True
    model = HubertModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "layers" in name and "conv_layers" not in name:
                parameter.normal_(std=0.15)
    return model


def ours(model: HubertModel) -> Hubert:
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return load_hubert(model.config.to_dict(), tensors, dtype=torch.float32, device="cpu")


def windows(count: int, samples: int = SAMPLES) -> torch.Tensor:
    """(count, samples) int16: tones under noise, each window at its own loudness."""
    generator = torch.Generator().manual_seed(count)
    t = torch.arange(samples) / 24_000
    pitch, loudness = torch.rand(2, count, 1, generator=generator)
    tones = (2 * torch.pi * (100 + 3000 * pitch) * t).sin()
    noise = torch.randn(count, samples, generator=generator)
    return ((tones + 0.3 * noise) * (500 + 8000 * loudness)).clamp(-32768, 32767).to(torch.int16)
