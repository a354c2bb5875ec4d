"""Start weights of a ranker from an older one, whose semantic IDs mean the same.

    crescendo quantize --align-to OLD_GENERATION
    crescendo train --from MODEL --generation NEW_GENERATION

An aligned refit (`align.py`) keeps what a code means, so code tables are taken as they are, like
all else but the ID tables: those have a row for each track of the training part, which differs.
Their rows go by track id. A track that the old model had no row for begins at zero, as that model
saw it, so that training begins at the old model's function.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from feature_repo.artifacts import Manifest, read_manifest
from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from models.batch import FIRST_TRACK_ROW, Vocabulary, find_rows
from models.ranker_config import RankerConfig

ID_TABLE = "track_embedding.weight"
"""How the names of the tables end that hold a row for each track of the vocabulary."""
DIFFERS = ("id_rows",)
"""Sizes in which the two rankers may differ."""


def warm_weights(
    workspace: Workspace, model_id: str, generation_id: str, config: RankerConfig, new: Vocabulary
) -> dict[str, Tensor]:
    """The old model's weights in the shape of the new one.

    InputError where the rankers differ in more than their tracks, or where the generation's codes
    do not mean what they meant to the old model.
    """
    folder = workspace.models / model_id
    old = read_manifest(folder, kind="model", made_by="train")
    _check_ranker(old, config)
    _check_codes(workspace, old, generation_id)
    tensors = load_file(folder / "vocabulary.safetensors")
    known = Vocabulary(
        track_ids_I=tensors["track_ids"].numpy(), train_counts_I=tensors["train_counts"].numpy()
    )
    weights = load_file(folder / "model.safetensors")
    return {
        name: moved_rows(tensor, known, new) if name.endswith(ID_TABLE) else tensor
        for name, tensor in weights.items()
    }


def moved_rows(table: Tensor, old: Vocabulary, new: Vocabulary) -> Tensor:
    """An ID table (rows, D) of the old vocabulary for the new one; zeros for new tracks."""
    rows_I, known_I = find_rows(old.track_ids_I, new.track_ids_I)
    moved = torch.zeros(new.rows, table.shape[1], dtype=table.dtype)
    to_I = np.flatnonzero(known_I) + FIRST_TRACK_ROW
    moved[torch.from_numpy(to_I)] = table[torch.from_numpy(rows_I[known_I] + FIRST_TRACK_ROW)]
    return moved


def _check_ranker(old: Manifest, config: RankerConfig) -> None:
    theirs = asdict(RankerConfig(**old.options["ranker"]))
    for name, ours in asdict(config).items():
        if name not in DIFFERS and theirs[name] != ours:
            raise InputError(
                f"model {old.id} has {name} {_plain(theirs[name])}, the new one "
                f"{_plain(ours)}: its weights do not fit; train with the same, or without --from"
            )


def _check_codes(workspace: Workspace, old: Manifest, generation_id: str) -> None:
    """The generation is the old model's own, or aligned to it, through any number of refits."""
    wanted, seen = old.parents["generation"], generation_id
    while seen != wanted:
        folder = workspace.generations / seen
        manifest = read_manifest(folder, kind="generation", made_by="quantize", verify=False)
        if "alignment" not in manifest.info:
            raise InputError(
                f"model {old.id} knows the codes of {wanted}, and {generation_id} is not aligned "
                f"to them; run `crescendo quantize --align-to {wanted}` and train on what it "
                "makes, or train without --from"
            )
        seen = manifest.info["alignment"]["to"]


def _plain(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value
