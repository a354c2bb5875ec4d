"""The catalogue in memory: search against plain Python, and what of its files may be sent."""

import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo import schema
from feature_repo.workspace import Workspace
from serving.page.catalogue import COLUMNS, Catalogue
from serving.page.loaded_files import LoadedFiles


def track(track_id, title="A title", artist=None, tags=None, audio_uri=None):
    return dict(zip(COLUMNS, (track_id, title, artist, tags, audio_uri), strict=True))


def catalogue(tmp_path, *rows):
    wanted = pa.schema([schema.TRACKS.field(name) for name in COLUMNS])
    return Catalogue(pa.Table.from_pylist(list(rows), schema=wanted), tmp_path)


def found(titles, text, count=20):
    return [track.track_id for track in titles.search(text, count)]


def test_search_takes_every_word_in_title_or_artist_without_case_and_accents(tmp_path):
    titles = catalogue(
        tmp_path,
        track(5, "St\u00e4ndchen", "B\u00e9la Bart\u00f3k"),
        track(2, "Blue in Green", "Miles Davis"),
        track(9, "So What", "Miles Davis"),
        track(4, "Miles from nowhere"),
    )
    assert found(titles, "standchen") == [5]
    assert found(titles, "BARTOK bela") == [5]
    assert found(titles, "miles") == [4, 2, 9]  # the one that begins so comes first
    assert found(titles, "miles blue") == [2]
    assert found(titles, "miles", count=2) == [4, 2]
    assert found(titles, "nothing of the kind") == []
    assert found(titles, "what.*") == []  # text, not a pattern


def plain_fold(text):
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(c for c in decomposed if unicodedata.category(c) != "Mn").lower()


words = st.text(st.sampled_from("abc\u00e9 \u00c9xI"), max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(words, min_size=1, max_size=8), words)
def test_search_is_that_of_plain_python(tmp_path_factory, titles, text):
    table = catalogue(tmp_path_factory.getbasetemp(), *map(track, range(len(titles)), titles))
    wanted = plain_fold(text)
    hits = [n for n, t in enumerate(titles) if all(w in plain_fold(t) for w in wanted.split())]
    begins = {n: plain_fold(titles[n] + "\n").startswith(wanted.strip()) for n in hits}
    assert found(table, text) == sorted(hits, key=lambda n: (not begins[n], n))


def test_what_is_not_known_is_said(tmp_path):
    titles = catalogue(tmp_path, track(3, tags=["reel", None, "jig"]))
    known, unknown = titles.tracks([3, 2**62])
    assert (known.title, known.artist, known.tags) == ("A title", None, ["reel", "jig"])
    assert (unknown.track_id, unknown.title, unknown.playable) == (2**62, None, False)
    assert titles.audio_file(2**62) is None


def test_tags_that_tell_tracks_from_the_others(tmp_path):
    titles = catalogue(
        tmp_path,
        track(1, tags=["irish", "jig", "loud"]),
        track(2, tags=["irish", "jig"]),
        track(3, tags=["irish", "waltz"]),
        track(4, tags=["irish", "waltz", "jig"]),
        track(5, tags=["irish"]),
        track(6, tags=None),
    )
    # Of two tracks: jig 2 log(1 / (3/6)) = 1.39, loud log(1/2 / (1/6)) = 1.10, irish 2 log(6/5).
    assert titles.tags(np.array([1, 2, 777]), 2) == ["jig", "loud"]
    assert titles.tags(np.array([1, 2]), 9)[-1] == "irish"
    assert titles.tags(np.array([6]), 2) == titles.tags(np.array([777]), 2) == []


def test_without_a_table_tracks_have_numbers_only(tmp_path):
    titles = Catalogue.load(Workspace(tmp_path))
    assert len(titles) == 0
    assert titles.search("a", 5) == []
    assert [track.title for track in titles.tracks([1, 2])] == [None, None]
    assert titles.tags(np.array([1]), 3) == []
    assert titles.audio_file(1) is None


@pytest.fixture
def workspace(tmp_path):
    """A workspace with audio in it, and beside it what must never be sent."""
    root = tmp_path / "w"
    (root / "audio").mkdir(parents=True)
    for name in ("audio/a b.flac", "feature_store.yaml", "../outside.flac"):
        (root / name).write_bytes(b"x")
    (root / "audio" / "folder.flac").mkdir()
    (root / "audio" / "link.flac").symlink_to(tmp_path / "outside.flac")
    (root / "audio" / "settings.flac").symlink_to(root / "feature_store.yaml")
    return root


@pytest.mark.parametrize(
    "uri", ["audio/a b.flac", "{}/audio/a b.flac", "file://{}/audio/a%20b.flac"]
)
def test_audio_of_the_workspace_is_sent(workspace, uri):
    titles = catalogue(workspace, track(1, audio_uri=uri.format(workspace)))
    assert titles.audio_file(1) == (workspace / "audio" / "a b.flac", "audio/flac")
    assert titles.tracks([1])[0].playable


@pytest.mark.parametrize(
    "uri",
    [
        None,
        "",
        "audio/missing.flac",
        "audio/folder.flac",
        "feature_store.yaml",
        "audio/../feature_store.yaml",
        "../outside.flac",
        "{}/../outside.flac",
        "file://{}/%2e%2e/outside.flac",
        "audio/link.flac",
        "audio/settings.flac",
        "/etc/passwd",
        "https://elsewhere.example/a.flac",
        "audio/a b.flac\0",
        "file://{}/audio/a%20b.flac%00",
        "http://[broken/a.flac",
        "a" * 5000 + ".flac",
    ],
)
def test_nothing_else_is_sent(workspace, uri):
    titles = catalogue(workspace, track(1, audio_uri=uri and uri.format(workspace)))
    assert titles.audio_file(1) is None
    assert not titles.tracks([1])[0].playable


def test_a_changed_table_is_read_again(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.tracks.mkdir(parents=True)
    file = workspace.tracks / "part-0.parquet"

    def write(title):
        row = {"track_id": 1, "title": title}
        pq.write_table(pa.Table.from_pylist([row], schema=schema.TRACKS), file)

    loads = []

    def load():
        loads.append(file.stat().st_size)
        return Catalogue.load(workspace)

    write("Before")
    loaded = LoadedFiles(workspace.tracks, load)
    assert loads == []
    assert loaded.now().tracks([1])[0].title == "Before"
    assert loaded.now() is loaded.now()
    write("Afterwards")
    assert loaded.now().tracks([1])[0].title == "Afterwards"
    assert len(loads) == 2
    file.write_bytes(b"half of a file")  # as while it is replaced
    assert loaded.now().tracks([1])[0].title == "Afterwards"
    file.rename(tmp_path / "away")  # and between its two renames
    assert loaded.now().tracks([1])[0].title == "Afterwards"
    write("Whole again")
    assert loaded.now().tracks([1])[0].title == "Whole again"
