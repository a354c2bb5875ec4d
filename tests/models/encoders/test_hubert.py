"""The plain audio encoder against transformers' `HubertModel` in eager float32."""

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor

from models.encoders.hubert import NORMALISE_EPS, load_hubert, normalised
from models.encoders.hubert_sizes import HubertSizes
from tests.models.encoders.huberts import SAMPLES, ours, peer, windows


@pytest.mark.parametrize("pre_norm", [False, True])
def test_the_mean_of_every_state_equals_transformers(pre_norm):
    theirs = peer(pre_norm=pre_norm)
    samples_BT = windows(2)
    with torch.no_grad():
        x_BT = normalised(samples_BT)
        states = theirs(x_BT, output_hidden_states=True).hidden_states
        found_BKD = ours(theirs)(samples_BT, range(4))
    expected_BKD = torch.stack([state.mean(1) for state in states], dim=1)
    torch.testing.assert_close(found_BKD, expected_BKD, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_chosen_states_come_in_the_order_asked_for(pre_norm):
    model, samples_BT = ours(peer(pre_norm=pre_norm)), windows(1, 3200)
    every = model(samples_BT, range(4))
    assert torch.equal(model(samples_BT, [2, 0]), every[:, [2, 0]])


@pytest.mark.parametrize("states", [[], [4], [-1]])
def test_states_that_do_not_exist_are_refused(states):
    with pytest.raises(ValueError, match="states: expected numbers from 0 to 3"):
        ours(peer(pre_norm=False))(windows(1, 3200), states)


def test_a_window_without_a_frame_is_refused():
    with pytest.raises(ValueError, match="399 samples make no frame"):
        ours(peer(pre_norm=False))(windows(1, 399), [0])


def test_windows_are_normalised_as_the_feature_extractor_does():
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=24_000, do_normalize=True)
    samples_BT = torch.cat([windows(2, 4000), torch.zeros(1, 4000, dtype=torch.int16)])
    samples_BT[1] = torch.randint(-3, 4, (4000,), generator=torch.Generator().manual_seed(0))
    fractions = [row.numpy().astype(np.float32) / 32768 for row in samples_BT]
    expected = extractor(fractions, sampling_rate=24_000, return_tensors="np")["input_values"]
    np.testing.assert_allclose(normalised(samples_BT).numpy(), expected, rtol=1e-5, atol=2e-6)
    assert NORMALISE_EPS == 1e-7


def test_frames_follow_the_documented_formula():
    sizes = HubertSizes.from_config(peer(pre_norm=False).config.to_dict())
    for samples in (400, 719, 720, 24_000, SAMPLES, 240_000):
        assert sizes.frames(samples) == (samples - 400) // 320 + 1
    assert sizes.frames(399) == 0
    assert sizes.hop == 320


@pytest.mark.parametrize("names", ["weight_g weight_v", "folded"])
def test_the_weight_norm_loads_under_its_older_names_and_folded(names):
    theirs = peer(pre_norm=True)
    place = "encoder.pos_conv_embed.conv."
    tensors = dict(theirs.state_dict())
    g = tensors.pop(f"{place}parametrizations.weight.original0")
    v = tensors.pop(f"{place}parametrizations.weight.original1")
    if names == "folded":
        tensors[f"{place}weight"] = theirs.encoder.pos_conv_embed.conv.weight.detach()
    else:
        tensors |= {f"{place}weight_g": g, f"{place}weight_v": v}
    tensors["masked_spec_embed"] = torch.zeros(48)
    config = theirs.config.to_dict()
    model = load_hubert(config, tensors, dtype=torch.float32, device="cpu")
    samples_BT = windows(1, 16_000)
    found, expected = (one(samples_BT, [3]) for one in (model, ours(theirs)))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_checkpoints_that_do_not_fit_are_refused():
    theirs = peer(pre_norm=False)
    config, tensors = theirs.config.to_dict(), dict(theirs.state_dict())
    for changed, says in [
        ({k: v for k, v in tensors.items() if "original0" not in k}, "missing.*conv.weight"),
        ({**tensors, "feature_extractor.cqt.weight": torch.zeros(1)}, "unknown.*cqt"),
        ({**tensors, "encoder.layer_norm.bias": torch.zeros(3)}, r"layer_norm.bias.*\(3,\)"),
    ]:
        with pytest.raises(ValueError, match=says):
            load_hubert(config, changed, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("feature_extractor_cqt", True),
        ("deepnorm", True),
        ("feat_extract_norm", "layer"),
        ("conv_bias", True),
        ("conv_pos_batch_norm", True),
        ("hidden_act", "relu"),
        ("model_type", "wav2vec2"),
        ("num_attention_heads", 5),
        ("conv_stride", [5, 2]),
        ("layer_norm_eps", None),
    ],
)
def test_a_config_that_is_not_computed_here_is_refused(field, value):
    config = {**peer(pre_norm=False).config.to_dict(), field: value}
    with pytest.raises(ValueError, match=field.removeprefix("num_attention_")):
        HubertSizes.from_config(config)
