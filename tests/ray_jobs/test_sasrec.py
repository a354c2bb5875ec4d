"""`crescendo sasrec`: from the feature store to vectors, a modality and a feature view."""

import json
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from feature_repo import schema
from feature_repo.artifacts import MANIFEST
from feature_repo.errors import InputError
from models.most_popular import most_popular_metrics
from models.sasrec_training import Trainer, fit
from ray_jobs import sasrec_loop
from ray_jobs.assign import assign
from ray_jobs.checkpoints import newest_checkpoint
from ray_jobs.embed import read_embeddings
from ray_jobs.generation_table import IDS_FILE
from ray_jobs.next_item_fit import DIVERGED_FILE
from ray_jobs.next_item_set import NextItemOptions, next_item_set, read_next_items
from ray_jobs.publish import publish
from ray_jobs.quantize import quantize
from ray_jobs.quantize_options import QuantizeOptions
from ray_jobs.run_folder import CURVE_FILE, FINISHED_FILE, OWNER_FILE, json_lines
from ray_jobs.sasrec import UNHEARD, SasRecRunOptions, sasrec
from ray_jobs.worker_group import WorkerGroup
from tests.embedded import clustered, write_catalogue
from tests.ray_jobs.sequence_world import LENGTH, TRACKS, circle_log, published_world
from tests.ray_jobs.sequence_world import UNHEARD as NEVER

SMALL = SasRecRunOptions(
    width=8,
    layers=1,
    length=LENGTH,
    batch_size=16,
    learning_rate=1e-2,
    epochs=12,
    patience=12,
    checkpoint_every_s=0,
)
ALONE = WorkerGroup(rank=0, world_size=1, device=torch.device("cpu"), node="here")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return published_world(tmp_path_factory.mktemp("circles"), circle_log(repeating=5))


def loop_settings(workspace, folder, options):
    folder.mkdir(exist_ok=True)
    (folder / OWNER_FILE).write_text("me")
    made = next_item_set(workspace, NextItemOptions(length=LENGTH))
    return {
        "folder": str(folder),
        "owner": "me",
        "next_item_set": str(workspace.training_sets / made.id),
        "options": options.what(),
        "checkpoint_every_s": 0,
    }


def test_the_loop_is_the_plain_fit(world, tmp_path):
    settings = loop_settings(world, tmp_path / "run", SMALL)
    sasrec_loop.train_one(settings, ALONE)
    finished = json.loads((tmp_path / "run" / FINISHED_FILE).read_text())
    trainer = Trainer(
        read_next_items(world.training_sets / settings["next_item_set"].rsplit("/", 1)[1]),
        SMALL,
        torch.device("cpu"),
    )
    plain = list(fit(trainer))
    curve = json_lines(tmp_path / "run" / CURVE_FILE)
    assert [line["ndcg@10"] for line in curve] == [line["ndcg@10"] for line in plain]
    assert [line["train_loss"] for line in curve] == [line["train_loss"] for line in plain]
    assert finished["test"] == trainer.metrics("test")
    assert newest_checkpoint(tmp_path / "run") is None


def test_a_killed_run_goes_on_to_the_same_weights(world, tmp_path, monkeypatch):
    whole = loop_settings(world, tmp_path / "whole", SMALL)
    sasrec_loop.train_one(whole, ALONE)
    cut = loop_settings(world, tmp_path / "cut", SMALL)

    class Killed(BaseException):
        pass

    epoch = Trainer.epoch

    def dies(trainer, number):
        if number == 5:
            raise Killed
        return epoch(trainer, number)

    monkeypatch.setattr(Trainer, "epoch", dies)
    with pytest.raises(Killed):
        sasrec_loop.train_one(cut, ALONE)
    monkeypatch.undo()
    assert newest_checkpoint(tmp_path / "cut") is not None
    sasrec_loop.train_one(cut, ALONE)
    one, other = (
        json.loads((tmp_path / name / FINISHED_FILE).read_text()) for name in ("whole", "cut")
    )
    assert one["test"] == other["test"]
    assert one["best_epoch"] == other["best_epoch"]
    curves = [json_lines(tmp_path / name / CURVE_FILE) for name in ("whole", "cut")]
    for first, second in zip(*curves, strict=True):
        assert first["train_loss"] == second["train_loss"]


def test_a_loss_that_is_not_finite_ends_the_run_with_a_reason(world, tmp_path):
    settings = loop_settings(world, tmp_path / "run", replace(SMALL, learning_rate=1e38))
    sasrec_loop.train_one(settings, ALONE)
    said = json.loads((tmp_path / "run" / DIVERGED_FILE).read_text())["error"]
    assert "give a smaller learning_rate" in said
    assert not (tmp_path / "run" / FINISHED_FILE).exists()


