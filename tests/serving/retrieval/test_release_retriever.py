"""Loading from a workspace's artifacts and the online store, and following what changes there."""

import shutil
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import save_file

from feature_repo import schema
from feature_repo.store_settings import PACKED_SQLITE, STORE_SETTINGS
from feature_repo.workspace import Workspace
from models.batch import ItemTable
from ray_jobs.assign import assign
from ray_jobs.embed import read_embeddings
from ray_jobs.family_vectors import family_inputs, read_modality
from ray_jobs.publish import publish
from ray_jobs.quantize import quantize
from ray_jobs.quantize_options import QuantizeOptions
from ray_jobs.sequences import SequenceOptions, sequences
from serving.releases import Release
from serving.retrieval import release_retriever
from serving.retrieval.new_items import items_with_new_tracks
from serving.retrieval.options import RetrievalOptions
from serving.retrieval.release_retriever import ReleaseRetriever
from tests.embedded import clustered, write_catalogue
from tests.event_logs import event, write_events

FAMILIES = ("text", "audio", "joint")
DIMS = {"text": 12, "audio": 6}
TRACKS, MORE = 80, 100
WITHOUT = {"audio": {3, 4}, "text": {4}}
OPTIONS = QuantizeOptions(levels=2, codes=6, prefix_weight=0.5)
PLAYED = {7: 5, 9: 3, 70: 2}
"""Plays of yesterday."""
TRAINED = {20: 9, 7: 1}
"""Training impressions."""


def write_tracks(workspace, count) -> None:
    """The catalogue of the first tracks: an artist for every five, one release a day."""
    write_catalogue(workspace, clustered(count, DIMS), without=WITHOUT)
    table = pq.read_table(workspace.tracks)
    ids = table["track_id"].to_pylist()
    first = datetime(2020, 1, 1, tzinfo=UTC)
    of_tracks = {
        "artist": [f"artist {n // 5}" if n > 5 else None for n in ids],
        "released_at": [first + timedelta(days=n) if n != 50 else None for n in ids],
    }
    for name, values in of_tracks.items():
        column = pa.array(values, type=schema.TRACKS.field(name).type)
        table = table.set_column(table.schema.get_field_index(name), name, column)
    pq.write_table(table, workspace.tracks / "part-0.parquet")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A workspace, and a release whose model is nothing but its vocabulary."""
    workspace = Workspace(tmp_path_factory.mktemp("retrieval"))
    settings = STORE_SETTINGS | {"online_store": {"type": PACKED_SQLITE, "path": "online.db"}}
    (workspace.root / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    write_tracks(workspace, TRACKS)
    generation_id = quantize(workspace, OPTIONS)["generation_id"]
    # Yesterday: a day's plays are known from the next one on.
    minute = (datetime.now(UTC) - datetime(2026, 1, 1, tzinfo=UTC)) / timedelta(minutes=1) - 1440
    plays = [track for track, count in PLAYED.items() for _ in range(count)]
    log = [event(n, 1 + n % 3, track, minute) for n, track in enumerate(plays)]
    write_events(workspace, log)
    sequences(workspace, SequenceOptions(length=5))
    publish(workspace)
    release = Release(
        release_id="release-aaaaaaaaaaaa",
        model_id="model-aaaaaaaaaaaa",
        model_sha256="",
        generation_id=generation_id,
        feature_service="none",
        created_at="",
        replaces=None,
    )
    (workspace.models / release.model_id).mkdir(parents=True)
    vocabulary = {
        "track_ids": np.array(sorted(TRAINED)),
        "train_counts": np.array([TRAINED[track] for track in sorted(TRAINED)]),
    }
    save_file(vocabulary, workspace.models / release.model_id / "vocabulary.safetensors")
    return workspace, release


@pytest.fixture
def world(published):
    """The same workspace with the catalogue and the generation as they were published."""
    workspace, release = published
    kept = [workspace.tracks, workspace.root / "embeddings", workspace.generations]
    for path in kept:
        shutil.copytree(path, workspace.root / f".{path.name}", copy_function=shutil.copy2)
    yield workspace, release
    for path in kept:
        shutil.rmtree(path)
        (workspace.root / f".{path.name}").rename(path)


def all_items(workspace, release) -> ItemTable:
    empty = ItemTable(
        track_ids_I=np.empty(0, dtype=np.int64),
        codes_IFL=np.empty((0, len(FAMILIES), 2), dtype=np.int64),
    )
    return items_with_new_tracks(workspace, release.generation_id, FAMILIES, empty)


def joint_vectors(workspace) -> tuple[np.ndarray, np.ndarray]:
    """As quantization prepares them: by other code than serving's."""
    modalities = {name: read_modality(workspace, name, OPTIONS.preprocess) for name in DIMS}
    ids, x = family_inputs(modalities)["joint"]
    x = x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True)
    return ids, x


