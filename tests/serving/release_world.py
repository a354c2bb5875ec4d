"""A small published workspace with models of two generations, for tests that change releases.

Its rankers have random weights: three models that all score otherwise, made in seconds.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import load_file, save_file

from feature_repo.artifacts import MANIFEST, file_sha256
from feature_repo.store_settings import PACKED_SQLITE, STORE_SETTINGS
from feature_repo.workspace import Workspace
from models.warm_up import WARM_UP_FILE
from ray_jobs.publish import publish
from ray_jobs.sequences import SequenceOptions, sequences
from ray_jobs.training_set import TrainingSetOptions, training_set
from tests.event_logs import write_events
from tests.generations import write_generation
from tests.trained import TRACKS, learnable_log
from tests.untrained import write_model

OLD, NEW = "gen-aaaaaaaaaaaa", "gen-bbbbbbbbbbbb"
NUMBERS = ("user", "track", "context")
LENGTH = 10


@dataclass(frozen=True, kw_only=True)
class ReleaseWorld:
    workspace: Workspace
    old: str
    """MCCA on the old generation."""
    new: str
    """MCCA on the new one."""
    numbers: str
    """DIN on the new one, with numbers of user, track and context."""
    plain: str
    """A transformer on the new one, which is served as it was trained."""

    def reset(self) -> None:
        """Drops every release."""
        for path in self.workspace.releases.glob("*"):
            path.unlink()


def release_world(folder: Path, online_store: dict[str, Any] | None = None) -> ReleaseWorld:
    """`online_store`: of feature_store.yaml; packed SQLite by default."""
    folder.mkdir()
    online = online_store or {"type": PACKED_SQLITE, "path": "online.db"}
    settings = STORE_SETTINGS | {"online_store": online}
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    workspace = Workspace(folder)
    write_events(workspace, learnable_log(events=1500))
    sequences(workspace, SequenceOptions(length=LENGTH))
    for seed, generation in enumerate((OLD, NEW)):
        write_generation(workspace, generation, TRACKS, seed)
        publish(workspace)

    def model(kind: str, generation: str, features: tuple[str, ...] = ()) -> str:
        options = TrainingSetOptions(generation=generation, features=features)
        return write_model(workspace, training_set(workspace, options), kind, features)

    return ReleaseWorld(
        workspace=workspace,
        old=model("mcca", OLD),
        new=model("mcca", NEW),
        numbers=model("din", NEW, NUMBERS),
        plain=model("transformer", NEW),
    )


def copied_model(workspace: Workspace, model_id: str, name: str) -> str:
    """The same model as an artifact of its own, to be broken."""
    copy = workspace.models / name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(workspace.models / model_id, copy)
    rewrite_manifest(copy, id=name)
    return name


def rewrite_manifest(folder: Path, **changes: Any) -> None:
    """Changes fields of the manifest, and makes it fit the files as they are now."""
    manifest = json.loads((folder / MANIFEST).read_text()) | changes
    manifest["files"] = {name: file_sha256(folder / name) for name in manifest["files"]}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def change_warm_up(folder: Path, **arrays: np.ndarray) -> None:
    """Records other requests or scores in a model folder, as if its training had."""
    recorded = load_file(folder / WARM_UP_FILE)
    save_file(recorded | arrays, folder / WARM_UP_FILE)
    rewrite_manifest(folder)
