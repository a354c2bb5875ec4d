"""The fast audio encoder: its algebra on the CPU in float32, its kernels and graphs on CUDA."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import conv1d

from models.encoders.hubert import load_hubert, normalised
from models.encoders.hubert_fast import ANY_DEVICE, FastHubert, HubertPlan, HubertStream
from models.encoders.hubert_front import FirstConvolution
from tests.models.encoders.huberts import SAMPLES, ours, peer, windows


@pytest.mark.parametrize("pre_norm", [False, True])
def test_every_state_equals_the_plain_encoder(pre_norm):
    model, samples_BT = ours(peer(pre_norm=pre_norm)), windows(2)
    found_BKD = FastHubert(model, ANY_DEVICE)(samples_BT, range(4))
    with torch.no_grad():
        expected_BKD = model(samples_BT, range(4))
    torch.testing.assert_close(found_BKD, expected_BKD, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("samples", [320 * 64, 320 * 5, 16_000])
def test_windows_of_other_lengths_equal_the_plain_encoder(samples):
    model, samples_BT = ours(peer(pre_norm=False)), windows(3, samples)
    with torch.no_grad():
        expected_BKD = model(samples_BT, [3])
    found_BKD = FastHubert(model, ANY_DEVICE)(samples_BT, [3])
    torch.testing.assert_close(found_BKD, expected_BKD, rtol=1e-5, atol=1e-5)


def test_a_way_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="convolutions: expected products or triton, got 'fft'"):
        FastHubert(ours(peer(pre_norm=False)), replace(ANY_DEVICE, convolutions="fft"))


def test_a_window_that_frames_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="120001 samples are no multiple of 320"):
        FastHubert(ours(peer(pre_norm=False)), ANY_DEVICE)(windows(1, SAMPLES + 1), [0])


def test_the_first_norm_from_the_samples_covariance_equals_that_of_the_output():
    """High-pass kernels on low tones: the output has a millionth of the samples' power."""
    model = ours(peer(pre_norm=False))
    t = torch.arange(SAMPLES) / 24_000
    x_BT = normalised((20_000 * (2 * torch.pi * 90 * t).sin()).to(torch.int16)[None])
    w_LC = torch.randn(10, 32, generator=torch.Generator().manual_seed(0))
    model.feature_extractor.conv_layers[0].conv.weight.copy_((w_LC - w_LC.mean(0)).T[:, None])
    first = FirstConvolution.of(model.feature_extractor, model.sizes)
    y_BCF = conv1d(x_BT.double()[:, None], first.w_LC.double().T[:, None], stride=5)
    variance_BC, mean_BC = torch.var_mean(y_BCF, dim=2, correction=0)
    expected_BC = first.gain_C / torch.sqrt(variance_BC + first.eps)
    scale_BC, shift_BC = first.scale_and_shift(x_BT, y_BCF.shape[2])
    torch.testing.assert_close(scale_BC.double(), expected_BC, rtol=1e-5, atol=0)
    expected_BC = first.bias_C - mean_BC * expected_BC
    torch.testing.assert_close(shift_BC.double(), expected_BC, rtol=1e-5, atol=1e-5)


def test_a_stream_of_windows_equals_them_one_by_one():
    fast = FastHubert(ours(peer(pre_norm=True)), ANY_DEVICE)
    samples_WT = windows(5, 3200)
    stream = HubertStream(fast, batch=2, samples=3200, states=(1, 3))
    expected = torch.cat([fast(one[None], (1, 3)) for one in samples_WT])
    pieces = [part.numpy() for part in samples_WT.split([1, 0, 3, 1])]
    torch.testing.assert_close(stream(pieces), expected, rtol=1e-5, atol=1e-5)


def on_cuda(pre_norm: bool):
    theirs = peer(pre_norm=pre_norm, hidden=256, channels=128)
    tensors = theirs.state_dict()
    return theirs, load_hubert(
        theirs.config.to_dict(), tensors, dtype=torch.bfloat16, device="cuda"
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("plan", [HubertPlan(), ANY_DEVICE])
def test_bf16_on_cuda_is_close_to_float32_on_the_cpu(pre_norm, plan):
    theirs, model = on_cuda(pre_norm)
    samples_BT = windows(3)
    with torch.no_grad():
        expected_BKD = ours(theirs)(samples_BT, range(4))
    found_BKD = FastHubert(model, plan)(samples_BT.cuda(), range(4)).cpu()
    # Single windows at a third of MERT's width: bfloat16's rounding averages out less. Whole tracks
    # at MERT's width are held to 0.9999, in tests/ray_jobs/test_encoder_cuda.py.
    assert torch.cosine_similarity(found_BKD, expected_BKD, dim=2).min() >= 0.999


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_replayed_stream_equals_eager_batches():
    fast = FastHubert(on_cuda(False)[1], HubertPlan())
    samples_WT = windows(11, 16_000)
    stream = HubertStream(fast, batch=4, samples=16_000, states=(0, 3))
    for _ in range(2):  # eager and recorded, then replayed throughout
        found_WKD = stream([part.numpy() for part in samples_WT.split([5, 6])])
    expected = [fast(part.cuda(), (0, 3)).cpu() for part in samples_WT.split(4)]
    # A last batch of another shape is rounded in another order.
    assert torch.cosine_similarity(found_WKD, torch.cat(expected), dim=2).min() >= 0.999
