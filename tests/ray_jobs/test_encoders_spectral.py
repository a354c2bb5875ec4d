"""The spectral encoder, against direct computations and on real files."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pytest

from ray_jobs.encoders import spectral
from ray_jobs.encoders.spectral import SAMPLE_RATE, SpectralEncoder
from tests.ray_jobs.sounds import MELODY, OTHER_MELODY, bad_file, sound_file, tune


def encode_files(root: Path, *uris: str | None) -> list[np.ndarray | str]:
    encoder = SpectralEncoder(root=root)
    return encoder.encode(pa.table({"audio_uri": pa.array(uris, pa.string())}))


def test_spectral_vector_has_a_fixed_length_and_is_repeatable(tmp_path: Path) -> None:
    sound_file(tmp_path, tune(MELODY, 5), "long.flac")
    sound_file(tmp_path, tune(MELODY, 5, seconds=5), "short.flac")
    long, again, short = encode_files(tmp_path, "long.flac", "long.flac", "short.flac")
    assert long.shape == short.shape == (SpectralEncoder.dim,) == (230,)
    assert long.dtype == np.float32
    assert np.isfinite([long, short]).all()
    np.testing.assert_array_equal(long, again)


def test_spectral_survives_a_bad_file_between_good_ones(tmp_path: Path) -> None:
    sound_file(tmp_path, tune(MELODY, 5))
    outcomes = encode_files(tmp_path, "tune.flac", bad_file(tmp_path, "html"), None, "tune.flac")
    assert [isinstance(outcome, str) for outcome in outcomes] == [False, True, True, False]


def test_an_unforeseen_error_becomes_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("odd file")

    monkeypatch.setattr(spectral, "windows", broken)
    assert encode_files(tmp_path, "tune.flac") == ["ZeroDivisionError: odd file"]


def test_gain_moves_the_vector_little_timbre_and_melody_move_it_much(tmp_path: Path) -> None:
    loud = tune(MELODY, 5)
    sound_file(tmp_path, loud, "loud.flac")
    sound_file(tmp_path, 0.05 * loud, "quiet.flac")
    sound_file(tmp_path, tune(MELODY, 1), "pure.flac")
    sound_file(tmp_path, tune(OTHER_MELODY, 5), "other.flac")
    names = ("loud.flac", "quiet.flac", "pure.flac", "other.flac")
    reference, *others = encode_files(tmp_path, *names)
    quiet, pure, other = (float(np.linalg.norm(vector - reference)) for vector in others)
    assert quiet < 0.05 * min(pure, other)


def test_tonic_is_found_in_every_key() -> None:
    c_major = np.zeros(12)
    c_major[[0, 2, 4, 5, 7, 9, 11]] = [3, 1, 2, 1, 2.5, 1, 0.5]
    for tonic in range(12):
        assert spectral.likeliest_tonic(np.roll(c_major, tonic)) == tonic


def test_a_transposed_tune_keeps_its_folded_pitch_classes(tmp_path: Path) -> None:
    encoder = SpectralEncoder(root=tmp_path)
    _, bank = encoder._banks
    folded = []
    for shift in (0, 5):
        melody = tuple(note + shift for note in MELODY)
        cut = tune(melody, 3, seconds=10).reshape(2, -1).astype(np.float32)
        power = spectral.power_spectrum(cut / np.sqrt(np.mean(cut**2)))
        folded.append(spectral._tonality(np.sqrt(power) @ bank)["pitch"].mean(axis=0))
    assert np.corrcoef(folded[0], folded[1])[0, 1] > 0.95


@pytest.mark.parametrize("tempo", [74, 90, 128, 183])
def test_tempo_profile_peaks_at_the_tempo(tempo: float) -> None:
    frames = np.zeros((1, 212))
    beats = np.arange(0, 5, 60 / tempo) * SAMPLE_RATE / spectral.HOP
    frames[0, np.round(beats[beats < 211]).astype(int)] = 1
    blurred = frames + 0.5 * (np.roll(frames, 1, axis=1) + np.roll(frames, -1, axis=1))
    profile = spectral.tempo_profile(blurred)[0]
    edges = spectral.TEMPI_BPM
    band = int(np.searchsorted(-edges, -tempo) - 1)
    assert profile[band] > 0.8 * profile.max() > 0
    off_beat = int(np.searchsorted(-edges, -tempo / 1.5) - 1)
    assert profile[off_beat] < 0.5 * profile[band]


@pytest.mark.slow
def test_mel_bank_is_that_of_librosa() -> None:
    from librosa.filters import mel

    expected = mel(sr=SAMPLE_RATE, n_fft=spectral.N_FFT, n_mels=spectral.N_MELS, norm=None)
    np.testing.assert_allclose(spectral.mel_bank(), expected.T, atol=1e-5)


def test_frame_power_is_the_mean_square() -> None:
    noise = np.random.default_rng(0).normal(0, 2, (1, 50_000)).astype(np.float32)
    assert spectral.power_spectrum(noise).sum(axis=2).mean() == pytest.approx(4, rel=0.02)
