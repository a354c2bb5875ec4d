"""From an `audio_uri` to equal windows of mono samples, or an `AudioError` with the reason.

Windows are never padded with zeros, which would shift every statistic (and a network with
GroupNorm over time); the last one is aligned to the end instead, and silent ones are dropped.

libsndfile decodes WAV, FLAC, Ogg and MP3, and PyAV what it does not know: AAC in M4A, WMA, Opus in
WebM. Of a long file only the middle is decoded.
"""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ray_jobs.encoders.audio_sources import AudioError, open_source

LONGEST_S = 120.0
"""Of a longer file only the middle is decoded: a three-hour file costs no more than a song."""
SILENCE_DBFS = -60.0
SHORTFALL_S = 0.5
"""Seconds that a file may hold less than it declares: MP3 counts its padding in or out."""
STREAMED_BYTES = 0xFFFF_0000
"""A WAV from a pipe declares a size from here on, as nobody knew the real one."""
LEAST_RATE_HZ = 1000
"""A header that declares less is damaged: of its noise there would be minutes."""
BLOCK_SAMPLES = 2**20
"""Decoded at once, all channels together: six channels at 96 kHz need no more memory than one."""
LARGEST_INT16 = 32767


def windows(
    uri: str | None, root: Path, *, sample_rate: int, seconds: float, longest_s: float = LONGEST_S
) -> np.ndarray:
    """(windows, samples) float32 of the audible windows. Relative URIs start from `root`."""
    samples = decode(uri, root, sample_rate, longest_s)
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


def as_int16(cut: np.ndarray) -> np.ndarray:
    """Windows (windows, samples) as int16, each brought to full scale: half of float32's bytes.

    For encoders that normalise each window anyway. The rounding noise lies 98 dB below full scale;
    at the file's own scale a quiet window would keep a few bits.
    """
    peak = np.abs(cut).max(axis=1, keepdims=True)
    return np.rint(cut * (LARGEST_INT16 / peak)).astype(np.int16)


def decode(
    uri: str | None, root: Path, sample_rate: int, longest_s: float = LONGEST_S
) -> np.ndarray:
    """Mono float32 samples at `sample_rate`: the middle `longest_s` seconds of a file."""
    import soxr

    with open_source(uri, root) as stream, _quiet():
        beginning = stream.read(512)
        if not beginning:
            raise AudioError("empty: the file has zero bytes")
        if _is_page(beginning):
            raise AudioError("not audio: the file holds HTML")
        stream.seek(0)
        samples, rate = _by_libsndfile(stream, longest_s) or _by_ffmpeg(stream, longest_s)
    if rate < LEAST_RATE_HZ:
        raise AudioError(
            f"not decodable: its header says {rate} samples a second, expected at least "
            f"{LEAST_RATE_HZ}"
        )
    if not np.isfinite(samples).all():
        raise AudioError("not finite: the samples hold NaN or infinity")
    return soxr.resample(samples, rate, sample_rate, quality="HQ")


