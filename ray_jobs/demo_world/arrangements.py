"""How a tune is played: timbre, register and tempo, drawn by the seed, leaning on the tune's type.

The lean gives the catalogue structure (airs tend to be slow and on flute or harp, reels fast and on
fiddle or banjo), the rest is chance, so that nothing of the sound follows from the text alone.
"""

from dataclasses import dataclass

import numpy as np

from ray_jobs.demo_world.corpus import QUARTETS
from ray_jobs.demo_world.scores import Music
from ray_jobs.demo_world.tunes import Tune

TIMBRES = ("flute", "fiddle", "pipes", "harp", "banjo", "organ")
ARRANGEMENT_STREAM = 2

BARS_PER_MINUTE = {
    "reel": 54.0,
    "double jig": 58.0,
    "slip jig": 42.0,
    "slide": 62.0,
    "hornpipe": 42.0,
    "clog": 40.0,
    "strathspey": 33.0,
    "fling": 38.0,
    "long dance": 40.0,
    "walkaround": 48.0,
    "waltz": 50.0,
    "dance": 46.0,
}
"""Usual tempi of dances, which keep their bars whatever metre they are noted in."""
QUARTERS_PER_MINUTE = {"air": 78.0, "march": 150.0}
"""Usual tempi of tunes whose bars take as long as they have quarter notes."""

TEMPO_FACTORS = (0.72, 1.0, 1.32)
TEMPO_SHARES = (0.3, 0.4, 0.3)
OCTAVE_SHIFTS = (-12, 0, 12)
OCTAVE_SHARES = {"tune": (0.25, 0.5, 0.25), "movement": (0.1, 0.8, 0.1)}

EVEN_SHARE = 0.4
"""Part of the timbre's odds that is equal for all; the rest leans on the tune's type."""
TIMBRE_LEANS = {
    "air": {"flute": 0.45, "harp": 0.45, "organ": 0.1},
    "song": {"flute": 0.5, "harp": 0.5},
    "march": {"pipes": 0.6, "flute": 0.4},
    "double jig": {"pipes": 0.4, "flute": 0.35, "fiddle": 0.25},
    "slip jig": {"pipes": 0.5, "harp": 0.25, "flute": 0.25},
    "reel": {"fiddle": 0.5, "banjo": 0.35, "pipes": 0.15},
    "hornpipe": {"banjo": 0.5, "fiddle": 0.3, "harp": 0.2},
    "clog": {"banjo": 0.8, "organ": 0.2},
    "strathspey": {"fiddle": 0.8, "pipes": 0.2},
}
DANCE_LEAN = {"fiddle": 0.4, "banjo": 0.4, "pipes": 0.2}
QUARTET_LEAN = {"fiddle": 0.55, "organ": 0.35, "harp": 0.1}


@dataclass(frozen=True)
class Arrangement:
    """What makes one rendering of a tune sound unlike another."""

    timbre: str
    octave_shift: int
    bars_per_minute: float
    seconds_per_quarter: float
    touch_seed: int


def arrange(tune: Tune, music: Music, *, track_id: int, seed: int) -> Arrangement:
    """The arrangement of a track: the same for the same seed and track."""
    random = np.random.default_rng([seed, ARRANGEMENT_STREAM, track_id])
    timbre = TIMBRES[random.choice(len(TIMBRES), p=_timbre_odds(tune))]
    kind = "tune" if tune.bars_per_minute is None else "movement"
    octave_shift = int(random.choice(OCTAVE_SHIFTS, p=OCTAVE_SHARES[kind]))
    factor = random.choice(TEMPO_FACTORS, p=TEMPO_SHARES) * random.uniform(0.94, 1.06)
    bars_per_minute = float(_usual_bars_per_minute(tune, music) * factor)
    return Arrangement(
        timbre=timbre,
        octave_shift=octave_shift,
        bars_per_minute=bars_per_minute,
        seconds_per_quarter=60 / (bars_per_minute * music.bar_quarters),
        touch_seed=int(random.integers(2**31)),
    )


def _timbre_odds(tune: Tune) -> np.ndarray:
    is_quartet = tune.collection == QUARTETS
    lean = QUARTET_LEAN if is_quartet else TIMBRE_LEANS.get(tune.tune_type, DANCE_LEAN)
    leaning = np.array([lean.get(timbre, 0.0) for timbre in TIMBRES])
    return EVEN_SHARE / len(TIMBRES) + (1 - EVEN_SHARE) * leaning


def _usual_bars_per_minute(tune: Tune, music: Music) -> float:
    if tune.bars_per_minute is not None:
        return tune.bars_per_minute
    if tune.tune_type in QUARTERS_PER_MINUTE:
        return QUARTERS_PER_MINUTE[tune.tune_type] / music.bar_quarters
    return BARS_PER_MINUTE.get(tune.tune_type, BARS_PER_MINUTE["dance"])
