"""Training end to end with real Ray Train workers: artifacts, early end, worker counts."""

import json
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
from ray_jobs.train_loop import load_state, save_state
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
        return [batch.target_ids_B.numpy() for batch, _, _ in train_batches(folder, side, place)]

    alone, first, second = targets(0, 1), targets(0, 2), targets(1, 2)
    assert sum(len(batch) for batch in alone) == data.rows["train"]
    for whole, even, odd in zip(alone, first, second, strict=True):
        np.testing.assert_array_equal(whole[0::2], even)
        np.testing.assert_array_equal(whole[1::2], odd)
    assert not np.array_equal(np.concatenate(alone), np.sort(np.concatenate(alone)))


@pytest.mark.slow
def test_two_workers_train_the_same_model(trained):
    workspace, result = trained
    parallel = train_small(workspace, workers=2)
    assert parallel["model_id"] != result["model_id"]
    curves = [
        (workspace.models / model_id / "metrics.jsonl").read_text().splitlines()
        for model_id in (result["model_id"], parallel["model_id"])
    ]
    alone, together = (json.loads(curve[0]) for curve in curves)
    # The same batches in the same order: only the order of float sums differs, which grows
    # with each step, so the first epoch is held closer than the last.
    assert together["rows"] == alone["rows"]
    assert together["validation_logloss"] == pytest.approx(alone["validation_logloss"], abs=2e-3)
    assert parallel["auc"] == pytest.approx(result["auc"], abs=2e-2)


def test_a_run_that_no_longer_improves_ends_and_keeps_its_best_epoch(trained):
    workspace, _ = trained
    both = train_all(
        workspace,
        [
            replace(SMALL, model="din", epochs=30, patience=1, learning_rate=0.05),
            replace(SMALL, model="din", epochs=1),
        ],
    )
    assert both[0]["epochs"] < 30
    assert both[0]["best_epoch"] == both[0]["epochs"] - 2  # one epoch of patience after it
    assert both[1]["epochs"] == 1
    for result in both:
        folder = workspace.models / result["model_id"]
        curve = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert result["validation_auc"] == max(epoch["validation_auc"] for epoch in curve)


def test_a_restored_state_takes_the_same_next_step(tmp_path):
    torch.manual_seed(0)
    inputs, targets = torch.randn(32, 5), torch.rand(32)

    def fresh(seed):
        torch.manual_seed(seed)
        model = torch.nn.Linear(5, 1)
        return model, torch.optim.Adam(model.parameters(), lr=0.1)

    def step(model, optimizer):
        loss = torch.nn.functional.mse_loss(model(inputs).squeeze(1), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    model, optimizer = fresh(1)
    for _ in range(3):
        step(model, optimizer)
    save_state(tmp_path, model, optimizer)
    restored = fresh(2)
    load_state(tmp_path, *restored)
    step(model, optimizer)
    step(*restored)
    torch.testing.assert_close(restored[0].state_dict(), model.state_dict(), rtol=0, atol=0)


def test_more_workers_than_ray_has_are_refused_at_once(trained):
    workspace, _ = trained
    with pytest.raises(InputError, match=r"500 workers need a CPU each.*--workers"):
        train_small(workspace, workers=500, batch_size=500)
    with pytest.raises(InputError, match=r"1 workers need a GPU each, Ray has 0.*--cpu"):
        train_small(workspace, gpu=True)


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
def test_the_same_seed_gives_the_same_model(trained):
    workspace, result = trained
    again = train_small(workspace)
    assert again["model_id"] == result["model_id"]
    assert again["auc"] == pytest.approx(result["auc"], abs=1e-6)


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
        ("workers", 0),
        ("patience", 0),
    ],
)
def test_bad_options_name_field_and_value(field, value):
    with pytest.raises(InputError, match=rf"{field} must .*{value}"):
        TrainOptions(**{field: value})
