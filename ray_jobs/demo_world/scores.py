"""Reads the notes of a tune with music21: ABC tunes token by token, movements from MusicXML.

music21's ABC tokens carry pitch (key and accidentals applied) and length (broken rhythms applied);
reading them directly is twenty times faster than building music21 streams. Grace notes are left
out, and repeat signs are passed over: a track is shorter than most tunes.
"""

import warnings
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ray_jobs.demo_world.tunes import Tune

MIN_NOTES = 12
MAX_QUARTERS = 256.0


class UnusableScore(Exception):
    """A tune whose notation gives too little music to play; another one takes its place."""


@dataclass(frozen=True)
class Music:
    """Notes in quarter lengths from the start, sorted by onset, with the metre and mode."""

    onsets: np.ndarray
    durations: np.ndarray
    pitches: np.ndarray
    quarters: float
    pickup: float
    metre: str
    bar_quarters: float
    beat_quarters: float
    tonic: str
    mode: str
    lyrics: str | None = None


def read_music(tune: Tune) -> Music:
    """The notes of one tune; raises UnusableScore when there are too few."""
    if tune.abc is not None:
        return _read_abc(tune.abc)
    assert tune.path is not None
    return _read_movement(tune.path, tune.first_bar)


def _read_abc(abc: str) -> Music:
    from music21 import abcFormat

    handler = abcFormat.ABCHandler()
    handler.process(abc)
    notes: list[tuple[float, float, int]] = []
    key: tuple[int, str | None] | None = None
    metre: str | None = None
    time = 0.0
    pickup: float | None = None
    in_grace = tied = False
    for token in handler.tokens:
        if isinstance(token, abcFormat.ABCMetadata):
            if token.isKey() and key is None:
                key = token.getKeySignatureParameters()
            elif token.isMeter() and metre is None:
                parameters = token.getTimeSignatureParameters()
                metre = f"{parameters[0]}/{parameters[1]}" if parameters else None
        elif isinstance(token, abcFormat.ABCGraceStart):
            in_grace = True
        elif isinstance(token, abcFormat.ABCGraceStop):
            in_grace = False
        elif isinstance(token, abcFormat.ABCBar):
            pickup = time if pickup is None and time > 0 else pickup
        elif isinstance(token, abcFormat.ABCTie):
            tied = True
        elif isinstance(token, abcFormat.ABCNote) and not in_grace:
            tuplet = token.activeTuplet.tupletMultiplier() if token.activeTuplet else 1
            length = float(token.quarterLength * tuplet)
            chord = isinstance(token, abcFormat.ABCChord)
            members = token.subTokens if chord else [token]
            pitches = [_midi_number(n.pitchName) for n in members if n.pitchName]
            if tied and notes and pitches == [notes[-1][2]]:
                # `A-A` is a tie, while old files write the slur `A-B` with the same sign.
                onset, held, pitch = notes[-1]
                notes[-1] = (onset, held + length, pitch)
            else:
                notes.extend((time, length, pitch) for pitch in pitches)
            time += length
            tied = False
    if key is None or metre is None:
        raise UnusableScore("the tune has no key or no metre")
    tonic, mode = _key_names(*key)
    return _music(notes, time, pickup or 0.0, metre, tonic, mode)


def _read_movement(path: Path, first_bar: int) -> Music:
    """Every part from one bar on, up to the end of the movement (or MAX_QUARTERS)."""
    movement = _parsed_movement(path)
    start = movement.bar_offsets[min(first_bar, len(movement.bar_offsets) - 1)]
    end = min(movement.quarters, start + MAX_QUARTERS)
    notes = [
        (onset - start, min(length, end - onset), pitch)
        for onset, length, pitch in movement.notes
        if start <= onset < end
    ]
    return _music(
        notes,
        end - start,
        0.0,
        movement.metre,
        movement.tonic,
        movement.mode,
        movement.lyrics,
    )


@dataclass(frozen=True)
class _Movement:
    notes: list[tuple[float, float, int]]
    bar_offsets: list[float]
    quarters: float
    metre: str
    tonic: str
    mode: str
    lyrics: str | None


@lru_cache(maxsize=2)
def _parsed_movement(path: Path) -> _Movement:
    from music21 import converter, stream, text

    with warnings.catch_warnings():
        # Finale files write grace bars that music21 finds overfull; the notes are right.
        warnings.simplefilter("ignore")
        score: Any = converter.parse(path, forceSource=True, storePickle=False)
    key = score.analyze("key")
    lyrics = text.assembleLyrics(score.parts[0], lineNumber=1)
    notes: list[tuple[float, float, int]] = []
    for part in score.parts:
        notes.extend(_notes_of_part(part))
    first_part = score.parts[0]
    metre = first_part.recurse().getElementsByClass("TimeSignature").first().ratioString
    return _Movement(
        notes=notes,
        bar_offsets=[float(bar.offset) for bar in first_part.getElementsByClass(stream.Measure)],
        quarters=float(first_part.duration.quarterLength),
        metre=metre,
        tonic=key.tonic.name.replace("-", "b"),
        mode=key.mode,
        lyrics=lyrics or None,
    )


def _notes_of_part(part: Any) -> list[tuple[float, float, int]]:
    """Notes as (onset, length, pitch), with the ones that a tie joins made one."""
    notes: list[tuple[float, float, int]] = []
    tied: dict[int, int] = {}
    for element in part.flatten().notes:
        onset, length = float(element.offset), float(element.quarterLength)
        if length == 0:  # a grace note or a chord symbol
            continue
        for member in element.notes if element.isChord else [element]:
            pitch = member.pitch.midi
            tie = member.tie.type if member.tie else None
            if tie in ("continue", "stop") and pitch in tied:
                start, held, _ = notes[tied[pitch]]
                notes[tied[pitch]] = (start, held + length, pitch)
            else:
                notes.append((onset, length, pitch))
                tied[pitch] = len(notes) - 1
            if tie in (None, "stop"):
                tied.pop(pitch, None)
    return notes


def _music(
    notes: list[tuple[float, float, int]],
    quarters: float,
    pickup: float,
    metre: str,
    tonic: str,
    mode: str,
    lyrics: str | None = None,
) -> Music:
    if len(notes) < MIN_NOTES:
        raise UnusableScore(f"the tune has {len(notes)} notes, fewer than {MIN_NOTES}")
    onsets, durations, pitches = map(np.array, zip(*sorted(notes), strict=True))
    silence = onsets[0]
    beats, unit = map(int, metre.split("/"))
    bar_quarters = beats * 4 / unit
    return Music(
        onsets=onsets - silence,
        durations=durations,
        pitches=pitches,
        quarters=quarters - silence,
        # A first bar as long as the metre asks is no pickup.
        pickup=(pickup - silence) % bar_quarters,
        metre=metre,
        bar_quarters=bar_quarters,
        # A dotted beat in compound time (6/8, 9/8, 12/8), the written unit elsewhere.
        beat_quarters=12 / unit if unit >= 8 and beats % 3 == 0 else 4 / unit,
        tonic=tonic,
        mode=mode,
        lyrics=lyrics,
    )


def _key_names(sharps: int, mode: str | None) -> tuple[str, str]:
    """(2, 'dorian') -> ('E', 'dorian'). ABC's Highland pipe key carries no mode: A mixolydian."""
    from music21 import key

    mode = mode or "mixolydian"
    return key.KeySignature(sharps).asKey(mode).tonic.name.replace("-", "b"), mode


@cache
def _midi_number(pitch_name: str) -> int:
    from music21 import pitch

    return int(pitch.Pitch(pitch_name).midi)