def _by_libsndfile(stream: BinaryIO, longest_s: float) -> tuple[np.ndarray, int] | None:
    """Mono samples and their rate; None if libsndfile does not know the format."""
    import soundfile

    try:
        # A local file by its name: a call back into Python for each read costs more.
        sound = soundfile.SoundFile(getattr(stream, "name", stream))
    except soundfile.LibsndfileError:
        stream.seek(0)
        return None
    try:
        with sound:
            if _cut_off(sound.extra_info):
                raise AudioError("truncated: the file ends before the length in its header")
            rate = sound.samplerate
            wanted = min(sound.frames, round(longest_s * rate))
            if sound.frames > wanted:
                sound.seek((sound.frames - wanted) // 2)
            size = BLOCK_SAMPLES // sound.channels
            # Not by `blocks`, which fills up what a cut file lacks with what was in memory.
            mono = [
                _mono(sound.read(min(size, wanted - start), dtype="float32", always_2d=True))
                for start in range(0, wanted, size)
            ]
    except soundfile.LibsndfileError as error:
        raise AudioError(f"not decodable: {error.error_string}") from error
    return _whole(mono, wanted, rate), rate


def _by_ffmpeg(stream: BinaryIO, longest_s: float) -> tuple[np.ndarray, int]:
    """The same by PyAV."""
    import av

    try:
        with av.open(stream, "r", metadata_errors="replace") as container:
            if not container.streams.audio:
                raise AudioError("not audio: the file has no sound track")
            sound = container.streams.audio[0]
            rate = sound.rate
            duration_s = (container.duration or 0) / av.time_base  # 0: the file does not say
            start_s = max(0.0, (duration_s - longest_s) / 2)
            if start_s:
                container.seek(round(start_s * av.time_base))
            mono = list(_frames(container, sound, start_s, round(longest_s * rate)))
    except (av.error.FFmpegError, ValueError) as error:
        if isinstance(error, AudioError):
            raise
        raise AudioError(f"not decodable: {getattr(error, 'strerror', error)}") from error
    if not mono:
        raise AudioError("not decodable: no decoder finds sound in the file")
    return _whole(mono, round(min(duration_s, longest_s) * rate), rate), rate


def _frames(container: Any, sound: Any, start_s: float, wanted: int) -> Iterator[np.ndarray]:
    """Mono samples from `start_s` on, `wanted` of them or up to the end."""
    import av

    planar = av.AudioResampler(format="fltp")
    left = wanted
    for frame in container.decode(sound):
        # A seek ends at a key frame before the wanted moment.
        early = round((start_s - (frame.time or 0.0)) * frame.rate) if start_s else 0
        for part in planar.resample(frame):
            mono = part.to_ndarray().mean(axis=0)[max(0, early) : max(0, early) + left]
            yield mono
            left -= len(mono)
        if left <= 0:
            return


def _mono(block: np.ndarray) -> np.ndarray:
    """Mean of the channels (samples, channels); `mean(axis=1)` takes longer than the decoding."""
    channels = block.shape[1]
    return block @ np.full(channels, 1 / channels, np.float32)


def _whole(mono: list[np.ndarray], wanted: int, rate: int) -> np.ndarray:
    """The samples in one array; refused if they are fewer than the file declares."""
    samples = np.concatenate([np.empty(0, np.float32), *mono])
    if len(samples) < wanted - SHORTFALL_S * rate:
        raise AudioError(f"truncated: {len(samples) / rate:.2f} s of {wanted / rate:.2f} s decode")
    return samples


def _cut_off(libsndfile_log: str) -> bool:
    """libsndfile decodes a cut WAV or OGG without an error and mentions it in its log only."""
    sizes = re.search(r"^data : (\d+) \(should be (\d+)\)", libsndfile_log, re.MULTILINE)
    if sizes:
        declared, found = map(int, sizes.groups())
        return found < declared < STREAMED_BYTES
    return "lacks an end-of-stream bit" in libsndfile_log


def _is_page(beginning: bytes) -> bool:
    """A download that failed often left a web page under the name of the audio file."""
    beginning = beginning.lower()
    return b"<html" in beginning or b"<!doctype html" in beginning


_silencing = threading.Lock()
_silenced = [0, -1]
"""How many decodings are going on, and a copy of the real standard error."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Standard error leads nowhere meanwhile: the decoders write there, past Python's logging."""
    with _silencing:
        if not _silenced[0]:
            _silenced[1] = os.dup(2)
            _point_stderr(os.open(os.devnull, os.O_WRONLY))
        _silenced[0] += 1
    try:
        yield
    finally:
        with _silencing:
            _silenced[0] -= 1
            if not _silenced[0]:
                _point_stderr(_silenced[1])


def _point_stderr(descriptor: int) -> None:
    os.dup2(descriptor, 2)
    os.close(descriptor)
