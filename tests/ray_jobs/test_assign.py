"""New tracks get codes from the frozen books, published ones keep theirs, drift is said aloud."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.artifacts import file_sha256, newest, read_manifest
from feature_repo.codebook_reader import read_codebook
from feature_repo.errors import ArtifactError, InputError
from feature_repo.scratch import only_writer
from feature_repo.workspace import Workspace
from models.quantizers import METHODS
from ray_jobs import new_tracks
from ray_jobs.assign import assign
from ray_jobs.drift import DriftLimits
from ray_jobs.quantize import quantize
from ray_jobs.quantize_options import QuantizeOptions
from tests.embedded import clustered, write_catalogue

DIMS = {"text": 12, "audio": 6}
TRACKS, MORE = 200, 330
WITHOUT = {"audio": {3, 4, 210}, "text": {4, 220}}
OPTIONS = QuantizeOptions(levels=3, codes=8, prefix_weight=0.5)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`made(options)`: a workspace of its own with a generation of the first tracks."""
    folders = {}

    def workspace(options=OPTIONS):
        if options not in folders:
            folders[options] = tmp_path_factory.mktemp("made")
            fresh = Workspace(folders[options])
            write_catalogue(fresh, clustered(TRACKS, DIMS), without=WITHOUT)
            quantize(fresh, options)
        copy = tmp_path_factory.mktemp("workspace")
        shutil.copytree(folders[options], copy, dirs_exist_ok=True)
        return Workspace(copy)

    return workspace


def ids_path(workspace):
    (folder,) = workspace.generations.glob("gen-*")
    return folder / "ids.parquet"


def raw_bytes(table):
    """Every buffer of a table, as one chunk a column."""
    return [
        [None if buffer is None else buffer.to_pybytes() for buffer in column.chunk(0).buffers()]
        for column in pa.table(table.to_pydict(), schema=table.schema).columns
    ]


@pytest.mark.parametrize("method", METHODS)
def test_new_tracks_get_the_codes_of_the_frozen_books(made, method):
    """The oracle: the numpy reader on the raw vectors."""
    workspace = made(QuantizeOptions(method=method, levels=3, codes=8, epochs=2))
    before = pq.read_table(ids_path(workspace))
    vectors = clustered(MORE, DIMS)
    write_catalogue(workspace, vectors, without=WITHOUT)
    answer = assign(workspace)
    assert (answer["assigned"], answer["unchanged"]) == (MORE - TRACKS, TRACKS - 1)
    table = pq.read_table(ids_path(workspace))
    assert table.slice(0, len(before)).equals(before)
    new = table.slice(len(before))
    assert new["track_id"].to_pylist() == list(range(TRACKS + 1, MORE + 1))
    manifest = read_manifest(
        workspace.generations / answer["generation_id"], kind="generation", made_by="quantize"
    )
    assert manifest.rows == {"tracks": len(table)}
    rows = {
        name: np.array(
            [
                0 * vector if n in WITHOUT[name] else vector
                for n, vector in enumerate(x[TRACKS:], start=TRACKS + 1)
            ]
        )
        for name, x in vectors.items()
    }
    for family, codebook_id in manifest.parents["codebooks"].items():
        book = read_codebook(workspace.codebooks / codebook_id)
        codes = book.encode(book.prepare({name: rows[name] for name in book.modes}))
        expected = [
            [] if n in WITHOUT.get(family, ()) else row
            for n, row in enumerate(codes.tolist(), start=TRACKS + 1)
        ]
        assert new[f"{family}_sid"].to_pylist() == expected


def test_published_rows_are_the_same_bytes_also_of_tracks_that_changed(made):
    workspace = made()
    before = pq.read_table(ids_path(workspace))
    changed = {name: x.copy() for name, x in clustered(MORE, DIMS).items()}
    for x in changed.values():
        x[:50] = -x[:50] + 1
    # Track 4 had nothing; track 3 has audio now, and keeps its ID without it.
    write_catalogue(workspace, changed, without={"audio": {4}, "text": {4}})
    answer = assign(workspace)
    table = pq.read_table(ids_path(workspace))
    assert raw_bytes(table.slice(0, len(before))) == raw_bytes(before)
    assert table.schema.equals(before.schema, check_metadata=True)
    assert answer["assigned"] == MORE - TRACKS
    again = file_sha256(ids_path(workspace))
    assert assign(workspace)["assigned"] == 0
    assert file_sha256(ids_path(workspace)) == again


