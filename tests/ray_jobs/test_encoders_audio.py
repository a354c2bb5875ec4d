"""Decoding sound files and cutting them into windows: good files, and bad ones."""

import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from ray_jobs.encoders import audio
from ray_jobs.encoders.audio import AudioError, windows
from ray_jobs.encoders.spectral import SAMPLE_RATE
from tests.ray_jobs.sounds import bad_file, encoded_file, sound_file, three_hours


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
    assert audio.decode(str(path), tmp_path, 1000, longest_s=1).shape == (1000,)


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


@pytest.mark.parametrize(("name", "codec"), [("a.m4a", "aac"), ("a.webm", "libopus")])
def test_formats_that_libsndfile_does_not_know_are_decoded_too(
    tmp_path: Path, name: str, codec: str
) -> None:
    rate = 48_000
    time_s = np.arange(20 * rate) / rate
    samples = 0.5 * np.sin(2 * np.pi * np.where(time_s < 8, 300, 440) * time_s)
    path = encoded_file(tmp_path, samples, name, codec, rate)
    decoded = audio.decode(name, tmp_path, SAMPLE_RATE)
    assert len(decoded) == pytest.approx(20 * SAMPLE_RATE, abs=0.1 * SAMPLE_RATE)
    middle = audio.decode(name, tmp_path, SAMPLE_RATE, longest_s=4)
    spectrum = np.abs(np.fft.rfft(middle))
    assert (len(middle), spectrum.argmax() / 4) == (4 * SAMPLE_RATE, 440)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])
    with pytest.raises(AudioError, match=r"truncated|not decodable"):
        audio.decode(name, tmp_path, SAMPLE_RATE)


def test_a_video_without_sound_is_no_audio(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "mute.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        for frame in (picture, None):
            container.mux(stream.encode(frame))
    with pytest.raises(AudioError, match="no sound track"):
        audio.decode("mute.mp4", tmp_path, SAMPLE_RATE)


def test_of_three_hours_no_more_than_the_middle_is_read(tmp_path: Path) -> None:
    path, hertz = three_hours(tmp_path)
    assert path.stat().st_size > 1.9e9
    tracemalloc.start()
    cut = windows(path.name, tmp_path, sample_rate=SAMPLE_RATE, seconds=5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert cut.shape == (audio.LONGEST_S // 5, 5 * SAMPLE_RATE)
    assert np.abs(np.fft.rfft(cut[0])).argmax() == hertz * 5
    assert peak < 150e6  # two minutes of stereo at 44.1 kHz are 42 MB of float32


def test_decoders_do_not_write_to_standard_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for kind in ("noise", "truncated mp3", "truncated flac"):
        uri = bad_file(tmp_path, kind)
        damaged = tmp_path / str(uri)
        damaged.write_bytes(damaged.read_bytes().replace(b"\x00\x00", b"\xff\xfb"))
        with pytest.raises(AudioError):
            windows(uri, tmp_path, sample_rate=SAMPLE_RATE, seconds=5)
    assert capfd.readouterr().err == ""
    print("still there", file=sys.stderr)
    assert capfd.readouterr().err == "still there\n"


def test_int16_windows_keep_the_shape_of_loud_and_quiet_ones() -> None:
    loud = np.random.default_rng(0).normal(0, 0.2, (2, 1000)).astype(np.float32)
    cut = np.concatenate([loud, 1e-3 * loud])
    samples = audio.as_int16(cut)
    assert samples.dtype == np.int16
    assert np.abs(samples).max(axis=1).tolist() == [32767] * 4
    for before, after in zip(cut, samples.astype(float), strict=True):
        before = before.astype(float)
        cosine = before @ after / np.linalg.norm(before) / np.linalg.norm(after)
        assert cosine > 1 - 1e-8


BAD_KINDS = {
    "no uri": "no audio_uri",
    "missing": r"missing: no file gone\.flac",
    "scheme": "scheme ftp: expected a path",
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
    "slow": "not decodable: its header says 1 samples a second, expected at least 1000",
}


@pytest.mark.parametrize("kind", BAD_KINDS)
def test_a_bad_file_is_refused_with_its_reason(tmp_path: Path, kind: str) -> None:
    uri = bad_file(tmp_path, kind)
    with pytest.raises(AudioError, match=BAD_KINDS[kind]):
        windows(uri, tmp_path, sample_rate=SAMPLE_RATE, seconds=5)