def test_a_release_is_loaded_from_its_artifacts(world):
    workspace, release = world
    items = all_items(workspace, release)
    loaded = ReleaseRetriever.load(workspace, release, items)
    retriever = loaded.retriever
    assert not loaded.stale(items)
    assert retriever.sizes == {"vectors": 79, "prefix": 79, "popular": 4, "new": 78}

    ids, x = joint_vectors(workspace)
    np.testing.assert_array_equal(retriever.vectors.track_ids, ids)
    held = retriever.vectors.vectors(np.arange(len(ids)))
    np.testing.assert_allclose(held, x, atol=1e-3)

    nobody = np.empty(0, dtype=np.int64)
    options = RetrievalOptions(vectors=0, prefix=0, popular=9, new=0)
    popular = retriever.candidates(nobody, options).track_ids_C
    assert popular.tolist() == [7, 9, 70, 20]  # the last by training alone
    options = RetrievalOptions(vectors=0, prefix=0, popular=0, new=3)
    assert retriever.candidates(nobody, options).track_ids_C.tolist() == [80, 79, 78]
    ranked = np.array([10, 11, 12, 1, 2, 3])
    assert retriever.diversify(ranked, 5, max_per_artist=2).tolist() == [0, 1, 3, 4, 5]


def test_assigned_tracks_are_candidates_after_a_look(world):
    workspace, release = world
    items = all_items(workspace, release)
    loaded = ReleaseRetriever.load(workspace, release, items)
    write_tracks(workspace, MORE)
    assert assign(workspace, release.generation_id)["assigned"] == MORE - TRACKS
    more = items_with_new_tracks(workspace, release.generation_id, FAMILIES, items)
    assert len(more.track_ids_I) == len(items.track_ids_I) + MORE - TRACKS
    assert loaded.stale(more)
    after = loaded.refreshed(more)
    assert not after.stale(more)
    at_once = ReleaseRetriever.load(workspace, release, more)
    for history in ([7], [90, 91], [3, 4], []):
        history_L = np.array(history, dtype=np.int64)
        ours = after.retriever.candidates(history_L, RetrievalOptions())
        theirs = at_once.retriever.candidates(history_L, RetrievalOptions())
        np.testing.assert_array_equal(ours.track_ids_C, theirs.track_ids_C)
        np.testing.assert_array_equal(ours.sources_C, theirs.sources_C)
    found = after.retriever.candidates(
        np.array([7]), RetrievalOptions(vectors=60, prefix=0, popular=0, new=0)
    )
    assert (found.track_ids_C > TRACKS).any()
    before = loaded.retriever.candidates(np.array([7]), RetrievalOptions())
    assert before.track_ids_C.max() <= TRACKS  # who holds the old one reads the old one


def test_the_index_is_kept_where_nothing_is_new(world, monkeypatch):
    workspace, release = world
    items = all_items(workspace, release)
    loaded = ReleaseRetriever.load(workspace, release, items)
    monkeypatch.setattr(release_retriever, "REFRESH_S", -1)  # the counts are old at once
    assert loaded.stale(items)
    assert loaded.refreshed(items).vectors.index is loaded.vectors.index
    other = Release(**vars(release) | {"release_id": "release-bbbbbbbbbbbb"})
    shared = ReleaseRetriever.load(workspace, other, items, like=loaded)
    assert shared.vectors.index is loaded.vectors.index


def test_tracks_that_leave_the_catalogue_leave_the_candidates(world):
    workspace, release = world
    items = all_items(workspace, release)
    loaded = ReleaseRetriever.load(workspace, release, items)
    table = pq.read_table(workspace.tracks)
    pq.write_table(table.slice(0, 40), workspace.tracks / "part-0.parquet")
    assert loaded.stale(items)
    found = loaded.refreshed(items).retriever.candidates(np.array([70]), RetrievalOptions())
    assert sorted(found.track_ids_C) == [n for n in range(1, 41) if n != 4]


def test_without_readable_vectors_the_log_says_why_and_the_rest_goes_on(world, caplog):
    workspace, release = world
    items = all_items(workspace, release)
    folder = workspace.embeddings("audio", read_embeddings(workspace, "audio")[2])
    manifest = (folder / "manifest.json").read_text()
    (folder / "manifest.json").unlink()  # as `crescendo embed` does while it replaces rows
    loaded = ReleaseRetriever.load(workspace, release, items)
    assert "no vectors of new tracks can be read: no embedding" in caplog.text
    assert loaded.retriever.sizes["vectors"] == 0
    found = loaded.retriever.candidates(np.array([7]), RetrievalOptions())
    assert len(found.track_ids_C) >= 77  # all but its own; 50 is neither played nor dated
    (folder / "manifest.json").write_text(manifest)
    assert loaded.stale(items)
    assert loaded.refreshed(items).retriever.sizes["vectors"] == 79


def test_without_a_table_of_tracks(world, caplog):
    workspace, release = world
    items = all_items(workspace, release)
    shutil.rmtree(workspace.tracks)
    sizes = ReleaseRetriever.load(workspace, release, items).retriever.sizes
    assert sizes == {"vectors": 79, "prefix": 79, "popular": 4, "new": 0}
    assert "holds no table: no artists, no new releases; run `crescendo ingest`" in caplog.text
    workspace.tracks.mkdir()


def test_a_generation_without_a_track(world):
    workspace, release = world
    items = all_items(workspace, release)
    none = ItemTable(track_ids_I=items.track_ids_I[:0], codes_IFL=items.codes_IFL[:0])
    loaded = ReleaseRetriever.load(workspace, release, none)
    found = loaded.retriever.candidates(np.array([7]), RetrievalOptions())
    assert len(found.track_ids_C) == 0
    assert loaded.refreshed(items).retriever.sizes["vectors"] == 79