def test_options_name_field_and_value():
    with pytest.raises(InputError, match=r"loss must be one of .*, got 'mse'"):
        SasRecRunOptions(loss="mse")
    with pytest.raises(InputError, match="workers must be 0 to the batch_size 4, got 5"):
        SasRecRunOptions(batch_size=4, workers=5)
    with pytest.raises(InputError, match="checkpoint_every_s must be at least 0, got -1"):
        SasRecRunOptions(checkpoint_every_s=-1)


def test_the_driver_trains_by_itself(tmp_path):
    workspace = published_world(tmp_path, circle_log(repeating=5))
    answer = sasrec(workspace, replace(SMALL, epochs=1, workers=0))
    assert (answer["tracks"], answer["ok"], answer["dim"]) == (TRACKS + NEVER, TRACKS, 8)


def test_a_log_that_cannot_be_learned_from_is_refused(tmp_path):
    log = [one for one in circle_log() if one["event_id"] % 5 == 0][:1]
    workspace = published_world(tmp_path, log)
    with pytest.raises(InputError, match="has no users with two training listens"):
        sasrec(workspace, SMALL)
    assert not list(workspace.models.glob(".fit-*"))


@pytest.mark.slow
def test_vectors_are_a_modality_and_a_view(world, ray_local):
    from feature_repo.offline import point_in_time
    from feature_repo.store import open_store, read_online
    from ray_jobs.family_vectors import read_modality

    answer = sasrec(world, replace(SMALL, workers=2))
    assert (answer["tracks"], answer["ok"], answer["dim"]) == (TRACKS + NEVER, TRACKS, 8)
    data = read_next_items(world.training_sets / answer["next_item_set"])
    assert answer["most_popular"] == most_popular_metrics(data, "test")
    assert answer["sasrec"]["hr@5"] > max(0.8, answer["most_popular"]["hr@5"])

    # A modality like those of `embed`, with a reason where there is no vector.
    track_ids, vectors, encoder_id = read_embeddings(world, "collaborative")
    assert (track_ids.tolist(), encoder_id) == (list(range(1, TRACKS + 1)), answer["encoder_id"])
    assert read_modality(world, "collaborative", "standard").vectors_ND.shape == (TRACKS, 8)
    folder = world.embeddings("collaborative", encoder_id)
    rows = pq.read_table(folder / "part-00001.parquet").to_pylist()
    assert [row["track_id"] for row in rows if row["error"] == UNHEARD] == [25, 26, 27]
    # Neighbours in the circle are near each other.
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    near = [unit[track] @ unit[(track + 1) % TRACKS] for track in range(TRACKS)]
    assert np.mean(near) > (unit @ unit.T).mean() + 0.2

    # Run again: nothing is trained, however many workers are asked for.
    again = sasrec(world, replace(SMALL, workers=0))
    assert (again["encoder_id"], again["seconds"]) == (encoder_id, answer["seconds"])

    # A new track has no vector, and no collaborative ID: those of the others stay.
    modalities = ("collaborative", "audio")
    made = quantize(world, QuantizeOptions(modalities=modalities, levels=2, codes=4))
    ids = world.generations / made["generation_id"] / IDS_FILE
    before = pq.read_table(ids).sort_by("track_id")
    write_catalogue(world, clustered(TRACKS + NEVER + 1, {"audio": 4}))
    assert read_embeddings(world, "collaborative")[0].tolist() == list(range(1, TRACKS + 1))
    assert assign(world)["assigned"] == 1
    after = pq.read_table(ids).sort_by("track_id")
    assert after.slice(0, len(before)).equals(before)
    (new,) = after.slice(len(before)).to_pylist()
    assert (new["collaborative_sid"], len(new["audio_sid"])) == ([], 2)

    # Other teams read it, from the moment on at which it was made.
    assert publish(world)["rows"][schema.TRACK_COLLABORATIVE] == TRACKS + NEVER
    columns = (schema.COLLABORATIVE_VECTOR, schema.COLLABORATIVE_ENCODER)
    features = [f"{schema.TRACK_COLLABORATIVE}:{name}" for name in columns]
    online = read_online(open_store(world), "track_id", [1, 26, 99], features)
    assert online[columns[0]][0] == pytest.approx(vectors[0].tolist())
    assert online[columns[0]][1] == []
    assert online[columns[0]][2] is None
    assert online[columns[1]] == [encoder_id, encoder_id, None]
    made_at = datetime.fromisoformat(json.loads((folder / MANIFEST).read_text())["created_at"])
    moments = [made_at - timedelta(seconds=1), made_at + timedelta(seconds=1)]
    asked = pd.DataFrame({"track_id": [1, 1], "event_timestamp": moments})
    (joined,) = point_in_time(
        open_store(world), asked, schema.TRACK_COLLABORATIVE, [schema.COLLABORATIVE_VECTOR]
    )
    earlier, later = joined[schema.COLLABORATIVE_VECTOR].to_pylist()
    assert earlier is None
    assert later == pytest.approx(vectors[0].tolist())
