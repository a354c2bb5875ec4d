"""The base of MME-SID on a CUDA device, in 4-bit NF4 and in bfloat16."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from feature_repo.base_checkpoint import read_base
from models.llama import Llama
from models.llama_sizes import LlamaSizes
from ray_jobs.mme_sid_base import load_backbone
from ray_jobs.mme_sid_lora import LoraSettings, adapter_tensors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA = torch.device("cuda")
LORA = LoraSettings(rank=4, alpha=8, dropout=0.0)


def write_base(folder: Path) -> Path:
    """A random Llama as Hugging Face's files have it, without transformers."""
    torch.manual_seed(0)
    sizes = LlamaSizes(
        hidden=128, layers=2, heads=4, kv_heads=2, head_dim=32, intermediate=256, vocab=11
    )
    folder.mkdir()
    tensors = {f"model.{name}": tensor for name, tensor in Llama(sizes).state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    config = {
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "intermediate_size": sizes.intermediate,
        "vocab_size": sizes.vocab,
        "rms_norm_eps": sizes.rms_norm_eps,
        "rope_theta": sizes.rope_theta,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_base_in_four_bits_is_near_the_whole_one_and_trains_its_adapters(tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    base = read_base(write_base(tmp_path / "base"))
    how = {"device": CUDA, "bf16": True, "seed": 0}
    whole = load_backbone(base, LORA, recompute=False, **how)
    four = load_backbone(base, LORA, recompute=True, four_bit=True, **how)
    stored = {p.dtype for p in four.parameters() if not p.requires_grad and p.ndim == 2}
    assert torch.uint8 in stored
    x_PD, lengths_S = torch.randn(70, 128, device=CUDA).bfloat16(), torch.tensor([50, 20])
    expected_PD, found_PD = whole(x_PD, lengths_S).float(), four(x_PD, lengths_S).float()
    distance = float(((found_PD - expected_PD).norm() / expected_PD.norm()).detach())
    assert 0.001 < distance < 0.3  # NF4's own rounding
    before = {name: tensor.clone() for name, tensor in adapter_tensors(four).items()}
    optimizer = torch.optim.AdamW([p for p in four.parameters() if p.requires_grad], lr=1e-2)
    found_PD.square().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in four.parameters())
    optimizer.step()
    moved = [
        name for name, tensor in adapter_tensors(four).items() if not tensor.equal(before[name])
    ]
    assert len(moved) >= len(before) // 2  # after one step A's gradient is still 0: B began there


def test_recomputing_gives_the_same_gradients_in_bfloat16(tmp_path):
    base = read_base(write_base(tmp_path / "base"))
    x_PD, lengths_S = torch.randn(70, 128, device=CUDA).bfloat16(), torch.tensor([50, 20])
    found = []
    for recompute in (False, True):
        net = load_backbone(base, LORA, device=CUDA, bf16=True, recompute=recompute, seed=0)
        net(x_PD, lengths_S).float().square().mean().backward()
        found.append({name: p.grad for name, p in net.named_parameters() if p.requires_grad})
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, atol=1e-4, rtol=2e-2)