def test_codes_do_not_depend_on_the_chunks(made, monkeypatch):
    tables = []
    for values, rows in ((1 << 25, 8192), (70, 3)):
        workspace = made()
        write_catalogue(workspace, clustered(MORE, DIMS), without=WITHOUT)
        monkeypatch.setattr(new_tracks, "CHUNK_VALUES", values)
        monkeypatch.setattr(new_tracks, "BATCH_ROWS", rows)
        answer = assign(workspace)
        tables.append((pq.read_table(ids_path(workspace)), answer["drift"]["text"]["usage_shift"]))
    assert tables[0] == tables[1]
    assert not list(workspace.generations.glob(".*"))


@pytest.mark.parametrize("collisions", ["next_best", "extra_level"])
def test_new_tracks_go_round_published_ids(made, collisions):
    options = QuantizeOptions(levels=2, codes=32, prefix_weight=0.2, collisions=collisions)
    workspace = made(options)
    before = pq.read_table(ids_path(workspace))
    vectors = clustered(TRACKS, DIMS)
    write_catalogue(workspace, {name: np.concatenate([x, x[:60]]) for name, x in vectors.items()})
    assign(workspace)
    table = pq.read_table(ids_path(workspace))
    assert table.slice(0, len(before)).equals(before)
    for family in ("text", "audio", "joint"):
        published = {tuple(row) for row in before[f"{family}_sid"].to_pylist()}
        new = [tuple(row) for row in table[f"{family}_sid"].to_pylist()[len(before) :]]
        free = [row for row in new if row not in published]
        # A copy of a published track takes its published ID only where no other is left.
        assert len(free) > 50
        assert len(set(free)) == len(free)


def test_a_fit_that_finds_the_same_books_keeps_every_published_row(made):
    """Also of tracks that came after the first fit and are gone again by the second."""
    workspace = made()
    vectors = clustered(MORE, DIMS)
    write_catalogue(workspace, vectors, without=WITHOUT)
    assign(workspace)
    before, table = file_sha256(ids_path(workspace)), pq.read_table(ids_path(workspace))
    folder = ids_path(workspace).parent
    drift = read_manifest(folder, kind="generation", made_by="quantize").info["drift"]
    other = quantize(workspace, QuantizeOptions(levels=2, codes=8))["generation_id"]
    write_catalogue(workspace, {name: x[:TRACKS] for name, x in vectors.items()}, without=WITHOUT)
    again = quantize(workspace, OPTIONS)
    assert other != again["generation_id"] == folder.name
    assert again["tracks"] == len(table) > TRACKS
    assert file_sha256(folder / "ids.parquet") == before
    manifest = read_manifest(folder, kind="generation", made_by="quantize")
    assert manifest.info["drift"] == drift
    assert newest(workspace.generations, kind="generation", made_by="quantize").id == folder.name


@pytest.mark.parametrize("collisions", [None, "extra_level"])
def test_a_fit_that_finds_the_same_books_adds_the_tracks_that_they_lack(tmp_path, collisions):
    """New tracks at places of old ones move no centroid of a refit that starts from the old."""
    options = QuantizeOptions(
        method="vq", modalities=("text",), codes=8, preprocess="none", collisions=collisions
    )
    places = np.random.default_rng(0).normal(size=(8, 5)).astype("f4")
    write_catalogue(Workspace(tmp_path), {"text": np.tile(places, (4, 1))})
    generation = quantize(Workspace(tmp_path), options)["generation_id"]
    before = pq.read_table(ids_path(Workspace(tmp_path)))
    write_catalogue(Workspace(tmp_path), {"text": np.tile(places, (5, 1))})
    again = quantize(Workspace(tmp_path), replace(options, align_to=generation))
    assert (again["generation_id"], again["tracks"]) == (generation, 40)
    table = pq.read_table(ids_path(Workspace(tmp_path)))
    assert raw_bytes(table.slice(0, 32)) == raw_bytes(before)
    codes = np.array(table["text_sid"].to_pylist())
    np.testing.assert_array_equal(codes[32:, 0], codes[:8, 0])
    if collisions:
        assert len(np.unique(codes, axis=0)) == 40


def test_a_generation_that_was_changed_is_written_anew(made, capfd):
    workspace = made()
    path = ids_path(workspace)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    quantize(workspace, OPTIONS)
    assert path.read_bytes() == whole
    assert "ids.parquet was changed" in "".join(capfd.readouterr())


