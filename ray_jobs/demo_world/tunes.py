"""Chooses the demo's tunes: every piece of the free collections, shuffled by the seed, cut to size.

Only headers are read here (title, type, collector); the notes are read by `scores`, in parallel.
"""

import importlib.util
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from feature_repo.errors import InputError
from ray_jobs.demo_world.corpus import COLLECTIONS, MOVEMENTS, ONEILL, RYAN, Collection

CLIP_S = 12.0
"""Seconds of music in a track."""

ONEILL_FOLDER, RYAN_FOLDER = "oneills1850", "ryansMammoth"
LEFT_OUT_TRANSCRIBER = "norbeck"
SELECTION_STREAM = 1

ONEILL_SECTIONS = (
    (700, "air"),
    (1115, "double jig"),
    (1175, "slip jig"),
    (1555, "reel"),
    (1750, "hornpipe"),
    (1800, "long dance"),
    (1850, "march"),
)
"""Last number of each section of the printed book."""

TYPE_NAMES = {"jig": "double jig", "slipjig": "slip jig", "highland fling": "fling"}
SCOTTISH_TYPES = ("strathspey", "fling")
COLLECTED_BY = re.compile(r"collected\s+(?:by|from)\s+([^\"\n]+)", re.IGNORECASE)
RYAN_TITLE = re.compile(
    r"[\s,.]*-+\s*(reel|hornpipe|slip ?jig|jig|clog|strathspey|(?:highland )?fling|walkaround)\b.*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Tune:
    """One piece of music to render: where its notes are, and what its header says."""

    tune_key: str
    collection: Collection
    title: str
    artist: str
    tune_type: str
    region: str
    abc: str | None = None
    path: Path | None = None
    first_bar: int = 0
    bars_per_minute: float | None = None


def choose_tunes(seed: int) -> list[Tune]:
    """All usable tunes in the seed's order: take as many from the front as wanted.

    Each tune gets an exponential waiting time at the rate of its collection's share, so that any
    front part of the list is mixed in those shares until a collection runs out.
    """
    tunes = sorted(_corpus_tunes(), key=lambda tune: tune.tune_key)
    sizes = {collection.name: 0 for collection in COLLECTIONS}
    for tune in tunes:
        sizes[tune.collection.name] += 1
    rates = np.array([tune.collection.share / sizes[tune.collection.name] for tune in tunes])
    random = np.random.default_rng([seed, SELECTION_STREAM])
    waiting = random.exponential(size=len(tunes)) / rates
    return [tunes[index] for index in np.argsort(waiting, kind="stable")]


def corpus_folder() -> Path:
    """Folder of the installed music21 corpus."""
    spec = importlib.util.find_spec("music21")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "the demo world needs music21, which is not installed: pip install 'crescendo[demo]'"
        )
    return Path(spec.submodule_search_locations[0]) / "corpus"


def _corpus_tunes() -> Iterator[Tune]:
    root = corpus_folder()
    yield from _tunes_of_books(root)
    for movement in MOVEMENTS:
        stride = max(8, math.ceil(CLIP_S * movement.bars_per_minute / 60))
        last = movement.bars - stride + 1 if movement.excerpts else 1
        for first_bar in range(0, last, stride):
            name = movement.path.removesuffix(".mxl")
            part = f", from bar {first_bar + 1}" if movement.excerpts else ""
            yield Tune(
                tune_key=f"{name}#{first_bar:03d}",
                collection=movement.collection,
                title=movement.title + part,
                artist=movement.composer,
                tune_type=movement.tune_type,
                region=movement.region,
                path=root / movement.path,
                first_bar=first_bar,
                bars_per_minute=movement.bars_per_minute,
            )


def _tunes_of_books(root: Path) -> Iterator[Tune]:
    """Tunes of the ABC collections, one a number or title of the printed book."""
    seen: set[str] = set()
    for book, tune_of in ((ONEILL_FOLDER, _oneill_tune), (RYAN_FOLDER, _ryan_tune)):
        for path in sorted((root / book).glob("*.abc")):
            text = path.read_text(encoding="utf-8", errors="replace")
            for abc in re.split(r"(?m)^(?=X:)", text)[1:]:
                header = _abc_header(abc)
                if LEFT_OUT_TRANSCRIBER in header.get("Z", "").lower():
                    continue
                tune = tune_of(path, abc, header)
                # Some numbers of the book were transcribed twice.
                if tune.tune_key not in seen:
                    seen.add(tune.tune_key)
                    yield tune


def _abc_header(abc: str) -> dict[str, str]:
    """Header fields by letter up to the key: all lines of N and Z, the first of any other."""
    fields: dict[str, str] = {}
    for line in abc.splitlines():
        match = re.match(r"([A-Za-z]):\s*(.*)", line)
        if match is None:
            continue
        letter, value = match.group(1), match.group(2).partition("%")[0].strip().strip('"')
        if letter in "NZ":
            fields[letter] = f"{fields.get(letter, '')}\n{value}"
        elif value:
            fields.setdefault(letter, value)
        if letter == "K":
            break
    return fields


def _oneill_tune(path: Path, abc: str, header: dict[str, str]) -> Tune:
    number = int(header["X"])
    section = next(name for last, name in ONEILL_SECTIONS if number <= last)
    collected = COLLECTED_BY.search("\n".join((header.get("N", ""), header.get("C", ""))))
    if "Carolan" in header.get("C", ""):
        artist = "Turlough O'Carolan"
    elif collected:
        artist = re.sub(r"\.(?=\w)", ". ", collected.group(1).strip(' .,()"'))
    else:
        artist = "Traditional"
    return Tune(
        tune_key=f"{ONEILL_FOLDER}/{number:04d}",
        collection=ONEILL,
        title=_title(header.get("T", path.stem)),
        artist=artist,
        tune_type=_tune_type(header.get("R", section), header),
        region="Irish",
        abc=abc,
    )


def _ryan_tune(path: Path, abc: str, header: dict[str, str]) -> Tune:
    title = header.get("T", path.stem)
    named = RYAN_TITLE.search(title)
    tune_type = _tune_type(header.get("R") or (named.group(1) if named else "dance"), header)
    scottish = (
        tune_type in SCOTTISH_TYPES
        or "scotch" in (header.get("C", "") + header.get("O", "")).lower()
    )
    composer = header.get("C", "").strip(" .")
    return Tune(
        tune_key=f"{RYAN_FOLDER}/{path.stem}",
        collection=RYAN,
        title=_title(title[: named.start()] if named else title),
        artist=composer.title() if composer and "scotch" not in composer.lower() else "Traditional",
        tune_type=tune_type,
        region="Scottish" if scottish else "American",
        abc=abc,
    )


def _tune_type(name: str, header: dict[str, str]) -> str:
    """One name for the spellings of a type; what makes a jig a slip jig is its 9/8 metre."""
    name = name.strip().lower()
    name = TYPE_NAMES.get(name, name)
    return "slip jig" if name == "double jig" and header.get("M", "").startswith("9/8") else name


def _title(title: str) -> str:
    """`Enchanted Valley, The` -> `The Enchanted Valley`; all capitals become title case."""
    title = title.strip(" .")
    if title.isupper():
        title = re.sub(r"'(S|T|D|M|Ll|Re)\b", lambda m: m.group(0).lower(), title.title())
    article = re.fullmatch(r"(.*), (The|A|An)", title)
    return f"{article.group(2)} {article.group(1)}" if article else title
