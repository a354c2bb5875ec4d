"""Six clearly distinct timbres by additive synthesis: partials with envelopes, one note at a time.

No soundfont and no system library is needed, and the same note gives the same samples everywhere
in a track, so notes are computed once and reused.
"""

from dataclasses import dataclass

import numpy as np

SAMPLE_RATE = 22_050
HIGHEST_PARTIAL_HZ = 0.45 * SAMPLE_RATE
BREATH_SEED = 7
NOTE_RMS = 0.2


@dataclass(frozen=True, kw_only=True)
class Timbre:
    """Partials as multiples of the note's frequency, and how they start, shake and fade."""

    gm_program: str
    partials: np.ndarray
    amplitudes: np.ndarray
    attack_s: float
    release_s: float
    decay_per_s: np.ndarray | None = None
    ring_s: float = 0.0
    vibrato_hz: float = 0.0
    vibrato_depth: float = 0.0
    formants: tuple[tuple[float, float, float], ...] = ()
    second_reed_cents: float = 0.0
    breath: float = 0.0


def _partials(count: int) -> np.ndarray:
    return np.arange(1.0, count + 1)


_TWELVE, _TWENTY = _partials(12), _partials(20)
_PIPE_ORGAN = np.array([0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0])

TIMBRES: dict[str, Timbre] = {
    "flute": Timbre(
        gm_program="Flute",
        partials=_partials(5),
        amplitudes=np.array([1.0, 0.22, 0.09, 0.03, 0.01]),
        attack_s=0.05,
        release_s=0.07,
        vibrato_hz=5.0,
        vibrato_depth=0.004,
        breath=0.012,
    ),
    "fiddle": Timbre(
        gm_program="Violin",
        partials=_TWENTY,
        amplitudes=1 / _TWENTY,
        attack_s=0.035,
        release_s=0.06,
        vibrato_hz=5.8,
        vibrato_depth=0.006,
        # Air resonance, main wood resonance and bridge hill of a violin: Hz, width, gain.
        formants=((280.0, 60.0, 1.0), (460.0, 90.0, 1.6), (2600.0, 700.0, 2.2)),
    ),
    "pipes": Timbre(
        gm_program="Bagpipe",
        partials=_TWENTY,
        amplitudes=_TWENTY**-0.35,
        attack_s=0.008,
        release_s=0.02,
        second_reed_cents=7.0,
    ),
    "harp": Timbre(
        gm_program="Orchestral Harp",
        partials=_TWELVE,
        amplitudes=_TWELVE**-1.6,
        attack_s=0.004,
        release_s=0.15,
        decay_per_s=1.2 + 0.9 * _TWELVE,
        ring_s=1.2,
    ),
    "banjo": Timbre(
        gm_program="Banjo",
        partials=_TWENTY,
        # Plucked close to the bridge: the comb of the plucking point leaves the high partials.
        amplitudes=np.abs(np.sin(np.pi * _TWENTY * 0.09)) * _TWENTY**-0.3,
        attack_s=0.001,
        release_s=0.04,
        decay_per_s=7.0 + 1.0 * _TWENTY,
        ring_s=0.35,
    ),
    "organ": Timbre(
        gm_program="Church Organ",
        partials=_PIPE_ORGAN,
        amplitudes=np.array([0.7, 1.0, 0.25, 0.7, 0.3, 0.4, 0.12, 0.2]),
        attack_s=0.02,
        release_s=0.09,
    ),
}


def play_note(timbre: Timbre, frequency: float, duration_s: float) -> np.ndarray:
    """Float32 samples of one note, all timbres about equally loud, its tail included."""
    sounding_s = max(duration_s, timbre.ring_s) + timbre.release_s
    time = np.arange(int(sounding_s * SAMPLE_RATE)) / SAMPLE_RATE
    audible = timbre.partials * frequency < HIGHEST_PARTIAL_HZ
    partials = timbre.partials[audible]
    amplitudes = timbre.amplitudes[audible] * _formant_gain(timbre, partials * frequency)
    samples = _sum_of_partials(timbre, partials, amplitudes, frequency, time, audible)
    if timbre.second_reed_cents:
        detuned = frequency * 2 ** (timbre.second_reed_cents / 1200)
        samples = samples + _sum_of_partials(timbre, partials, amplitudes, detuned, time, audible)
    if timbre.breath:
        random = np.random.default_rng(BREATH_SEED)
        noise = random.standard_normal(len(time), dtype=np.float32)
        samples = samples + np.float32(timbre.breath * amplitudes.sum()) * noise
    loudness = np.sqrt((amplitudes**2).sum() / 2)
    return samples * _envelope(timbre, time, sounding_s) * np.float32(NOTE_RMS / loudness)


def _sum_of_partials(
    timbre: Timbre,
    partials: np.ndarray,
    amplitudes: np.ndarray,
    frequency: float,
    time: np.ndarray,
    audible: np.ndarray,
) -> np.ndarray:
    cycles = frequency * time
    if timbre.vibrato_hz:
        onset = np.clip((time - 0.12) / 0.2, 0.0, 1.0)
        swing = np.sin(2 * np.pi * timbre.vibrato_hz * time) * onset
        cycles += timbre.vibrato_depth * frequency / (2 * np.pi * timbre.vibrato_hz) * swing
    turns = np.outer(partials, cycles)
    turns -= np.floor(turns)  # keeps the phase exact when it is rounded to float32
    waves = np.sin((2 * np.pi * turns).astype(np.float32))
    if timbre.decay_per_s is not None:
        waves *= np.exp(-np.outer(timbre.decay_per_s[audible], time).astype(np.float32))
    # A plain sum: a BLAS product may start threads, and its rounding depends on how many.
    waves *= amplitudes.astype(np.float32)[:, None]
    return waves.sum(axis=0)


def _formant_gain(timbre: Timbre, frequencies: np.ndarray) -> np.ndarray:
    gain = np.full(len(frequencies), 1.0)
    for centre, width, height in timbre.formants:
        gain += height * np.exp(-(((frequencies - centre) / width) ** 2) / 2)
    return gain


def _envelope(timbre: Timbre, time: np.ndarray, sounding_s: float) -> np.ndarray:
    rise = np.clip(time / timbre.attack_s, 0.0, 1.0)
    fall = np.clip((sounding_s - time) / timbre.release_s, 0.0, 1.0)
    return (rise * fall).astype(np.float32)
