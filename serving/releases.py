"""Releases: the triple (model, generation, feature service) that is served together.

    crescendo release [--model-id MODEL]     checks the fit of a triple and makes it the live one
    crescendo rollback                       makes the release before the live one live again

Writes `releases/<release_id>.json`, the Feast service `ranker_<release>`, and `releases/CURRENT`,
which changes by an atomic rename.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from feature_repo import schema
from feature_repo.artifacts import content_id, newest, read_manifest, write_json
from feature_repo.errors import ArtifactError, InputError
from feature_repo.workspace import Workspace

CURRENT = "CURRENT"


@dataclass(frozen=True, kw_only=True)
class Release:
    """What one response is scored with: never parts of two."""

    release_id: str
    model_id: str
    model_sha256: str
    """Of its weights: a model that was trained again under the same id is another one."""
    generation_id: str
    feature_service: str
    created_at: str
    replaces: str | None
    """The release that was live when this one was made: where a rollback goes."""


def make_release(workspace: Workspace, model_id: str | None = None) -> dict[str, Any]:
    """Checks that model, generation and features fit, and makes the release live."""
    if model_id is None:
        model_id = newest(workspace.models, kind="model", made_by="train").id
    model = read_manifest(workspace.models / model_id, kind="model", made_by="train")
    generation_id = model.parents["generation"]
    generation = read_manifest(
        workspace.generations / generation_id, kind="generation", made_by="quantize"
    )
    ranker = model.options["ranker"]
    for name in ("families", "levels", "codes"):
        if _plain(ranker[name]) != _plain(generation.info[name]):
            raise ArtifactError(
                f"model {model_id} was trained on {name}={ranker[name]}, generation "
                f"{generation_id} has {generation.info[name]}; run `crescendo train` on it"
            )
    model_sha256 = model.files["model.safetensors"]
    release_id = content_id("release", model_id, model_sha256, generation_id)
    previous = current_release_id(workspace)
    release = Release(
        release_id=release_id,
        model_id=model_id,
        model_sha256=model_sha256,
        generation_id=generation_id,
        feature_service=schema.ranker_service_name(release_id),
        created_at=datetime.now(UTC).isoformat(),
        replaces=previous if previous != release_id else _replaced_by(workspace, release_id),
    )
    _register_service(workspace, release, model.info["features"])
    write_json(workspace.releases / f"{release_id}.json", asdict(release))
    _make_live(workspace, release_id)
    return asdict(release)


def rollback(workspace: Workspace) -> dict[str, Any]:
    """Makes the release that the live one replaced live again."""
    live = live_release(workspace)
    if live.replaces is None:
        raise InputError(f"release {live.release_id} replaced none: there is nothing to go back to")
    earlier = read_release(workspace, live.replaces)
    _make_live(workspace, earlier.release_id)
    return asdict(earlier)


def live_release(workspace: Workspace) -> Release:
    """The release that CURRENT names."""
    release_id = current_release_id(workspace)
    if release_id is None:
        raise ArtifactError(
            f"no release is live in {workspace.root}; run `crescendo release` to make one"
        )
    return read_release(workspace, release_id)


def current_release_id(workspace: Workspace) -> str | None:
    path = workspace.releases / CURRENT
    return path.read_text().strip() if path.exists() else None


def read_release(workspace: Workspace, release_id: str) -> Release:
    path = workspace.releases / f"{release_id}.json"
    if not path.exists():
        raise ArtifactError(f"no release {release_id}: {path} is missing; run `crescendo release`")
    return Release(**json.loads(path.read_text()))


def _plain(value: Any) -> Any:
    """JSON brings tuples back as lists: compare both as lists."""
    return list(value) if isinstance(value, list | tuple) else value


def _replaced_by(workspace: Workspace, release_id: str) -> str | None:
    return read_release(workspace, release_id).replaces


def _register_service(workspace: Workspace, release: Release, features: Sequence[str]) -> None:
    """Registers the service that holds `features`, `view:feature` of the model, and its IDs."""
    from feature_repo.feature_definitions import ranker_service
    from feature_repo.store import apply, find_view, open_store

    store = open_store(workspace)
    columns: dict[str, list[str]] = {}
    for reference in features:
        view, column = reference.split(":")
        columns.setdefault(view, []).append(column)
    read = [find_view(store, view)[names] for view, names in columns.items()]
    semantic_ids = find_view(store, schema.semantic_ids_view_name(release.generation_id))
    apply(store, [ranker_service(release.release_id, read, semantic_ids)])


def _make_live(workspace: Workspace, release_id: str) -> None:
    partial = workspace.releases / f".{CURRENT}.{os.getpid()}"
    partial.write_text(release_id + "\n")
    os.replace(partial, workspace.releases / CURRENT)
