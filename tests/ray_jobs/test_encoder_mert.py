"""`mert` and `hf-audio`: from sound files to vectors, held to the formulas and to transformers."""

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from feature_repo.errors import ArtifactError, InputError
from ray_jobs.convert_encoder import ConvertOptions, convert_encoder
from ray_jobs.encoders import audio_networks
from ray_jobs.encoders.audio import as_int16, windows
from ray_jobs.encoders.hf_audio import PREPARED, AudioEncoder
from ray_jobs.encoders.mert import mert_encoder
from tests.ray_jobs.encoder_checkpoints import (
    HIDDEN,
    hubert_folder,
    mert_config,
    mert_tensors,
    published_mert,
    wav2vec2_folder,
    write,
)
from tests.ray_jobs.encoder_formulas import mert_states
from tests.ray_jobs.sounds import MELODY, OTHER_MELODY, bad_file, sound_file, tune

RATE = 24_000
SIZES = {"95M": False, "330M": True}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    """Sound files of 12 s, 5 s, 23 s and half silence, and one that is too short."""
    folder = tmp_path_factory.mktemp("sounds")
    sound_file(folder, tune(MELODY, 3), "a.flac")
    sound_file(folder, tune(OTHER_MELODY, 5, seconds=5.0, rate=RATE), "b.wav", RATE)
    sound_file(folder, tune(OTHER_MELODY, 2, seconds=23.0), "c.flac")
    half = tune(MELODY, 4, seconds=20.0)
    half[: len(half) // 2] = 0
    sound_file(folder, 0.01 * half, "d.wav")
    bad_file(folder, "short")
    return folder


URIS = ["a.flac", "b.wav", "short.wav", None, "c.flac", "d.wav"]
GOOD = [0, 1, 4, 5]


def tracks(uris: list[str | None]) -> pa.Table:
    ids = pa.array(range(10, 10 + len(uris)), pa.int64())
    return pa.table({"track_id": ids, "audio_uri": pa.array(uris, pa.string())})


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    made = {}
    for name, large in SIZES.items():
        folder = tmp_path_factory.mktemp("mert")
        source = published_mert(folder / "published", large=large)
        made[name] = folder / "converted"
        convert_encoder(ConvertOptions(kind="mert", source=source, target=made[name]))
    made["wav2vec2"] = wav2vec2_folder(tmp_path_factory.mktemp("wav2vec2") / "model")
    made["hubert"] = hubert_folder(tmp_path_factory.mktemp("hubert") / "model")
    return made


def encoder_of(folders, sounds: Path, name: str, **options) -> AudioEncoder:
    if name in SIZES:
        options = {"layers": None, "dtype": "float32"} | options
        return mert_encoder(folders[name], root=sounds, **options)
    return AudioEncoder(name=name, folder=folders[name], root=sounds, **options)


def cosine_of(one: np.ndarray, two: np.ndarray) -> float:
    one, two = one.astype(np.float64), two.astype(np.float64)
    return one @ two / np.linalg.norm(one) / np.linalg.norm(two)


@pytest.mark.parametrize("name", SIZES)
def test_mert_is_the_mean_of_the_formula_over_time_and_windows(folders, sounds, name) -> None:
    """All states side by side."""
    encoder = encoder_of(folders, sounds, name, layers=(0, 1, 2, 3))
    assert (encoder.dim, encoder.sample_rate, encoder.samples) == (4 * HIDDEN, RATE, 120_000)
    prepared = encoder.prepare(tracks(URIS))
    assert prepared.schema == PREPARED
    assert prepared["windows"].to_pylist() == [3, 1, None, None, 5, 2]
    assert prepared["seconds"].to_pylist() == [15, 5, None, None, 25, 10]
    outcomes = encoder.encode(prepared)
    assert outcomes[2].startswith("too short: 4.00 s")
    assert outcomes[3].startswith("missing")
    config = mert_config(large=SIZES[name])
    for row in GOOD:
        cut = windows(URIS[row], sounds, sample_rate=RATE, seconds=5.0)
        states = mert_states(config, mert_tensors(config), torch.from_numpy(as_int16(cut)))
        expected = torch.stack([state.mean(1).mean(0) for state in states]).ravel()
        np.testing.assert_allclose(outcomes[row], expected, atol=1e-5)
        assert outcomes[row].dtype == np.float32
        # From the samples before they became int16.
        exact = mert_states(config, mert_tensors(config), torch.from_numpy(cut))
        exact = torch.stack([state.mean(1).mean(0) for state in exact]).ravel().numpy()
        assert cosine_of(exact, outcomes[row]) > 0.99999


def test_without_a_choice_the_middle_layer_is_taken(folders, sounds) -> None:
    for name in SIZES:
        middle = encoder_of(folders, sounds, name)
        assert middle.states == (1,)  # of three layers
        every = encoder_of(folders, sounds, name, layers=(0, 1, 2, 3))
        some = encoder_of(folders, sounds, name, layers=(3, 1))
        prepared = middle.prepare(tracks(["a.flac"]))
        (all_states,) = every.encode(prepared)
        np.testing.assert_allclose(
            middle.encode(prepared)[0], all_states[HIDDEN : 2 * HIDDEN], atol=1e-6
        )
        expected = np.concatenate([all_states[3 * HIDDEN :], all_states[HIDDEN : 2 * HIDDEN]])
        np.testing.assert_allclose(some.encode(prepared)[0], expected, atol=1e-6)


@pytest.mark.parametrize("name", ["wav2vec2", "hubert"])
@pytest.mark.parametrize("layers", [(0, 1, 2, 3), None])
def test_other_shapes_are_what_transformers_gives(folders, sounds, name, layers) -> None:
    """A wav2vec2 with layer norms in its convolutions, and a HuBERT of 16 kHz."""
    from transformers import AutoFeatureExtractor, AutoModel

    encoder = encoder_of(folders, sounds, name, layers=layers)
    assert encoder.sample_rate == 16_000
    found = encoder.encode(encoder.prepare(tracks(URIS)))
    model = AutoModel.from_pretrained(folders[name], local_files_only=True).eval()
    extract = AutoFeatureExtractor.from_pretrained(folders[name], local_files_only=True)
    for row in GOOD:
        cut = windows(URIS[row], sounds, sample_rate=16_000, seconds=5.0)
        for samples, cosine in ((as_int16(cut) / np.float32(32768), 0.9999999), (cut, 0.999)):
            given_in = extract(list(samples), sampling_rate=16_000, return_tensors="pt")
            with torch.inference_mode():
                out = model(**given_in, output_hidden_states=True)
            states = [*out.hidden_states[:-1], out.last_hidden_state]
            expected = np.concatenate([states[k].mean(1).mean(0) for k in layers or (1,)])
            assert cosine_of(found[row], expected) > cosine


@pytest.mark.parametrize("name", [*SIZES, "wav2vec2"])
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_neither_order_nor_company_changes_a_vector(folders, sounds, name, data) -> None:
    encoder = encoder_of(folders, sounds, name)
    prepared = encoder.prepare(tracks(URIS))
    order = data.draw(st.permutations(range(len(URIS))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio_networks, "CPU_WINDOWS", data.draw(st.integers(1, 8)))
        together = encoder.encode(prepared.take(order))
    for row, vector in zip(order, together, strict=True):
        (alone,) = encoder.encode(prepared.slice(row, 1))
        if row in GOOD:
            np.testing.assert_allclose(vector, alone, atol=1e-6)
        else:
            assert vector == alone


@pytest.mark.parametrize("name", [*SIZES, "wav2vec2", "hubert"])
def test_loudness_changes_nothing(folders, sounds, name) -> None:
    sound_file(sounds, 0.02 * tune(MELODY, 3), "quiet.wav")
    encoder = encoder_of(folders, sounds, name)
    loud, quiet = encoder.encode(encoder.prepare(tracks(["a.flac", "quiet.wav"])))
    assert cosine_of(loud, quiet) > 0.9999


def test_the_stages_run_in_different_processes(folders, sounds) -> None:
    encoder = encoder_of(folders, sounds, "95M")
    sent = pickle.loads(pickle.dumps(encoder))  # noqa: S301
    prepared = sent.prepare(tracks(URIS))
    assert "_network" not in vars(sent)
    assert sent.prepare(tracks([])).num_rows == 0
    assert encoder.encode(sent.prepare(tracks([]))) == []
    in_chunks = pa.concat_tables([prepared.slice(0, 2), prepared.slice(2)])
    for found, expected in zip(encoder.encode(in_chunks), encoder.encode(prepared), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_bfloat16_keeps_the_direction(folders, sounds) -> None:
    for name in SIZES:
        exact = encoder_of(folders, sounds, name, layers=(0, 1, 2, 3))
        coarse = dataclasses.replace(exact, dtype="bfloat16")
        prepared = exact.prepare(tracks(["a.flac"]))
        (one,), (two,) = exact.encode(prepared), coarse.encode(prepared)
        assert cosine_of(one, two) > 0.9999
        assert np.abs(one - two).max() > 0


def test_what_changes_a_vector_is_in_the_id(folders, sounds, tmp_path: Path) -> None:
    ids = {
        encoder_of(folders, sounds, name, **options).encoder_id
        for name in SIZES
        for options in ({}, {"layers": (0, 1)}, {"layers": (1, 0)}, {"dtype": "bfloat16"})
    }
    assert len(ids) == 8
    # The middle by its number is the same encoder; so is one whose files lie elsewhere.
    assert encoder_of(folders, tmp_path, "95M", layers=(1,)).encoder_id in ids
    assert encoder_of(folders, sounds, "hubert").encoder_id not in ids
    other = hubert_folder(tmp_path / "other", rate=22_050)
    at_other_rate = AudioEncoder(name="hubert", folder=other, root=sounds)
    assert at_other_rate.encoder_id != encoder_of(folders, sounds, "hubert").encoder_id


def test_folders_that_are_no_audio_encoder_are_refused(folders, sounds, tmp_path: Path) -> None:
    folder = hubert_folder(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    sound = json.loads((folder / "preprocessor_config.json").read_text())

    def refused(match: str, file: str = "config.json", **changed) -> None:
        settings = config if file == "config.json" else sound
        write(folder / file, settings | changed)
        with pytest.raises(InputError, match=match):
            AudioEncoder(name="hubert", folder=folder, root=sounds)
        write(folder / file, settings)

    refused(r"model_type is 'bert'; expected hubert or wav2vec2", model_type="bert")
    refused(r"auto_map=.* chooses code to run", auto_map={"AutoModel": "x.X"})
    refused(r"_attn_implementation='x/y' chooses code", _attn_implementation="x/y")
    refused(r"do_normalize is False", "preprocessor_config.json", do_normalize=False)
    refused(r"sampling_rate=None", "preprocessor_config.json", sampling_rate=None)
    refused(r"sampling_rate=0", "preprocessor_config.json", sampling_rate=0)
    with pytest.raises(InputError, match=r"layers=\(4,\): expected different numbers from 0 to 3"):
        AudioEncoder(name="hubert", folder=folder, root=sounds, layers=(4,))
    with pytest.raises(InputError, match=r"layers=\(1, 1\): expected different"):
        AudioEncoder(name="hubert", folder=folder, root=sounds, layers=(1, 1))
    with pytest.raises(ArtifactError, match="is no converted encoder"):
        mert_encoder(folder, root=sounds, layers=None, dtype="float32")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"has no preprocessor_config\.json"):
        AudioEncoder(name="hubert", folder=folder, root=sounds)


@pytest.mark.parametrize("name", ["wav2vec2", "hubert"])
def test_a_checkpoint_that_lacks_a_tensor_is_refused(folders, sounds, tmp_path, name) -> None:
    make = wav2vec2_folder if name == "wav2vec2" else hubert_folder
    folder = make(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    lacking = "encoder.layers.2.attention.k_proj.weight"
    del tensors[lacking]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    encoder = AudioEncoder(name=name, folder=folder, root=sounds)
    with pytest.raises(InputError, match=f"missing.*{lacking}"):
        encoder.encode(encoder.prepare(tracks(["b.wav"])))
