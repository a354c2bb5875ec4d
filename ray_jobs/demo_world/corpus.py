"""Which collections of the music21 corpus the demo plays, and why these.

All the music is out of copyright; what differs is the terms of its encodings. music21 says so
itself (corpus/license.txt: "some encodings may not be used for commercial uses"), so only
encodings that nobody restricts are used:

- oneills1850: "O'Neill's Music of Ireland" (1903), note-by-note transcriptions for an open project
  that John Chambers gave to music21; no file carries a restriction. Left out of it: the tunes
  transcribed by Henrik Norbeck, whose own tune books are for non-commercial use (nothing says that
  these are; leaving them out costs nothing).
- ryansMammoth: "Ryan's Mammoth Collection" (Boston, 1883), a project like it, no restriction.
- haydn, mozart, beethoven: string quartets that music21 took from Project Gutenberg's public-domain
  sheet music (the movements engraved in Finale; later additions from elsewhere are left out).
- leadSheet/fosterBrownHair: its file says "Public Domain". The only free score with lyrics.

Left out:

- essenFolksong: its license.txt allows "non-commercial distribution and use" only.
- bach: the chorales are Margaret Greentree's edition, given by permission; she kept commercial use.
- airdsAirs, miscFolk: Jack Campin's editions, distributed by his permission; no licence for others.
- palestrina: "rights to all derivative electronic formats reserved".
- josquin: GPL. ciconia, luca, schumann_clara, beach: CC BY-SA. Audio made of them inherits that.
- nottingham-dataset (two tunes), trecento, monteverdi, corelli and all else: no clear terms, or
  too few pieces to matter.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Collection:
    """One collection: how it is called in the world's tags, its share, why it may be used."""

    name: str
    share: float
    licence: str


ONEILL = Collection(
    name="O'Neill's Music of Ireland",
    share=0.52,
    licence="printed 1903, public domain; transcriptions without restriction (music21 corpus)",
)
RYAN = Collection(
    name="Ryan's Mammoth Collection",
    share=0.35,
    licence="printed 1883, public domain; transcriptions without restriction (music21 corpus)",
)
QUARTETS = Collection(
    name="Viennese string quartets",
    share=0.125,
    licence="public domain; encodings from Project Gutenberg's sheet music (music21 corpus)",
)
LEAD_SHEETS = Collection(
    name="Parlour songs",
    share=0.005,
    licence="the score itself says: Public Domain (music21 corpus)",
)
COLLECTIONS = (ONEILL, RYAN, QUARTETS, LEAD_SHEETS)


@dataclass(frozen=True)
class Movement:
    """A score of several minutes, from which excerpts are taken as tracks of their own."""

    path: str
    composer: str
    title: str
    tune_type: str
    region: str
    bars: int
    bars_per_minute: float
    collection: Collection = QUARTETS
    excerpts: bool = True


def _quartet(
    path: str, composer: str, title: str, tune_type: str, bars: int, bars_per_minute: float
) -> Movement:
    return Movement(f"{path}.mxl", composer, title, tune_type, "Austrian", bars, bars_per_minute)


HAYDN, MOZART, BEETHOVEN = "Joseph Haydn", "Wolfgang Amadeus Mozart", "Ludwig van Beethoven"
MOVEMENTS = (
    _quartet("haydn/opus1no1/movement2", HAYDN, "Quartet Op. 1 No. 1, II", "minuet", 62, 42),
    _quartet("haydn/opus1no1/movement3", HAYDN, "Quartet Op. 1 No. 1, III", "adagio", 42, 11),
    _quartet("haydn/opus1no1/movement4", HAYDN, "Quartet Op. 1 No. 1, IV", "minuet", 46, 42),
    _quartet("haydn/opus1no1/movement5", HAYDN, "Quartet Op. 1 No. 1, V", "presto", 68, 70),
    _quartet("haydn/opus74no1/movement2", HAYDN, "Quartet Op. 74 No. 1, II", "andante", 174, 36),
    _quartet("haydn/opus74no1/movement3", HAYDN, "Quartet Op. 74 No. 1, III", "minuet", 113, 46),
    _quartet("mozart/k80/movement1", MOZART, "Quartet K. 80, I", "adagio", 67, 15),
    _quartet("mozart/k80/movement2", MOZART, "Quartet K. 80, II", "allegro", 84, 32),
    _quartet("mozart/k80/movement3", MOZART, "Quartet K. 80, III", "minuet", 52, 42),
    _quartet("mozart/k80/movement4", MOZART, "Quartet K. 80, IV", "allegro", 71, 38),
    _quartet("mozart/k155/movement1", MOZART, "Quartet K. 155, I", "allegro", 119, 33),
    _quartet("mozart/k155/movement2", MOZART, "Quartet K. 155, II", "andante", 50, 22),
    _quartet("mozart/k155/movement3", MOZART, "Quartet K. 155, III", "allegro", 103, 60),
    _quartet("mozart/k156/movement1", MOZART, "Quartet K. 156, I", "presto", 180, 76),
    _quartet("mozart/k156/movement2", MOZART, "Quartet K. 156, II", "adagio", 37, 11),
    _quartet("mozart/k156/movement3", MOZART, "Quartet K. 156, III", "minuet", 62, 42),
    _quartet("mozart/k458/movement2", MOZART, "Quartet K. 458, II", "minuet", 63, 38),
    _quartet("mozart/k458/movement3", MOZART, "Quartet K. 458, III", "adagio", 53, 10),
    _quartet(
        "beethoven/opus18no1/movement2", BEETHOVEN, "Quartet Op. 18 No. 1, II", "adagio", 110, 14
    ),
    _quartet(
        "beethoven/opus18no1/movement3", BEETHOVEN, "Quartet Op. 18 No. 1, III", "scherzo", 145, 96
    ),
    Movement(
        path="leadSheet/fosterBrownHair.mxl",
        composer="Stephen Foster",
        title="Jeanie with the Light Brown Hair",
        tune_type="song",
        region="American",
        bars=35,
        bars_per_minute=34,
        collection=LEAD_SHEETS,
        excerpts=False,
    ),
)