def test_drift_is_measured_warned_of_and_remembered(made, capfd):
    workspace = made()
    same = clustered(TRACKS + 80, DIMS)
    write_catalogue(workspace, same)
    first = assign(workspace)
    assert set(first["drift"]) == {"text", "audio", "joint"}
    assert first["drift"]["text"]["judged"] is False  # 80 tracks and one that had no vector
    assert first["warnings"] == []
    other = clustered(TRACKS + 80 + 400, DIMS, seed=1)
    write_catalogue(
        workspace, {name: np.concatenate([same[name], other[name][-400:]]) for name in same}
    )
    second = assign(workspace, limits=DriftLimits(error_ratio=1.2))
    assert any(
        line.startswith("text: the reconstruction error of 400 new") for line in second["warnings"]
    )
    assert json.loads(json.dumps(second)) == second
    logged = capfd.readouterr()
    assert "drift" in logged.out + logged.err
    manifest = read_manifest(ids_path(workspace).parent, kind="generation", made_by="quantize")
    drift = manifest.info["drift"]
    assert drift["warnings"] == second["warnings"]
    assert drift["limits"]["error_ratio"] == 1.2
    assert drift["families"]["text"]["batch"]["tracks"] == 400
    assert drift["families"]["text"]["since_fit"]["tracks"] == 481
    assert drift["families"]["text"]["sums"]["rows"] == 481
    assert any("481 new tracks" in line for line in second["warnings"])


def test_tracks_that_drip_in_are_judged_together(made):
    """Five runs of 40 tracks of another kind: none is judged alone, all of them are."""
    workspace = made()
    first, other = clustered(TRACKS, DIMS), clustered(TRACKS + 200, DIMS, seed=5)
    warned = []
    for run in range(1, 6):
        grown = {
            name: np.concatenate([first[name], other[name][TRACKS : TRACKS + 40 * run]])
            for name in first
        }
        write_catalogue(workspace, grown, without={"audio": {4}, "text": {4}})
        answer = assign(workspace)
        assert answer["drift"]["text"]["judged"] is False
        warned.append(bool(answer["warnings"]))
    assert warned == [False, False, True, True, True]


def test_what_is_missing_changed_or_under_way_is_refused(made):
    workspace = made()
    write_catalogue(workspace, clustered(MORE, DIMS), without=WITHOUT)
    path = ids_path(workspace)
    whole = path.read_bytes()
    with pytest.raises(ArtifactError, match="no generation gen-none"):
        assign(workspace, "gen-none")
    with only_writer(path.parent), pytest.raises(InputError, match="another run is writing"):
        assign(workspace)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(ArtifactError, match=r"ids\.parquet was changed.*crescendo quantize"):
        assign(workspace)
    path.write_bytes(whole)
    (book, *_) = workspace.codebooks.glob("codebook-*/codebook.safetensors")
    content = book.read_bytes()
    book.unlink()
    with pytest.raises(ArtifactError, match=r"lacks its file codebook\.safetensors"):
        assign(workspace)
    book.write_bytes(content)
    tracks = pq.read_table(workspace.tracks / "part-0.parquet")
    pq.write_table(tracks.drop_columns("audio_vector"), workspace.tracks / "part-0.parquet")
    with pytest.raises(ArtifactError, match=r"made from another tracks table.*crescendo embed"):
        assign(workspace)
    pq.write_table(tracks, workspace.tracks / "part-0.parquet")
    assert path.read_bytes() == whole
    assert [item.name for item in path.parent.parent.iterdir()] == [path.parent.name]
    assert assign(workspace)["assigned"] == MORE - TRACKS


def test_a_vector_that_is_not_finite_is_named_by_its_track(made):
    workspace = made()
    before = ids_path(workspace).read_bytes()
    vectors = clustered(MORE, DIMS)
    vectors["audio"][250, 2] = 3e30  # finite, so that `embed` takes it
    write_catalogue(workspace, vectors)
    with pytest.raises(InputError, match=r"audio vectors of 1 tracks, such as 251, .*1e\+15"):
        assign(workspace)
    assert ids_path(workspace).read_bytes() == before
    assert len(list(workspace.generations.iterdir())) == 1


def test_a_book_of_another_width_is_refused(made, tmp_path):
    """A generation whose embedding folder was replaced by one of more dims."""
    workspace = made()
    wide = Workspace(tmp_path)
    write_catalogue(wide, clustered(MORE, {"text": 13, "audio": 6}))
    (narrow_folder,) = (workspace.root / "embeddings" / "text").iterdir()
    (wide_folder,) = (wide.root / "embeddings" / "text").iterdir()
    shutil.rmtree(workspace.root / "tables")
    shutil.copytree(wide.root / "tables", workspace.root / "tables")
    shutil.rmtree(narrow_folder)
    shutil.copytree(wide_folder, narrow_folder)
    manifest = json.loads((narrow_folder / "manifest.json").read_text())
    manifest["id"] = narrow_folder.name
    (narrow_folder / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(workspace.root / "embeddings" / "audio")
    shutil.copytree(wide.root / "embeddings" / "audio", workspace.root / "embeddings" / "audio")
    with pytest.raises(InputError, match=r"text vectors .* fitted on 12 dims, got 13.*quantize"):
        assign(workspace)
