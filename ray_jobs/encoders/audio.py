"""From an `audio_uri` to equal windows of mono samples, or an `AudioError` with the reason.

Windows are never padded with zeros, which would shift every statistic (and a network with
GroupNorm over time); the last one is aligned to the end instead, and silent ones are dropped.
"""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np

LONGEST_S = 120.0
"""Of a longer file only the middle is decoded: a three-hour file costs no more than a song."""
SILENCE_DBFS = -60.0
SHORTFALL_S = 0.5
"""Seconds that a file may hold less than it declares: MP3 counts its padding in or out."""
STREAMED_BYTES = 0xFFFF_0000
"""A WAV from a pipe declares a size from here on, as nobody knew the real one."""


class AudioError(ValueError):
    """Why a track has no windows. The text goes into its error row."""


def windows(
    uri: str | None, root: Path, *, sample_rate: int, seconds: float, longest_s: float = LONGEST_S
) -> np.ndarray:
    """(windows, samples) float32 of the audible windows. Relative URIs start from `root`."""
    samples = decode(local_path(uri, root), sample_rate, longest_s)
    size = round(seconds * sample_rate)
    if len(samples) < size:
        raise AudioError(f"too short: {len(samples) / sample_rate:.2f} s, expected {seconds:g} s")
    starts = list(range(0, len(samples) - size + 1, size))
    if starts[-1] + size < len(samples):
        starts.append(len(samples) - size)
    cut = np.stack([samples[start : start + size] for start in starts])
    loudness = np.sqrt(np.mean(np.square(cut), axis=1))
    audible = cut[loudness > 10 ** (SILENCE_DBFS / 20)]
    if not len(audible):
        raise AudioError(f"silent: no window of {seconds:g} s is above {SILENCE_DBFS:g} dBFS")
    return audible


def decode(path: Path, sample_rate: int, longest_s: float = LONGEST_S) -> np.ndarray:
    """Mono float32 samples at `sample_rate`: the middle `longest_s` seconds of a file."""
    import soundfile
    import soxr

    if not path.is_file():
        raise AudioError(f"missing: no file {path.name}")
    if path.stat().st_size == 0:
        raise AudioError("empty: the file has zero bytes")
    try:
        with soundfile.SoundFile(path) as sound:
            if _cut_off(sound.extra_info):
                raise AudioError("truncated: the file ends before the length in its header")
            wanted = min(sound.frames, round(longest_s * sound.samplerate))
            if sound.frames > wanted:
                sound.seek((sound.frames - wanted) // 2)
            frames = sound.read(wanted, dtype="float32", always_2d=True)
            rate = sound.samplerate
    except soundfile.LibsndfileError as error:
        raise AudioError(_undecodable(path, error.error_string)) from error
    if len(frames) < wanted - SHORTFALL_S * rate:
        raise AudioError(f"truncated: {len(frames) / rate:.2f} s of {wanted / rate:.2f} s decode")
    if not np.isfinite(frames).all():
        raise AudioError("not finite: the samples hold NaN or infinity")
    return soxr.resample(frames.mean(axis=1), rate, sample_rate, quality="HQ")


def local_path(uri: str | None, root: Path) -> Path:
    """The file that a URI names, there or not."""
    if not uri:
        raise AudioError("missing: the track has no audio_uri")
    if "://" not in uri:
        return root / uri
    parts = urlsplit(uri)
    if parts.scheme != "file":
        raise AudioError(f"audio_uri scheme {parts.scheme}: expected a path or file://")
    return Path(unquote(parts.path))


def _cut_off(libsndfile_log: str) -> bool:
    """libsndfile decodes a cut WAV or OGG without an error and mentions it in its log only."""
    sizes = re.search(r"^data : (\d+) \(should be (\d+)\)", libsndfile_log, re.MULTILINE)
    if sizes:
        declared, found = map(int, sizes.groups())
        return found < declared < STREAMED_BYTES
    return "lacks an end-of-stream bit" in libsndfile_log


def _undecodable(path: Path, reason: str) -> str:
    """A download that failed often left a web page under the name of the audio file."""
    with path.open("rb") as stream:
        beginning = stream.read(512).lower()
    if b"<html" in beginning or b"<!doctype html" in beginning:
        return f"not audio: the file holds HTML ({reason})"
    return f"not decodable: {reason}"
