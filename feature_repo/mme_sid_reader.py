"""Trained MME-SID models as `crescendo train-mme-sid` leaves them, for whoever scores with them.

    read = read_mme_sid(workspace, "model-0123456789ab")
    model = models.mme_sid.build(read.config, read.tensors(), read.base_tensors(), ...)

`models/<model_id>/` holds `adapter.safetensors` (LoRA, peft's names), `mme_sid.safetensors` (the
item side: trained parameters and frozen tables), `item_matrix.safetensors` (`track_ids` (I,) and
`matrix` (I, D), row 0 the padding), `metrics.jsonl` and the manifest. The base checkpoint is not
copied: the manifest has its folder and sha256.
"""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from feature_repo.artifacts import Manifest, read_manifest
from feature_repo.base_checkpoint import read_base
from feature_repo.errors import ArtifactError, InputError
from feature_repo.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor

MODEL = "mme_sid"
"""`options.model` of such a manifest; its kind is that of every model."""
MADE_BY = "train-mme-sid --base FOLDER"
ADAPTER_FILE = "adapter.safetensors"
OWN_FILE = "mme_sid.safetensors"
MATRIX_FILE = "item_matrix.safetensors"
WEIGHT_FILES = (ADAPTER_FILE, OWN_FILE, MATRIX_FILE)


class MmeSidTracks(NamedTuple):
    """What can be known of a model without reading its weights."""

    track_ids_I: np.ndarray
    """int64, rising; row 0 is the padding, 0."""
    sha256: str


@dataclass(frozen=True, kw_only=True)
class MmeSidModel:
    """A whole model folder; tensors are read when asked for."""

    model_id: str
    folder: Path
    manifest: Manifest
    track_ids_I: np.ndarray
    """int64, rising; row 0 is the padding, 0."""
    item_matrix_ID: np.ndarray
    """float32: a user's score of an item is the product of their vectors."""

    @property
    def config(self) -> dict[str, Any]:
        """What `models.mme_sid.build` takes."""
        config: dict[str, Any] = self.manifest.options["config"]
        return config

    @property
    def length(self) -> int:
        """Listens that the model reads: the last so many of a history."""
        return int(self.manifest.options["length"])

    @property
    def sha256(self) -> str:
        """Of the trained weights: another one after another training."""
        return _weights_sha256(self.manifest)

    @property
    def weight_bytes(self) -> int:
        """Of the base checkpoint's files."""
        return int(self.manifest.info["base_bytes"])

    def tensors(self) -> "dict[str, Tensor]":
        """The adapter's and the item side's tensors, by name."""
        from safetensors.torch import load_file

        tensors: dict[str, Tensor] = {}
        for name in (ADAPTER_FILE, OWN_FILE):
            tensors |= load_file(self.folder / name)
        return tensors

    def base_tensors(self) -> "dict[str, Tensor]":
        """The base checkpoint's. ArtifactError where the folder is gone or has other files."""
        base = self.manifest.parents["base"]
        try:
            found = read_base(Path(base["path"]))
        except InputError as error:
            raise ArtifactError(
                f"the base of model {self.model_id} cannot be read: {error}; put it back, or "
                f"run `crescendo {MADE_BY}` with another"
            ) from error
        if found.sha256 != base["sha256"]:
            raise ArtifactError(
                f"model {self.model_id} was trained on a base with sha256 {base['sha256']}, "
                f"{base['path']} now holds {found.sha256}; put the old one back, or run "
                f"`crescendo {MADE_BY}`"
            )
        return found.tensors()


def read_mme_sid(workspace: Workspace, model_id: str) -> MmeSidModel:
    """ArtifactError where the model is missing, changed, or another kind of model."""
    from safetensors.numpy import load_file

    folder = workspace.models / model_id
    manifest = _manifest(folder, verify=True)
    tensors = load_file(folder / MATRIX_FILE)
    return MmeSidModel(
        model_id=model_id,
        folder=folder,
        manifest=manifest,
        track_ids_I=tensors["track_ids"],
        item_matrix_ID=tensors["matrix"],
    )


def read_mme_sid_tracks(workspace: Workspace, model_id: str) -> MmeSidTracks:
    """The model's tracks, without reading or checking its weights."""
    from safetensors import safe_open

    folder = workspace.models / model_id
    manifest = _manifest(folder, verify=False)
    with safe_open(folder / MATRIX_FILE, framework="numpy") as file:
        track_ids_I = file.get_tensor("track_ids")
    return MmeSidTracks(track_ids_I=track_ids_I, sha256=_weights_sha256(manifest))


def _manifest(folder: Path, *, verify: bool) -> Manifest:
    manifest = read_manifest(folder, kind="model", made_by=MADE_BY, verify=verify)
    if manifest.options.get("model") != MODEL:
        raise ArtifactError(
            f"model {manifest.id} is {manifest.options.get('model')!r}, wanted {MODEL!r}; "
            f"run `crescendo {MADE_BY}` to make one"
        )
    missing = [name for name in WEIGHT_FILES if name not in manifest.files]
    if missing:
        raise ArtifactError(
            f"model {manifest.id} lacks {missing[0]}; run `crescendo {MADE_BY}` to make it again"
        )
    return manifest


def _weights_sha256(manifest: Manifest) -> str:
    hashes = {name: manifest.files[name] for name in WEIGHT_FILES}
    return sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
