"""The demo world as a whole: files, contract, audio, determinism, what it refuses."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from feature_repo import schema
from feature_repo.errors import InputError
from ray_jobs.demo_world import world
from ray_jobs.demo_world.timbres import SAMPLE_RATE, TIMBRES, play_note
from ray_jobs.demo_world.world import DemoWorldOptions, generate

SMALL = DemoWorldOptions(tunes=12, listeners=8, events=400, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "world"
    generate(folder, SMALL)
    return folder


def test_tables_have_exactly_the_contract_columns(folder: Path) -> None:
    tracks, events = (
        pq.read_table(folder / "tracks.parquet"),
        pq.read_table(folder / "events.parquet"),
    )
    assert tracks.schema == schema.TRACKS
    assert events.schema == schema.EVENTS
    assert (tracks.num_rows, events.num_rows) == (12, 400)
    assert len(set(tracks["track_id"].to_pylist())) == 12
    assert set(events["track_id"].to_pylist()) <= set(tracks["track_id"].to_pylist())
    assert len(set(events["user_id"].to_pylist())) == 8
    assert set(events["action"].to_pylist()) <= set(schema.ACTIONS)
    for track in tracks.to_pylist():
        assert track["title"].strip()
        assert track["artist"].strip()
        assert len(track["tags"]) == 5


def test_truth_covers_tracks_events_and_listeners(folder: Path) -> None:
    truth = {path.stem: pq.read_table(path) for path in (folder / "truth").glob("*.parquet")}
    tracks, events = (
        pq.read_table(folder / "tracks.parquet"),
        pq.read_table(folder / "events.parquet"),
    )
    assert truth["tracks"]["track_id"].equals(tracks["track_id"])
    assert truth["tracks"]["released_at"].equals(tracks["released_at"])
    assert truth["events"]["event_id"].equals(events["event_id"])
    assert set(truth["listeners"]["user_id"].to_pylist()) == set(events["user_id"].to_pylist())
    probabilities = truth["events"]["true_probability"].to_numpy()
    assert ((probabilities > 0) & (probabilities < 1)).all()
    # What only the sound tells must not stand in the text.
    text = json.dumps(tracks.select(["title", "artist", "tags"]).to_pylist())
    assert not any(timbre in text.split() for timbre in TIMBRES)


def test_every_track_is_a_readable_flac_with_music_in_it(folder: Path) -> None:
    for track in pq.read_table(folder / "tracks.parquet").to_pylist():
        path = Path(track["audio_uri"])
        assert path == folder / "audio" / f"{track['track_id']}.flac"
        info = soundfile.info(path)
        assert (info.format, info.subtype) == ("FLAC", "PCM_16")
        assert (info.samplerate, info.channels) == (22_050, 1)
        assert 8 <= info.duration <= 14
        assert info.duration == pytest.approx(track["duration_s"])
        samples, _ = soundfile.read(path)
        assert np.sqrt((samples**2).mean()) > 0.02
        assert np.abs(samples).max() < 1.0


def test_the_record_names_licences_and_counts(folder: Path) -> None:
    record = json.loads((folder / world.WORLD).read_text())
    assert record["options"]["seed"] == 3
    assert sum(record["world"]["collections"].values()) == 12
    assert set(record["licences"]) == set(record["world"]["collections"])


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(
    folder: Path, tmp_path: Path
) -> None:
    generate(tmp_path / "again", SMALL)
    for path in sorted((folder / "audio").iterdir()):
        assert path.read_bytes() == (tmp_path / "again" / "audio" / path.name).read_bytes()
    for name in ("events.parquet", "truth/tracks.parquet", "truth/events.parquet"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    tracks = [
        pq.read_table(place / "tracks.parquet").drop_columns(["audio_uri"])
        for place in (folder, tmp_path / "again")
    ]
    assert tracks[0].equals(tracks[1])

    generate(tmp_path / "other", DemoWorldOptions(tunes=2, listeners=2, events=20, seed=4))
    titles = pq.read_table(tmp_path / "other" / "tracks.parquet")["title"].to_pylist()
    assert titles != tracks[0]["title"].to_pylist()[:2]


def test_a_world_is_kept_for_the_same_options_and_replaced_for_others(tmp_path: Path) -> None:
    place = tmp_path / "world"
    small = DemoWorldOptions(tunes=2, listeners=2, events=20)
    first = generate(place, small)
    written = (place / "events.parquet").stat().st_mtime_ns
    assert generate(place, small) == first
    assert (place / "events.parquet").stat().st_mtime_ns == written
    grown = generate(place, DemoWorldOptions(tunes=2, listeners=2, events=20, scale=2))
    assert (grown["tracks"], grown["listeners"], grown["events"]) == (4, 4, 40)
    assert [path.name for path in tmp_path.iterdir()] == ["world"]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(world, "simulate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "world", DemoWorldOptions(tunes=1, listeners=1, events=10))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is no demo world"):
        generate(tmp_path, SMALL)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tunes": 0}, "tunes is 0"),
        ({"listeners": 2.5}, "listeners is 2.5"),
        ({"events": True}, "events is True"),
        ({"seed": -1}, "seed is -1"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"listeners": 50, "events": 10}, "events is 10 for 50 listeners"),
    ],
)
def test_wrong_options_are_named_with_their_value(
    options: dict[str, int | float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        DemoWorldOptions(**options)  # type: ignore[arg-type]


def test_more_tunes_than_the_collections_hold_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tunes is 9999; the free collections hold \d+"):
        generate(tmp_path / "world", DemoWorldOptions(tunes=9999))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["music21", "pretty_midi"])
def test_a_missing_package_is_named_with_what_to_install(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find_spec(name)
    )
    with pytest.raises(InputError, match=rf"{package}.*pip install 'crescendo\[demo\]'"):
        generate(tmp_path / "world", DemoWorldOptions(tunes=1, listeners=1, events=10))


def test_timbres_differ_in_brightness_and_in_how_they_fade() -> None:
    heard = {name: _brightness_and_fade(play_note(TIMBRES[name], 440.0, 0.5)) for name in TIMBRES}
    brightness = {name: values[0] for name, values in heard.items()}
    fade = {name: values[1] for name, values in heard.items()}
    assert brightness["harp"] < brightness["fiddle"] < brightness["pipes"]
    assert brightness["organ"] < brightness["banjo"]
    plucked, blown = ("harp", "banjo"), ("flute", "fiddle", "pipes", "organ")
    assert max(fade[name] for name in plucked) < 0.7 < min(fade[name] for name in blown)


def _brightness_and_fade(samples: np.ndarray) -> tuple[float, float]:
    """Spectral centroid in Hz, and loudness at 0.4 s relative to that at 0.1 s."""
    power = np.abs(np.fft.rfft(samples[: SAMPLE_RATE // 2])) ** 2
    frequencies = np.fft.rfftfreq(SAMPLE_RATE // 2, 1 / SAMPLE_RATE)
    windows = [samples[int(at * SAMPLE_RATE) :][:1000] for at in (0.1, 0.4)]
    early, late = (np.sqrt((window**2).mean()) for window in windows)
    return float((power * frequencies).sum() / power.sum()), float(late / early)
