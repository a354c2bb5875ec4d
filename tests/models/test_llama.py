"""The packed decoder against transformers' `LlamaModel` run on one sequence at a time."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import LlamaConfig, LlamaModel

from models.llama import Llama, load_llama, merge_lora
from models.llama_sizes import LlamaSizes

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LENGTHS = torch.tensor([3, 17, 1, 40, 17, 8])


def theirs(*, kv_heads: int = 4, rope: dict | None = None, head_dim: int = 16) -> LlamaModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=101,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rope_parameters={"rope_theta": 10_000.0, **(rope or {"rope_type": "default"})},
        attn_implementation="eager",
    )
    model = LlamaModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # ones at the start, which would hide a norm that is left out
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=0.3)
    return model


def ours(model: LlamaModel) -> Llama:
    return load_llama(
        model.config.to_dict(),
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        dtype=torch.float32,
        device="cpu",
    )


def ids() -> torch.Tensor:
    return torch.randint(0, 101, (int(LENGTHS.sum()),), generator=torch.Generator().manual_seed(1))


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-5 * (1 + expected.abs().max()))


@pytest.mark.parametrize(
    ("kv_heads", "rope", "head_dim"), [(4, None, 16), (2, None, 24), (1, LLAMA3, 16)]
)
def test_every_layer_equals_transformers_one_sequence_at_a_time(kv_heads, rope, head_dim):
    peer = theirs(kv_heads=kv_heads, rope=rope, head_dim=head_dim)
    model, ids_P = ours(peer), ids()
    with torch.no_grad():
        states = [
            peer(input_ids=part[None], output_hidden_states=True).hidden_states
            for part in ids_P.split(LENGTHS.tolist())
        ]
        for layer in range(4):
            expected_PD = torch.cat([of_one[layer][0] for of_one in states])
            found_PD = model(model.embed(ids_P), LENGTHS, layers=layer)
            assert close(found_PD, expected_PD), layer
        assert torch.equal(found_PD, model(model.embed(ids_P), LENGTHS))


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_equal_those_of_transformers(recompute):
    peer = theirs(kv_heads=2)
    model, ids_P = ours(peer), ids()
    model.recompute = recompute
    weights_PD = torch.randn(len(ids_P), 64, generator=torch.Generator().manual_seed(2))
    parts = zip(ids_P.split(LENGTHS.tolist()), weights_PD.split(LENGTHS.tolist()), strict=True)
    for part, weight in parts:
        (peer(input_ids=part[None]).last_hidden_state[0] * weight).sum().backward()
    (model(model.embed(ids_P), LENGTHS) * weights_PD).sum().backward()
    expected = dict(peer.named_parameters())
    for name, parameter in model.named_parameters():
        assert close(parameter.grad, expected[name].grad), name


def test_sequences_do_not_see_each_other_nor_what_comes_later():
    model, ids_P = ours(theirs()), ids()
    with torch.no_grad():
        before_PD = model(model.embed(ids_P), LENGTHS)
        ids_P[15] = (ids_P[15] + 1) % 101  # of the second sequence, which starts at row 3
        changed = (model(model.embed(ids_P), LENGTHS) != before_PD).any(dim=1)
    assert changed[15:20].all()
    assert not changed[:15].any()
    assert not changed[20:].any()


def test_a_sequence_alone_equals_itself_among_others():
    model, ids_P = ours(theirs(kv_heads=1)), ids()
    with torch.no_grad():
        packed_PD = model(model.embed(ids_P), LENGTHS)
        alone_PD = model(model.embed(ids_P[21:61]), torch.tensor([40]))
    assert close(packed_PD[21:61], alone_PD)


def test_llama3_frequencies_equal_those_of_transformers():
    for original in (32, 8192):
        rope = {**LLAMA3, "original_max_position_embeddings": original}
        peer = theirs(rope=rope)
        found = LlamaSizes.from_config(peer.config.to_dict()).frequencies()
        torch.testing.assert_close(found, peer.rotary_emb.inv_freq, rtol=1e-6, atol=0)


def test_sizes_of_a_config_of_transformers_4():
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 128_256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "rope_scaling": {**LLAMA3, "type": "llama3"},
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    del config["rope_scaling"]["rope_type"]
    sizes = LlamaSizes.from_config(config)
    assert (sizes.head_dim, sizes.kv_heads, sizes.rope_theta) == (64, 8, 500_000.0)
    assert sizes.rope_scaling == LLAMA3


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("model_type", "mistral", "model_type"),
        ("hidden_act", "gelu", "hidden_act"),
        ("attention_bias", True, "attention_bias"),
        ("quantization_config", {"bits": 4}, "quantization_config"),
        ("rope_parameters", {"rope_type": "yarn", "factor": 2.0}, "yarn"),
        ("rope_parameters", {**LLAMA3, "extra": 1}, "extra"),
        ("num_key_value_heads", 3, "kv_heads"),
        ("vocab_size", None, "vocab_size"),
    ],
)
def test_a_config_that_is_not_computed_here_is_refused(field, value, says):
    config = {**theirs().config.to_dict(), field: value}
    with pytest.raises(ValueError, match=says):
        LlamaSizes.from_config(config)


def test_a_checkpoint_with_its_head_and_prefix_loads_and_others_are_refused():
    peer = theirs()
    config, tensors = peer.config.to_dict(), peer.state_dict()
    prefixed = {f"model.{name}": tensor for name, tensor in tensors.items()}
    prefixed["lm_head.weight"] = torch.zeros(101, 64)
    model = load_llama(config, prefixed, dtype=torch.bfloat16, device="cpu")
    assert model.norm.weight.dtype == torch.bfloat16
    for changed, says in [
        ({k: v for k, v in tensors.items() if k != "norm.weight"}, "missing.*norm.weight"),
        ({**tensors, "layers.0.self_attn.q_proj.bias": torch.zeros(64)}, "unknown.*bias"),
        ({**tensors, "norm.weight": torch.zeros(63)}, r"norm.weight.*\(63,\).*\(64,\)"),
    ]:
        with pytest.raises(ValueError, match=says):
            load_llama(config, changed, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("lengths", [[], [3, 0], [[5]], [4]])
def test_lengths_that_do_not_fit_the_tokens_are_refused(lengths):
    model = ours(theirs())
    with pytest.raises(ValueError, match=r"lengths_S|embeds_PD"):
        model(model.embed(torch.arange(5)), torch.tensor(lengths, dtype=torch.int64))


def test_peft_lora_equals_the_merged_weights():
    peer = theirs()
    base = {name: tensor.clone() for name, tensor in peer.state_dict().items()}
    config = LoraConfig(
        r=3, lora_alpha=6, target_modules=["gate_proj", "up_proj", "down_proj"], lora_dropout=0.0
    )
    wrapped = get_peft_model(ours(peer), config)
    generator = torch.Generator().manual_seed(3)
    adapter = get_peft_model_state_dict(wrapped)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2, generator=generator)
    assert len(adapter) == 3 * 3 * 2
    merged = merge_lora(base, adapter, 6 / 3)
    plain = load_llama(peer.config.to_dict(), merged, dtype=torch.float32, device="cpu")
    ids_P = ids()
    with torch.no_grad():
        lora_PD = wrapped(plain.embed(ids_P), LENGTHS)
        assert close(plain(plain.embed(ids_P), LENGTHS), lora_PD)
        assert not close(ours(peer)(plain.embed(ids_P), LENGTHS), lora_PD)
    for changed, says in [
        ({**adapter, "base_model.model.x.lora_A.weight": torch.zeros(3, 4)}, "alone"),
        ({**adapter, "modules_to_save.weight": torch.zeros(3)}, "modules_to_save"),
        ({k.replace("layers.0", "layers.9"): v for k, v in adapter.items()}, "layers.9"),
    ]:
        with pytest.raises(ValueError, match=says):
            merge_lora(base, changed, 2.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_flash_attention_on_packed_sequences_equals_the_cpu(kv_heads):
    peer = theirs(kv_heads=kv_heads)
    ids_P = ids()
    model = ours(peer)
    with torch.no_grad():
        expected_PD = model(model.embed(ids_P), LENGTHS)
    on_cuda = load_llama(
        peer.config.to_dict(), peer.state_dict(), dtype=torch.bfloat16, device="cuda"
    )
    embeds_PD = on_cuda.embed(ids_P.cuda()).detach().requires_grad_()
    found_PD = on_cuda(embeds_PD, LENGTHS)
    found_PD.float().square().sum().backward()
    assert embeds_PD.grad is not None
    cosine_P = torch.cosine_similarity(found_PD.float().cpu(), expected_PD, dim=1)
    assert cosine_P.min() > 0.99
