"""What a model's drift baseline counts, one by one from the test part."""

from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from feature_repo.artifacts import read_manifest
from feature_repo.workspace import Workspace
from models.stability import BASELINE_FILE, SCORE_BINS
from ray_jobs import drift_baseline
from ray_jobs.drift_baseline import write_drift_baseline
from ray_jobs.evaluate import write_test_scores
from ray_jobs.publish import publish
from ray_jobs.sequences import SequenceOptions, sequences
from ray_jobs.training_set import TrainingSetOptions, training_set
from tests.event_logs import write_events
from tests.generations import write_generation
from tests.trained import GENERATION, TRACKS, learnable_log
from tests.untrained import write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folders of a model and its training set, and the model's manifest, with test scores."""
    workspace = Workspace(tmp_path_factory.mktemp("baseline"))
    write_events(workspace, learnable_log(events=1200))
    write_generation(workspace, GENERATION, TRACKS)
    sequences(workspace, SequenceOptions(length=10))
    publish(workspace)
    data = training_set(workspace, TrainingSetOptions())
    folder = workspace.models / write_model(workspace, data, "mcca")
    manifest = read_manifest(folder, kind="model", made_by="train")
    training_folder = workspace.training_sets / data.id
    write_test_scores(folder, training_folder, manifest)
    return folder, training_folder, manifest


def written(model):
    write_drift_baseline(*model)
    return load_file(model[0] / BASELINE_FILE)


def test_scores_are_those_of_the_test_part(model):
    counts = written(model)["score_counts"]
    scores = pq.read_table(model[0] / "test_scores.parquet")["score"].to_pylist()
    expected = Counter(min(int(score * SCORE_BINS), SCORE_BINS - 1) for score in scores)
    assert counts.tolist() == [expected[number] for number in range(SCORE_BINS)]
    assert len(scores) > 50


def first_codes(training_folder):
    """Track id -> first code of each family."""
    items = load_file(training_folder / "items.safetensors")
    return dict(zip(items["track_ids"].tolist(), items["codes"][:, :, 0].tolist(), strict=True))


@pytest.mark.parametrize("most", [10**6, 40])
def test_codes_are_those_of_the_rows_looked_at(model, monkeypatch, most):
    monkeypatch.setattr(drift_baseline, "SAMPLED_ROWS", most)
    counts = written(model)
    _, training_folder, manifest = model
    codes_of = first_codes(training_folder)
    rows = pq.read_table(training_folder / "test.parquet").to_pylist()
    rows = rows[:: max(1, -(-len(rows) // most))]
    assert len(rows) <= most
    config = manifest.options["ranker"]
    expected = {
        "candidate_codes": [codes_of[row["track_id"]] for row in rows],
        "history_codes": [codes_of[track] for row in rows for track in row["seq_track_ids"] or []],
    }
    for name, tracks in expected.items():
        shape = len(config["families"]), config["codes"] + 1
        assert counts[name].shape == shape
        by_hand = np.zeros(shape, dtype=np.int64)
        for codes in tracks:
            for family, code in enumerate(codes):
                by_hand[family, code + 1] += 1
        np.testing.assert_array_equal(counts[name], by_hand)
        assert by_hand.sum() > 0
