"""From a tune to a FLAC file: perform its score (pretty_midi notes), synthesise, write.

`render_tune` runs in worker processes; what it writes depends on its arguments alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from feature_repo.errors import InputError
from ray_jobs.demo_world.arrangements import Arrangement, arrange
from ray_jobs.demo_world.scores import Music, UnusableScore, read_music
from ray_jobs.demo_world.timbres import SAMPLE_RATE, TIMBRES, play_note
from ray_jobs.demo_world.tunes import CLIP_S, Tune

TAIL_S = 0.5
LOUDNESS_RMS, PEAK = 0.12, 0.95
"""Loudness that a track is brought to, unless its peaks would pass PEAK."""
ACCENTS = {"bar": 104, "beat": 92, "between": 80}
TOUCH = 6
"""Loudness (MIDI velocity) by place in the bar, and how far the touch wanders from it."""
GAP = 0.93
"""Share of its written length that a note sounds, so that repeated notes stay apart."""
REFLECTIONS = ((0.023, 0.22), (0.041, 0.14), (0.067, 0.08))
"""A small room: delay in seconds and gain of each echo."""


@dataclass(frozen=True)
class Rendered:
    """A track that was written, with what can be heard in it."""

    track_id: int
    tune: Tune
    arrangement: Arrangement
    metre: str
    tonic: str
    mode: str
    lyrics: str | None
    duration_s: float
    notes_per_second: float
    mean_pitch: float


@dataclass(frozen=True)
class RenderTask:
    """A tune to render as a track, and where to."""

    track_id: int
    tune: Tune
    folder: Path
    seed: int


def require_pretty_midi() -> Any:
    """The pretty_midi module, or an error that names what to install."""
    try:
        import pretty_midi
    except ImportError as error:
        raise InputError(
            f"the demo world needs {error.name}, which is not installed: "
            "pip install 'crescendo[demo]'"
        ) from error
    return pretty_midi


def audio_path(folder: Path, track_id: int) -> Path:
    return folder / f"{track_id}.flac"


def render_tune(task: RenderTask) -> Rendered | None:
    """Writes `<track_id>.flac` into the task's folder; None if the tune's score is unusable."""
    import soundfile

    try:
        music = read_music(task.tune)
    except UnusableScore:
        return None
    arrangement = arrange(task.tune, music, track_id=task.track_id, seed=task.seed)
    performance = perform(music, arrangement)
    samples = synthesise(performance, arrangement.timbre)
    path = audio_path(task.folder, task.track_id)
    pcm = np.round(samples * 32767).astype(np.int16)
    soundfile.write(path, pcm, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    notes = performance.instruments[0].notes
    lengths = np.array([note.end - note.start for note in notes])
    return Rendered(
        track_id=task.track_id,
        tune=task.tune,
        arrangement=arrangement,
        metre=music.metre,
        tonic=music.tonic,
        mode=music.mode,
        lyrics=music.lyrics,
        duration_s=len(samples) / SAMPLE_RATE,
        notes_per_second=len({round(note.start, 3) for note in notes}) / CLIP_S,
        mean_pitch=float(np.average([note.pitch for note in notes], weights=lengths)),
    )


def render_tunes(tasks: list[RenderTask]) -> list[Rendered | None]:
    """Renders tasks in order: excerpts of one movement in one batch share its parsed score."""
    return [render_tune(task) for task in tasks]


def perform(music: Music, arrangement: Arrangement) -> Any:
    """The first CLIP_S seconds as a pretty_midi.PrettyMIDI; a shorter tune starts over."""
    pretty_midi = require_pretty_midi()
    random = np.random.default_rng(arrangement.touch_seed)
    program = TIMBRES[arrangement.timbre].gm_program
    instrument = pretty_midi.Instrument(pretty_midi.instrument_name_to_program(program))
    times_through = int(np.ceil(CLIP_S / (music.quarters * arrangement.seconds_per_quarter)))
    for again in range(times_through):
        for onset, length, pitch in zip(music.onsets, music.durations, music.pitches, strict=True):
            start = (again * music.quarters + onset) * arrangement.seconds_per_quarter
            if start >= CLIP_S:
                break
            end = min(start + GAP * length * arrangement.seconds_per_quarter, CLIP_S)
            velocity = ACCENTS[_place_in_bar(music, onset)] + random.integers(-TOUCH, TOUCH + 1)
            number = int(pitch) + arrangement.octave_shift
            instrument.notes.append(pretty_midi.Note(int(velocity), number, start, end))
    performance = pretty_midi.PrettyMIDI()
    performance.instruments.append(instrument)
    return performance


def synthesise(performance: Any, timbre_name: str) -> np.ndarray:
    """Mono samples of a performance; equal notes are computed once."""
    pretty_midi = require_pretty_midi()
    timbre = TIMBRES[timbre_name]
    samples = np.zeros(int((CLIP_S + TAIL_S) * SAMPLE_RATE), dtype=np.float32)
    played: dict[tuple[int, int], np.ndarray] = {}
    for note in performance.instruments[0].notes:
        length = round((note.end - note.start) * 1000)
        if (note.pitch, length) not in played:
            frequency = pretty_midi.note_number_to_hz(note.pitch)
            played[note.pitch, length] = play_note(timbre, frequency, length / 1000)
        start = round(note.start * SAMPLE_RATE)
        wave = played[note.pitch, length][: len(samples) - start]
        samples[start : start + len(wave)] += wave * np.float32((note.velocity / 127) ** 2)
    dry = samples.copy()
    for delay_s, gain in REFLECTIONS:
        delay = int(delay_s * SAMPLE_RATE)
        samples[delay:] += np.float32(gain) * dry[:-delay]
    fade = int(TAIL_S / 2 * SAMPLE_RATE)
    samples[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    rms = float(np.sqrt((samples**2).mean()))
    return samples * np.float32(min(LOUDNESS_RMS / rms, PEAK / float(np.abs(samples).max())))


def _place_in_bar(music: Music, onset: float) -> str:
    position = (onset - music.pickup) % music.bar_quarters
    if min(position, music.bar_quarters - position) < 0.02:
        return "bar"
    offbeat = position % music.beat_quarters
    return "beat" if min(offbeat, music.beat_quarters - offbeat) < 0.02 else "between"
