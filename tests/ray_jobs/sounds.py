"""Sound files for the tests of this folder: tunes, and files that are bad in one way each."""

import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile

from ray_jobs.encoders.spectral import SAMPLE_RATE

MELODY = (60, 62, 64, 65, 67, 65, 64, 62, 60, 67, 72, 67)
OTHER_MELODY = (57, 60, 64, 69, 68, 64, 59, 57, 65, 62, 59, 57)


def tune(
    melody: tuple[int, ...], harmonics: int, *, seconds: float = 12.0, rate: int = SAMPLE_RATE
) -> np.ndarray:
    """The melody, two notes a second, with so many harmonics of equal falling strength."""
    samples = np.zeros(round(seconds * rate))
    for beat in range(int(2 * seconds)):
        start = beat * rate // 2
        time_s = np.arange(min(rate // 2, len(samples) - start)) / rate
        frequency = 440 * 2 ** ((melody[beat % len(melody)] - 69) / 12)
        note = sum(np.sin(2 * np.pi * frequency * k * time_s) / k for k in range(1, harmonics + 1))
        samples[start : start + len(time_s)] = 0.3 * note * np.exp(-3 * time_s)
    return samples


def sound_file(
    folder: Path, samples: np.ndarray, name: str = "tune.flac", rate: int = SAMPLE_RATE
) -> Path:
    path = folder / name
    soundfile.write(path, samples, rate, subtype="FLOAT" if name.endswith("wav") else None)
    return path


def encoded_file(folder: Path, samples: np.ndarray, name: str, codec: str, rate: int) -> Path:
    """A stereo file of a codec that libsndfile does not know, by PyAV."""
    import av

    path = folder / name
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "stereo"
        frame = av.AudioFrame.from_ndarray(
            np.stack([samples, samples]).astype(np.float32), format="fltp", layout="stereo"
        )
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
        for part in (frame, None):
            container.mux(stream.encode(part))
    return path


def three_hours(folder: Path, name: str = "long.wav", rate: int = 44100) -> tuple[Path, float]:
    """A stereo WAV whose middle ten minutes are a sine, the rest a hole; and the sine's hertz."""
    frames, middle = 3 * 3600 * rate, 600 * rate
    path = folder / name
    size = 4 * frames
    with path.open("wb") as stream:
        stream.write(b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt ")
        stream.write(struct.pack("<IHHIIHH", 16, 1, 2, rate, 4 * rate, 4, 16))
        stream.write(b"data" + struct.pack("<I", size))
        head = stream.tell()
        second = np.round(10_000 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate))
        stream.seek(head + 4 * (frames - middle) // 2)
        for _ in range(600):
            stream.write(np.repeat(second.astype("<i2"), 2).tobytes())
        stream.truncate(head + size)
    return path, 440.0


def bad_file(folder: Path, kind: str) -> str | None:
    """Makes a file that is bad in one way; returns its URI."""
    samples = tune(MELODY, 3)
    if kind == "no uri":
        return None
    if kind == "missing":
        return "gone.flac"
    if kind == "scheme":
        return "ftp://host/tune.flac"
    if kind in ("zero bytes", "html", "noise"):
        content = {
            "zero bytes": b"",
            "html": b"\n<!DOCTYPE html>\n<html><body>404</body></html>",
            "noise": np.random.default_rng(0).bytes(20_000),
        }[kind]
        (folder / f"{kind}.flac").write_bytes(content)
        return f"{kind}.flac"
    if kind.startswith("truncated"):
        path = sound_file(folder, samples, f"{kind}.{kind.split()[1]}")
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
        return path.name
    if kind == "slow":
        return sound_file(folder, samples[:200], "slow.wav", rate=1).name
    changed = {
        "silent": 1e-4 * samples,
        "short": samples[: 4 * SAMPLE_RATE],
        "one sample": samples[:1],
        "nan": np.where(np.arange(len(samples)) == 1000, np.nan, samples),
    }[kind]
    return sound_file(folder, changed, f"{kind}.wav").name
