"""`spectral`: a light audio encoder without a model: what a tune sounds like, in 230 numbers.

For each 5 s window: log-mel statistics, MFCC, pitch classes, spectral contrast, the shape of the
spectrum (centroid, bandwidth, rolloff, flatness), zero crossings, onsets and tempo; then mean and
standard deviation over the windows of a clip. A clip is brought to one loudness first, so gain
does not matter, and pitch classes are counted from the tonic, so a transposed tune stays near.

The features are librosa's, written in numpy: librosa itself loads Numba code that compiles for
20 s on a fresh install, and takes three times as long on each clip.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from feature_repo.artifacts import content_id
from ray_jobs.encoders.audio import LONGEST_S, SILENCE_DBFS, AudioError, windows

SAMPLE_RATE = 22050
WINDOW_S = 5.0
N_FFT = 2048
HOP = 512
N_MELS = 24
N_MFCC = 13
PITCH_RANGE_HZ = (130.0, 4000.0)
"""Below, a semitone is narrower than a bin; above, there is little but overtones."""
CONTRAST_EDGES_HZ = (0, 200, 400, 800, 1600, 3200, 6400)
CONTRAST_SHARE = 0.1
TEMPI_BPM = np.geomspace(240, 40, 11)
"""Edges of the tempo bands, fast to slow."""
ROLLOFF_SHARE = 0.85
FLOOR = 1e-6
"""Added to the power of a band: what lies 60 dB below the clip counts as silence."""
BIN_FLOOR = 1e-7
"""The same for a single bin. The rounding noise of a quiet 16-bit file lies below it."""
MAJOR = np.array([6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88])
MINOR = np.array([6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17])
"""Krumhansl and Kessler's key profiles: how well each pitch class fits a key."""
SCALES = {
    "mel": 0.6,
    "mel_spread": 1.0,
    "mfcc": 0.8,
    "mfcc_spread": 1.2,
    "pitch": 2.5,
    "mode": 4.0,
    "contrast": 0.8,
    "shape": 1.2,
    "shape_spread": 5.0,
    "onset": 10.0,
    "tempo": 3.0,
}
"""Factor of each group. Fixed once, on folk tunes in several timbres, so that timbre, tonality
and rhythm all have a say in a distance: unscaled, the mel bands make up most of it."""


@dataclass(frozen=True, kw_only=True)
class SpectralEncoder:
    root: Path
    """Where relative audio URIs start."""

    columns: ClassVar[tuple[str, ...]] = ("audio_uri",)
    dim: ClassVar[int] = 2 * (2 * N_MELS + 2 * N_MFCC + 12 + 1 + 6 + 10 + 2 + 10)
    settings: ClassVar[dict[str, object]] = {
        "features": 1,
        "sample_rate": SAMPLE_RATE,
        "window_s": WINDOW_S,
        "longest_s": LONGEST_S,
        "silence_dbfs": SILENCE_DBFS,
        "n_fft": N_FFT,
        "hop": HOP,
        "n_mels": N_MELS,
        "n_mfcc": N_MFCC,
        "pitch_range_hz": PITCH_RANGE_HZ,
        "contrast": [CONTRAST_EDGES_HZ, CONTRAST_SHARE],
        "tempi_bpm": TEMPI_BPM.round(3).tolist(),
        "rolloff_share": ROLLOFF_SHARE,
        "floors": [FLOOR, BIN_FLOOR],
        "scales": SCALES,
    }
    """`features` counts changes of the formulas below: whoever changes one adds one to it."""

    @property
    def encoder_id(self) -> str:
        return content_id("spectral", self.settings)

    @cached_property
    def _banks(self) -> tuple[np.ndarray, np.ndarray]:
        """Filter banks (bins, bands): mel, and pitch classes from C up."""
        return mel_bank(), _pitch_class_bank()

    def encode(self, tracks: pa.Table) -> list[np.ndarray | str]:
        return [self._encode_one(uri) for uri in tracks["audio_uri"]]

    def _encode_one(self, uri: pa.StringScalar) -> np.ndarray | str:
        try:  # as_py() too: Arrow does not look whether a string is UTF-8
            cut = windows(uri.as_py(), self.root, sample_rate=SAMPLE_RATE, seconds=WINDOW_S)
            return self.vector(cut)
        except AudioError as error:
            return str(error)
        except Exception as error:  # a file in a thousand must not end the job for the others
            return f"{type(error).__name__}: {error}"

    def vector(self, cut: np.ndarray) -> np.ndarray:
        """The clip's vector from its windows (windows, samples)."""
        mel, pitch = self._banks
        cut = cut / np.sqrt(np.mean(np.square(cut)))
        power = power_spectrum(cut)
        groups = (
            _timbre(power @ mel)
            | _tonality(np.sqrt(power) @ pitch)
            | {"contrast": _contrast(power)}
            | _shape(power, cut)
        )
        features = np.concatenate([SCALES[name] * groups[name] for name in SCALES], axis=1)
        return np.concatenate([features.mean(axis=0), features.std(axis=0)]).astype(np.float32)


