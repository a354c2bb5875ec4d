"""A ranker that starts from an older one begins at what that one knew."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from feature_repo.artifacts import Manifest, read_manifest, write_artifact, write_json
from feature_repo.errors import ArtifactError, InputError
from feature_repo.workspace import Workspace
from models.batch import FIRST_TRACK_ROW, ZERO_ROW, Vocabulary
from models.ranker_config import RankerConfig
from models.rankers import build_ranker
from ray_jobs.publish import publish
from ray_jobs.quantize import quantize
from ray_jobs.quantize_options import QuantizeOptions
from ray_jobs.run_folder import START_FILE
from ray_jobs.sequences import SequenceOptions, sequences
from ray_jobs.train import train
from ray_jobs.train_loop import train_one
from ray_jobs.train_options import TrainOptions
from ray_jobs.warm_start import warm_weights
from ray_jobs.worker_group import WorkerGroup
from tests.embedded import clustered, write_catalogue
from tests.event_logs import write_events
from tests.generations import CODES, FAMILIES, LEVELS, write_generation
from tests.small_training_set import worker_settings, write_training_set
from tests.trained import SMALL, TRACKS, learnable_log

OLD, ALIGNED, LATER, OTHER = "gen-old", "gen-aligned", "gen-later", "gen-other"
KNOWN = [2, 3, 5, 8]


def vocabulary(track_ids):
    ids = np.array(track_ids)
    return Vocabulary(track_ids_I=ids, train_counts_I=np.ones_like(ids))


def config(model="deepfm", rows=len(KNOWN) + FIRST_TRACK_ROW, **changes):
    sizes = {"embedding_width": 6, "attention_hidden": 4, "tower_hidden": (5,)}
    return RankerConfig(
        model=model,
        id_rows=rows,
        families=FAMILIES,
        levels=LEVELS,
        codes=CODES,
        history_length=7,
        **(sizes | changes),
    )


@pytest.fixture
def workspace(tmp_path):
    """A model on gen-old, and generations that are aligned to it, directly, at one remove, not."""
    workspace = Workspace(tmp_path)
    for generation, aligned_to in ((OLD, None), (ALIGNED, OLD), (LATER, ALIGNED), (OTHER, None)):
        write_generation(workspace, generation, 10)
        if aligned_to is not None:
            path = workspace.generations / generation / "manifest.json"
            manifest = json.loads(path.read_text())
            manifest["info"]["alignment"] = {"to": aligned_to, "families": {}}
            write_json(path, manifest)
    torch.manual_seed(0)
    manifest = Manifest(
        kind="model",
        id="model-old",
        parents={"generation": OLD},
        options={"ranker": asdict(config())},
    )
    with write_artifact(workspace.models / "model-old", manifest) as partial:
        save_file(build_ranker(config()).state_dict(), partial / "model.safetensors")
        tensors = {"track_ids": torch.tensor(KNOWN), "train_counts": torch.ones(len(KNOWN))}
        save_file(tensors, partial / "vocabulary.safetensors")
    return workspace


@pytest.mark.parametrize("generation", [OLD, ALIGNED, LATER])
def test_rows_of_tracks_move_and_all_else_is_copied(workspace, generation):
    new = vocabulary([1, 2, 5, 6, 8, 9])
    weights = warm_weights(workspace, "model-old", generation, config(rows=new.rows), new)
    old = load_file(workspace.models / "model-old" / "model.safetensors")
    build_ranker(config(rows=new.rows)).load_state_dict(weights)  # every tensor, every shape
    tables = [name for name in old if name.endswith("track_embedding.weight")]
    assert len(tables) == 2  # DeepFM: of the fields, and of the first order
    for name, tensor in old.items():
        if name not in tables:
            assert torch.equal(weights[name], tensor), name
    for name in tables:
        row = {track: old[name][FIRST_TRACK_ROW + n] for n, track in enumerate(KNOWN)}
        for n, track in enumerate(new.track_ids_I):
            expected = row.get(track, torch.zeros(old[name].shape[1]))
            assert torch.equal(weights[name][FIRST_TRACK_ROW + n], expected), (name, track)
        assert torch.equal(weights[name][ZERO_ROW], torch.zeros(old[name].shape[1]))


def test_what_does_not_fit_is_refused(workspace):
    new = vocabulary(KNOWN)
    with pytest.raises(InputError, match=rf"of {OLD}, and {OTHER} is not.*--align-to {OLD}"):
        warm_weights(workspace, "model-old", OTHER, config(), new)
    for changes, said in (
        ({"model": "dnn"}, "model-old has model deepfm, the new one dnn"),
        ({"embedding_width": 12}, "has embedding_width 6, the new one 12"),
        ({"tower_hidden": (5, 2)}, "has tower_hidden 5, the new one 5,2"),
    ):
        with pytest.raises(InputError, match=said):
            warm_weights(workspace, "model-old", ALIGNED, config(**changes), new)
    changed = replace(config(), codes=CODES + 1)
    with pytest.raises(InputError, match=rf"has codes {CODES}, the new one {CODES + 1}"):
        warm_weights(workspace, "model-old", ALIGNED, changed, new)
    with pytest.raises(ArtifactError, match="no model model-none"):
        warm_weights(workspace, "model-none", ALIGNED, config(), new)
    with pytest.raises(InputError, match=r"code_start must be random with start_from"):
        TrainOptions(start_from="model-old", code_start="centroids")


def test_training_begins_where_the_old_model_ended(tmp_path):
    alone = WorkerGroup(rank=0, world_size=1, device=torch.device("cpu"), node="here")
    training_set = write_training_set(tmp_path / "ts-1")
    train_one(worker_settings(training_set, tmp_path / "old", epochs=1), alone)
    (line,) = (tmp_path / "old" / "metrics.jsonl").read_text().splitlines()
    settings = worker_settings(
        training_set,
        tmp_path / "new",
        warm=True,
        start_weights=str(tmp_path / "old" / "last.safetensors"),
    )
    train_one(settings, alone)
    before = json.loads((tmp_path / "new" / START_FILE).read_text())
    assert before["validation_auc"] == json.loads(line)["validation_auc"]
    assert before["validation_logloss"] == json.loads(line)["validation_logloss"]


@pytest.mark.slow
def test_after_an_aligned_refit_on_more_tracks(tmp_path):
    workspace = Workspace(tmp_path)
    dims = {"text": 8, "audio": 5}
    books = QuantizeOptions(levels=2, codes=6)
    write_events(workspace, learnable_log())
    sequences(workspace, SequenceOptions(length=10))
    write_catalogue(workspace, clustered(TRACKS, dims))
    first = quantize(workspace, books)["generation_id"]
    publish(workspace)
    old = train(workspace, SMALL)

    write_catalogue(workspace, clustered(TRACKS + 20, dims))
    refit = quantize(workspace, replace(books, align_to=first))
    publish(workspace)
    options = replace(
        SMALL, start_from=old["model_id"], generation=refit["generation_id"], epochs=1
    )
    new = train(workspace, options)
    manifest = read_manifest(workspace.models / new["model_id"], kind="model", made_by="train")
    assert manifest.parents["start_from"] == old["model_id"]
    assert manifest.parents["generation"] == refit["generation_id"] != first
    before = manifest.info["before_training"]["validation_auc"]
    assert old["validation_auc"] > 0.7
    assert before == pytest.approx(old["validation_auc"], abs=0.03)
    assert new["validation_auc"] > old["validation_auc"] - 0.03
