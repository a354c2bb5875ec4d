"""A ranker with random weights as a whole model artifact, where training it says nothing more."""

from dataclasses import asdict

import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_weights

from feature_repo.artifacts import Manifest, content_id, write_artifact
from feature_repo.workspace import Workspace
from models.ranker_config import RankerConfig
from models.rankers import build_ranker
from ray_jobs.ranker_start import start_tensors
from ray_jobs.warm_up_scores import write_warm_up


def write_model(workspace: Workspace, data: Manifest, model: str, features=()) -> str:
    """Writes a model on the training set `data`, as `crescendo train` does; returns its id."""
    folder = workspace.training_sets / data.id
    items = load_file(folder / "items.safetensors")
    config = RankerConfig(
        model=model,
        id_rows=1 + len(items["vocabulary_track_ids"]),
        families=data.info["families"],
        levels=data.info["levels"],
        codes=data.info["codes"],
        history_length=data.info["history_length"],
        embedding_width=8,
        numbers=data.info["numbers"],
    )
    torch.manual_seed(0)
    ranker = build_ranker(config)
    start = start_tensors(workspace, data, config, code_start="random", seed=0)
    ranker.load_state_dict({**ranker.state_dict(), **start})
    manifest = Manifest(
        kind="model",
        id=content_id("model", data.id, asdict(config)),
        parents={"training_set": data.id, "generation": data.parents["generation"]},
        options={"model": model, "features": list(features), "ranker": asdict(config)},
        info={"features": data.info["features"]},
    )
    with write_artifact(workspace.models / manifest.id, manifest) as partial:
        save_weights(ranker.state_dict(), partial / "model.safetensors")
        vocabulary = {
            "track_ids": items["vocabulary_track_ids"],
            "train_counts": items["vocabulary_train_counts"],
        }
        save_file(vocabulary, partial / "vocabulary.safetensors")
        write_warm_up(partial, folder, manifest)
    return manifest.id
