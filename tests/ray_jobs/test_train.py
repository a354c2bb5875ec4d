"""Training end to end, here and with real Ray Train workers: artifacts, early end, counts."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from feature_repo import schema
from feature_repo.artifacts import newest, read_manifest
from feature_repo.errors import ArtifactError, InputError
from ray_jobs.evaluate import evaluate
from ray_jobs.train import TrainOptions, train_all
from ray_jobs.training_stream import StreamPlace, read_item_side, train_batches
from tests.trained import SMALL, train_small


def test_it_learns_and_reports_every_metric(trained):
    _, result = trained
    assert result["auc"] > 0.6  # parity is learnable, chance is 0.5
    assert result["rows_per_second"] > 0
    for metric in ("gauc", "cold_auc", "logloss", "calibration_error"):
        assert result[metric] is None or 0 <= result[metric] < 1


def test_metrics_are_those_of_scikit_learn_on_the_stored_scores(trained):
    workspace, result = trained
    scored = pq.read_table(workspace.models / result["model_id"] / "test_scores.parquet")
    truth, scores = scored["label"].to_numpy(), scored["score"].to_numpy()
    assert result["auc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)
    assert result["logloss"] == pytest.approx(log_loss(truth, scores.astype(float)), abs=1e-6)


def test_model_folder_is_whole_and_says_where_it_comes_from(trained):
    workspace, result = trained
    folder = workspace.models / result["model_id"]
    manifest = read_manifest(folder, kind="model", made_by="train")
    assert set(manifest.files) == {
        "model.safetensors",
        "last.safetensors",
        "vocabulary.safetensors",
        "metrics.jsonl",
        "test_scores.parquet",
        "warm_up.safetensors",
        "drift_baseline.safetensors",
    }
    curve = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [epoch["epoch"] for epoch in curve] == [0, 1, 2, 3]
    assert (workspace.training_sets / manifest.parents["training_set"]).is_dir()
    assert not list(workspace.models.glob(".*"))  # no run folder is left behind


def test_evaluate_scores_the_same_again(trained):
    workspace, result = trained
    again = evaluate(workspace, result["model_id"])
    assert again["auc"] == pytest.approx(result["auc"], abs=1e-9)


def test_parts_are_chronological_and_no_moment_is_in_two(trained):
    workspace, _ = trained
    data = newest(workspace.training_sets, kind="training_set", made_by="train")
    folder = workspace.training_sets / data.id
    train = pq.read_table(sorted(folder.glob("train-*.parquet")))
    last = {"train": max(train[schema.EVENT_TIMESTAMP].to_pylist())}
    for part, earlier in (("validation", "train"), ("test", "validation")):
        times = pq.read_table(folder / f"{part}.parquet")[schema.EVENT_TIMESTAMP].to_pylist()
        assert min(times) > last[earlier]
        last[part] = max(times)


def test_two_workers_see_the_rows_of_one(trained):
    workspace, _ = trained
    data = newest(workspace.training_sets, kind="training_set", made_by="train")
    folder = workspace.training_sets / data.id
    side = read_item_side(folder, 10)

    def targets(rank, world_size):
        place = StreamPlace(seed=5, epoch=1, batch_size=100, rank=rank, world_size=world_size)
        return [
            batch.target_track_ids_B.numpy() for batch, _, _ in train_batches(folder, side, place)
        ]

    alone, first, second = targets(0, 1), targets(0, 2), targets(1, 2)
    assert sum(len(batch) for batch in alone) == data.rows["train"]
    for whole, even, odd in zip(alone, first, second, strict=True):
        np.testing.assert_array_equal(whole[0::2], even)
        np.testing.assert_array_equal(whole[1::2], odd)
    assert not np.array_equal(np.concatenate(alone), np.sort(np.concatenate(alone)))


@pytest.fixture(scope="module")
def in_one_group(trained, ray_local):
    """Runs after each other in one group of workers: starting one costs more than they do."""
    workspace, _ = trained
    names = ("again", "other seed", "until no better", "one epoch")
    worker = replace(SMALL, workers=1)
    options = [
        worker,
        replace(worker, seed=7),
        replace(worker, model="din", epochs=30, patience=1, learning_rate=0.05),
        replace(worker, model="din", epochs=1),
    ]
    results = dict(zip(names, train_all(workspace, options), strict=True))
    return {name: (result, _curve(workspace, result)) for name, result in results.items()}


@pytest.mark.slow
def test_two_workers_train_the_same_model(trained, in_one_group):
    workspace, _ = trained
    alone, curve = in_one_group["other seed"]
    together = train_small(workspace, seed=7, workers=2)
    # How many workers there are is no part of what a model is: theirs takes the place of the other.
    assert together["model_id"] == alone["model_id"]
    first = _curve(workspace, together)[0]
    # The same batches in the same order: only the order of float sums differs, which grows
    # with each step, so the first epoch is held closer than the last.
    assert first["rows"] == curve[0]["rows"]
    assert first["train_loss"] == pytest.approx(curve[0]["train_loss"], abs=2e-3)
    assert first["validation_logloss"] == pytest.approx(curve[0]["validation_logloss"], abs=2e-3)
    assert together["auc"] == pytest.approx(alone["auc"], abs=2e-2)


def _curve(workspace, result):
    lines = (workspace.models / result["model_id"] / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_run_that_no_longer_improves_ends_and_keeps_its_best_epoch(in_one_group):
    long, short = in_one_group["until no better"], in_one_group["one epoch"]
    assert long[0]["epochs"] < 30
    assert long[0]["best_epoch"] == long[0]["epochs"] - 2  # one epoch of patience after it
    assert short[0]["epochs"] == 1
    for result, curve in (long, short):
        assert result["validation_auc"] == max(epoch["validation_auc"] for epoch in curve)


def test_a_fit_on_a_ray_of_its_own_watches_for_no_machine_to_be_taken_away(in_one_group):
    import ray._private.state

    started = {actor["ActorClassName"] for actor in ray._private.state.actors().values()}
    assert {"TrainController", "RayTrainWorker"} <= started
    assert "PreemptionWatcher" not in started


def test_a_run_that_diverges_stops_and_saves_the_batch(trained):
    workspace, _ = trained
    before = {path.name for path in workspace.models.iterdir()}
    with pytest.raises(InputError, match=r"loss became (nan|inf) in epoch 0, step .*than 1e\+30"):
        train_small(workspace, learning_rate=1e30)
    (left,) = (path for path in workspace.models.iterdir() if path.name not in before)
    try:
        assert pq.read_metadata(left / "not_finite.parquet").num_rows == SMALL.batch_size
    finally:
        shutil.rmtree(left)


def test_more_workers_than_ray_has_are_refused_at_once(trained, ray_local):
    workspace, _ = trained
    with pytest.raises(InputError, match=r"500 workers need a CPU each.*--workers"):
        train_small(workspace, workers=500, batch_size=500)
    for workers in (0, 1):
        with pytest.raises(InputError, match=r"^1 GPU is needed, there are 0: give --cpu$"):
            train_small(workspace, workers=workers, gpu=True)
    with pytest.raises(InputError, match=r"^2 GPUs are needed, there are 0: give fewer --workers"):
        train_small(workspace, workers=2, gpu=True)


def test_sequences_of_another_log_are_refused(trained):
    workspace, _ = trained
    path = workspace.events / "part-0.parquet"
    original = path.read_bytes()
    pq.write_table(pq.read_table(path).slice(0, 100), path)
    try:
        with pytest.raises(ArtifactError, match=r"event log is .* now; run `crescendo sequences`"):
            train_small(workspace)
    finally:
        path.write_bytes(original)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_model_in_this_process_and_in_a_worker(trained, in_one_group):
    workspace, result = trained
    worker, _ = in_one_group["again"]
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count())  # as a worker has: they decide the order of float sums
    try:
        here = train_small(workspace)
    finally:
        torch.set_num_threads(threads)
    assert here["model_id"] == worker["model_id"] == result["model_id"]
    assert here["auc"] == pytest.approx(worker["auc"], abs=1e-6)


def test_a_changed_training_set_is_refused(trained):
    workspace, result = trained
    data = newest(workspace.training_sets, kind="training_set", made_by="train")
    path = workspace.training_sets / data.id / "test.parquet"
    original = path.read_bytes()
    path.write_bytes(original[:-1] + b"x")
    try:
        with pytest.raises(ArtifactError, match=r"test\.parquet was changed.*crescendo train"):
            evaluate(workspace, result["model_id"])
    finally:
        path.write_bytes(original)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "wide"),
        ("epochs", 0),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("workers", -1),
        ("patience", 0),
        ("checkpoint_every_s", -1.0),
        ("code_start", "zeros"),
    ],
)
def test_bad_options_name_field_and_value(field, value):
    with pytest.raises(InputError, match=rf"{field} must .*{value}"):
        TrainOptions(**{field: value})
