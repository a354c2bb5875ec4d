"""Decoding sound files and cutting them into windows: good files, and bad ones."""

from pathlib import Path

import numpy as np
import pytest

from ray_jobs.encoders import audio
from ray_jobs.encoders.audio import AudioError, windows
from ray_jobs.encoders.spectral import SAMPLE_RATE
from tests.ray_jobs.sounds import bad_file, sound_file


def test_windows_are_whole_and_the_last_ends_with_the_file(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 12 * 1000).astype(np.float32)
    sound_file(tmp_path, samples, "noise.wav", rate=1000)
    cut = windows("noise.wav", tmp_path, sample_rate=1000, seconds=5)
    expected = np.stack([samples[:5000], samples[5000:10000], samples[7000:]])
    np.testing.assert_allclose(cut, expected, atol=1e-6)
    quiet = samples.copy()
    quiet[:5000] *= 1e-4
    uri = sound_file(tmp_path, quiet, "half silent.wav", rate=1000).as_uri()
    cut = windows(uri, tmp_path / "elsewhere", sample_rate=1000, seconds=5)
    np.testing.assert_allclose(cut, expected[1:], atol=1e-6)


def test_of_a_long_file_the_middle_is_decoded(tmp_path: Path) -> None:
    samples = np.repeat(np.float32([0.1, 0.2, 0.3, 0.4, 0.5]), 5000)
    path = sound_file(tmp_path, samples, "long.flac", rate=1000)
    cut = windows(str(path), tmp_path, sample_rate=1000, seconds=5, longest_s=15)
    np.testing.assert_allclose(cut.mean(axis=1), [0.2, 0.3, 0.4], atol=1e-3)
    assert audio.decode(path, 1000, longest_s=1).shape == (1000,)


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (96000, 6), (44100, 2)])
def test_any_rate_and_channels_become_mono_at_the_wanted_rate(
    tmp_path: Path, rate: int, channels: int
) -> None:
    sine = 0.5 * np.sin(2 * np.pi * 440 * np.arange(6 * rate) / rate)
    sound_file(tmp_path, np.tile(sine[:, None], channels), "sine.wav", rate=rate)
    cut = windows("sine.wav", tmp_path, sample_rate=SAMPLE_RATE, seconds=5)
    spectrum = np.abs(np.fft.rfft(cut[0]))
    assert spectrum.argmax() == 440 * 5
    assert np.sqrt(np.mean(cut[0] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.01)


BAD_KINDS = {
    "no uri": "no audio_uri",
    "missing": r"missing: no file gone\.flac",
    "scheme": "scheme s3",
    "zero bytes": "zero bytes",
    "html": "holds HTML",
    "noise": "not decodable",
    "truncated flac": "not decodable",
    "truncated wav": "truncated",
    "truncated mp3": "truncated",
    "truncated ogg": "truncated",
    "silent": "silent: no window of 5 s is above -60 dBFS",
    "short": r"too short: 4\.00 s, expected 5 s",
    "one sample": "too short",
    "nan": "not finite",
}


@pytest.mark.parametrize("kind", BAD_KINDS)
def test_a_bad_file_is_refused_with_its_reason(tmp_path: Path, kind: str) -> None:
    uri = bad_file(tmp_path, kind)
    with pytest.raises(AudioError, match=BAD_KINDS[kind]):
        windows(uri, tmp_path, sample_rate=SAMPLE_RATE, seconds=5)
