"""The fast decoder against the plain one."""

import pytest
import torch

from models.encoders.llama_fast import FastLlama
from models.llama import load_llama
from tests.models.test_llama import LENGTHS, close, ids, ours, theirs


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_every_layer_equals_the_plain_decoder(kv_heads):
    model, ids_P = ours(theirs(kv_heads=kv_heads)), ids()
    with torch.no_grad():
        expected = [model(model.embed(ids_P), LENGTHS, layers=k) for k in range(4)]
        fast = FastLlama(model, compiled=False)
        for layers, expected_PD in enumerate(expected):
            assert close(fast(ids_P, LENGTHS, layers=layers), expected_PD)
        assert close(fast(ids_P, LENGTHS), expected[-1])


def test_what_does_not_fit_is_refused():
    fast = FastLlama(ours(theirs()), compiled=False)
    with pytest.raises(ValueError, match=r"ids_P: expected \(86,\), got \(85,\)"):
        fast(ids()[1:], LENGTHS)
    with pytest.raises(ValueError, match="layers: expected 0 to 3, got 4"):
        fast(ids(), LENGTHS, layers=4)


@pytest.mark.slow
def test_the_compiled_layer_equals_the_plain_one_for_any_number_of_tokens():
    model, ids_P = ours(theirs(kv_heads=2)), ids()
    fast = FastLlama(model)
    for lengths_S in (LENGTHS, LENGTHS[:3], torch.tensor([86])):
        part = ids_P[: int(lengths_S.sum())]
        with torch.no_grad():
            expected_PD = model(model.embed(part), lengths_S)
        assert close(fast(part, lengths_S), expected_PD)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_bf16_on_cuda_is_close_to_float32_on_the_cpu():
    peer, ids_P = theirs(kv_heads=2), ids()
    model = ours(peer)
    with torch.no_grad():
        expected_PD = model(model.embed(ids_P), LENGTHS)
    loaded = load_llama(
        peer.config.to_dict(), peer.state_dict(), dtype=torch.bfloat16, device="cuda"
    )
    found_PD = FastLlama(loaded)(ids_P.cuda(), LENGTHS).float().cpu()
    assert torch.cosine_similarity(found_PD, expected_PD, dim=1).min() > 0.99