def power_spectrum(cut: np.ndarray) -> np.ndarray:
    """(windows, frames, bins); the bins of a frame add up to its mean square."""
    import scipy.fft

    hann = np.hanning(N_FFT + 1)[:-1].astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(cut, N_FFT, axis=1)[:, ::HOP]
    spectrum = scipy.fft.rfft(frames * hann, axis=2)
    power = spectrum.real**2 + spectrum.imag**2
    return power * np.float32(2 / (N_FFT * np.square(hann).sum()))


def _timbre(mel: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics of the log-mel bands, of their cosine transform, and of their sudden rises."""
    import scipy.fft

    bels = np.log10(mel + FLOOR)
    mfcc = scipy.fft.dct(bels, axis=2, norm="ortho")[:, :, 1 : N_MFCC + 1]
    onsets = np.maximum(np.diff(bels, axis=1), 0).mean(axis=2)
    return {
        "mel": bels.mean(axis=1),
        "mel_spread": bels.std(axis=1),
        "mfcc": mfcc.mean(axis=1),
        "mfcc_spread": mfcc.std(axis=1),
        "onset": np.stack([onsets.mean(axis=1), onsets.std(axis=1)], axis=1),
        "tempo": tempo_profile(onsets),
    }


def tempo_profile(onsets: np.ndarray) -> np.ndarray:
    """(windows, bands): how well the onsets repeat at the beat lengths of each tempo band."""
    count = onsets.shape[1]
    centred = onsets - onsets.mean(axis=1, keepdims=True)
    spectrum = np.abs(np.fft.rfft(centred, n=2 * count, axis=1)) ** 2
    repeats = np.fft.irfft(spectrum, axis=1)[:, :count]
    # The overlap shrinks with the lag: without the division slow tempi would look weak.
    repeats = repeats / np.arange(count, 0, -1) / (repeats[:, :1] / count + 1e-12)
    lags = np.round(60 / TEMPI_BPM * SAMPLE_RATE / HOP).astype(int)
    bands = [repeats[:, low:high].max(axis=1) for low, high in pairwise(lags)]
    return np.stack(bands, axis=1)


def _tonality(pitch: np.ndarray) -> dict[str, np.ndarray]:
    """Pitch classes counted from the tonic of the clip's likeliest key, and major against minor."""
    shares = pitch.sum(axis=1)
    shares = 12 * shares / (shares.sum(axis=1, keepdims=True) + 1e-12)
    tonic = likeliest_tonic(shares.mean(axis=0))
    folded = np.roll(shares, -tonic, axis=1)
    return {"pitch": folded, "mode": (_fit(folded, MAJOR) - _fit(folded, MINOR))[:, None]}


def likeliest_tonic(shares: np.ndarray) -> int:
    """The pitch class (C = 0) on which a major or minor key fits the shares best."""
    turned = np.stack([np.roll(shares, -tonic) for tonic in range(12)])
    return int(np.maximum(_fit(turned, MAJOR), _fit(turned, MINOR)).argmax())


def _fit(shares: np.ndarray, profile: np.ndarray) -> np.ndarray:
    """Pearson correlation of each row with a key profile."""
    rows = shares - shares.mean(axis=1, keepdims=True)
    key = profile - profile.mean()
    return rows @ key / (np.linalg.norm(rows, axis=1) * np.linalg.norm(key) + 1e-12)


def _contrast(power: np.ndarray) -> np.ndarray:
    """(windows, octaves): bels between the strongest and the weakest bins of each octave."""
    edges = np.searchsorted(np.fft.rfftfreq(N_FFT, 1 / SAMPLE_RATE), CONTRAST_EDGES_HZ)
    octaves = []
    for low, high in pairwise(edges):
        ordered = np.sort(power[:, :, low:high], axis=2)
        few = max(1, round(CONTRAST_SHARE * (high - low)))
        peak, valley = ordered[:, :, -few:].mean(axis=2), ordered[:, :, :few].mean(axis=2)
        bels = np.log10(peak + BIN_FLOOR) - np.log10(valley + BIN_FLOOR)
        octaves.append(bels.mean(axis=1))
    return np.stack(octaves, axis=1)


def _shape(power: np.ndarray, cut: np.ndarray) -> dict[str, np.ndarray]:
    """Mean and spread over frames of five numbers a frame; silent frames hardly count."""
    hertz = np.fft.rfftfreq(N_FFT, 1 / SAMPLE_RATE).astype(np.float32)
    power = power + np.float32(BIN_FLOOR)
    total = power.sum(axis=2)
    centroid = power @ hertz / total
    bandwidth = np.sqrt(np.maximum(power @ np.square(hertz) / total - np.square(centroid), 0))
    reached = np.cumsum(power, axis=2) < ROLLOFF_SHARE * total[:, :, None]
    rolloff = reached.sum(axis=2) * hertz[1]
    flatness = np.log10(power).mean(axis=2) - np.log10(total / len(hertz))
    crossed = np.cumsum(np.diff(cut > 0, axis=1, prepend=False), axis=1)
    crossings = (crossed[:, N_FFT - 1 :: HOP] - crossed[:, : -N_FFT + 1 : HOP]) / N_FFT
    frames = np.stack(
        [
            *(np.log2(hz + 20) - 10 for hz in (centroid, bandwidth, rolloff)),
            flatness,
            10 * crossings,
        ],
        axis=2,
    )
    weights = np.sqrt(total)[:, :, None] / np.sqrt(total).sum(axis=1)[:, None, None]
    means = (weights * frames).sum(axis=1)
    spread = np.sqrt((weights * np.square(frames - means[:, None])).sum(axis=1))
    return {"shape": means, "shape_spread": spread}


def mel_bank() -> np.ndarray:
    """(bins, bands): triangles on Slaney's mel scale, linear below 1 kHz and logarithmic above."""
    step = np.log(6.4) / 27
    top = 15 + np.log(SAMPLE_RATE / 2 / 1000) / step
    mels = np.linspace(0, top, N_MELS + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(step * (mels - 15)))
    hertz = np.fft.rfftfreq(N_FFT, 1 / SAMPLE_RATE)[:, None]
    rising = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def _pitch_class_bank() -> np.ndarray:
    """(bins, 12): each bin shared between the two pitch classes around its frequency."""
    hertz = np.fft.rfftfreq(N_FFT, 1 / SAMPLE_RATE)
    inside = (hertz >= PITCH_RANGE_HZ[0]) & (hertz <= PITCH_RANGE_HZ[1])
    semitones = 9 + 12 * np.log2(np.where(inside, hertz, 440.0) / 440.0)
    below = np.floor(semitones)
    bank = np.zeros((len(hertz), 12), dtype=np.float32)
    bins = np.arange(len(hertz))
    bank[bins, below.astype(int) % 12] = 1 - (semitones - below)
    bank[bins, (below.astype(int) + 1) % 12] = semitones - below
    return bank * inside[:, None].astype(np.float32)
