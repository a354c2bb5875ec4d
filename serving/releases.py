"""Releases: the triple (model, generation, feature service) that is served together.

    crescendo release [--model-id MODEL]                   checks a triple, makes it the live one
    crescendo release [--model-id MODEL] --canary SHARE    ... serves it to this share of the users
    crescendo release [--model-id MODEL] --shadow          ... scores with it beside the live one
    crescendo release ... --retriever RETRIEVER            ... which proposes tracks to `recommend`
    crescendo promote                                      makes the canary the live release
    crescendo withdraw                                     drops canary and shadow
    crescendo rollback                                     back to the release before, no canary

Writes `releases/<release_id>.json`, the Feast service `ranker_<release>`, and one of
`releases/CURRENT`, `releases/CANARY` and `releases/SHADOW`. These change by an atomic rename, and
a process that serves sees it within a second (`live_releases.py`).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

from feature_repo import schema
from feature_repo.artifacts import content_id, newest, read_manifest, write_json
from feature_repo.durable_files import replacing
from feature_repo.errors import ArtifactError, InputError
from feature_repo.workspace import Workspace
from serving.retriever_choice import CANDIDATES, choose_retriever

CURRENT = "CURRENT"
CANARY = "CANARY"
SHADOW = "SHADOW"


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
    retriever_model_id: str | None = None
    """The model that `recommend` asks for tracks, beside its other sources. A release from before
    there were any has none, and its JSON no such field."""
    retriever_sha256: str | None = None
    """Of its weights, as `feature_repo.mme_sid_reader` says."""
    candidates_view: str | None = None
    """The feature view that its candidates are read from; None: the replica runs the model."""


@dataclass(frozen=True, kw_only=True)
class Canary:
    """What `releases/CANARY` holds: a release that some users get instead of the live one."""

    release_id: str
    share: float
    """Of the users, above 0, at most 1. A user who is in stays in when it grows."""

    def __post_init__(self) -> None:
        if not isinstance(self.share, int | float) or not 0 < self.share <= 1:
            raise InputError(
                f"canary share is {self.share!r}; expected a share of the users above 0, at most 1"
            )

    def takes(self, user_id: int) -> bool:
        """By a hash of the user and the release: the next canary is tried on other users."""
        digest = blake2b(f"{self.release_id} {user_id}".encode(), digest_size=8).digest()
        return int.from_bytes(digest) < self.share * 2**64


def make_release(
    workspace: Workspace,
    model_id: str | None = None,
    *,
    retriever_model_id: str | None = None,
    canary_share: float | None = None,
    shadow: bool = False,
) -> dict[str, Any]:
    """Checks that model, generation and features fit, and makes the release live.

    `retriever_model_id`: of a trained mme_sid model, checked and used as `retriever_choice` says;
    without it the release has none, whatever the live one has.

    With `canary_share` it goes to that share of the users, with `shadow` to nobody: it is scored
    and compared. Both take the place of an earlier one and need a live release beside them. A
    release has one place: the canary that becomes the shadow is no canary any more.
    InputError for both together, for a share out of range, and for the live release itself.
    """
    if canary_share is not None and shadow:
        raise InputError(
            f"canary is {canary_share} and shadow is set; expected one of them: a canary's scores "
            "are shown, a shadow's are not"
        )
    if canary_share is not None:
        Canary(release_id="", share=canary_share)  # refuses the share before anything is written
    if model_id is None:
        model_id = newest(workspace.models, kind="model", made_by="train", option="ranker").id
    model = read_manifest(workspace.models / model_id, kind="model", made_by="train")
    if "ranker" not in model.options:
        raise InputError(
            f"model {model_id} is a retriever, which ranks nothing; give a ranker as --model-id "
            f"and this one as --retriever {model_id}"
        )
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
    parts = [model_id, model_sha256, generation_id]
    retriever = None
    if retriever_model_id is not None:
        retriever = choose_retriever(workspace, retriever_model_id, generation_id)
        parts.append(asdict(retriever))
    release_id = content_id("release", *parts)
    previous = current_release_id(workspace)
    release = Release(
        release_id=release_id,
        model_id=model_id,
        model_sha256=model_sha256,
        generation_id=generation_id,
        feature_service=schema.ranker_service_name(release_id),
        created_at=datetime.now(UTC).isoformat(),
        replaces=previous if previous != release_id else _replaced_by(workspace, release_id),
        **({} if retriever is None else asdict(retriever)),
    )
    beside = canary_share is not None or shadow
    if beside and release_id == live_release(workspace).release_id:
        raise InputError(
            f"release {release_id} of model {model_id} is live: it cannot be its own canary or "
            "shadow; give another --model-id"
        )
    _register_service(workspace, release, read_features(release, model.info["features"]))
    write_json(workspace.releases / f"{release_id}.json", asdict(release))
    if canary_share is not None:
        canary = Canary(release_id=release_id, share=canary_share)
        write_json(workspace.releases / CANARY, asdict(canary))
        _leave(workspace, release_id, SHADOW)
    elif shadow:
        _point(workspace, SHADOW, release_id)
        _leave(workspace, release_id, CANARY)
    else:
        _make_live(workspace, release_id)
    return asdict(release)


def promote(workspace: Workspace) -> dict[str, Any]:
    """Makes the canary the live release; a rollback goes to the one that was live until now."""
    canary = read_canary(workspace)
    if canary is None:
        raise InputError(
            f"no canary in {workspace.root}; run `crescendo release --canary SHARE` to make one"
        )
    release = read_release(workspace, canary.release_id)
    live = live_release(workspace)
    if live.release_id != release.release_id:
        # The live one may have changed since the canary was made.
        release = replace(release, replaces=live.release_id)
        write_json(workspace.releases / f"{release.release_id}.json", asdict(release))
    _make_live(workspace, release.release_id)
    return asdict(release)


def rollback(workspace: Workspace) -> dict[str, Any]:
    """Makes the release that the live one replaced live again, for all users: drops a canary."""
    live = live_release(workspace)
    if live.replaces is None:
        raise InputError(
            f"release {live.release_id} replaced none: there is nothing to go back to; "
            "`crescendo withdraw` drops a canary"
        )
    earlier = read_release(workspace, live.replaces)
    (workspace.releases / CANARY).unlink(missing_ok=True)
    _make_live(workspace, earlier.release_id)
    return asdict(earlier)


def withdraw(workspace: Workspace) -> dict[str, Any]:
    """Drops canary and shadow, readable or not: the live release is left. Says which there were."""
    paths = [workspace.releases / name for name in (CANARY, SHADOW)]
    withdrawn = [path for path in paths if path.exists()]
    if not withdrawn:
        raise InputError(f"no canary and no shadow in {workspace.root}: there is none to withdraw")
    for path in withdrawn:
        path.unlink(missing_ok=True)
    return {"withdrawn": [path.name.lower() for path in withdrawn]}


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


def read_canary(workspace: Workspace) -> Canary | None:
    """None where no canary runs; ArtifactError for a file that is none."""
    path = workspace.releases / CANARY
    try:
        return Canary(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:  # of JSON, of its keys, of the share
        raise ArtifactError(
            f"{path} is not a canary ({error}); run `crescendo withdraw` to drop it"
        ) from error


def shadow_release_id(workspace: Workspace) -> str | None:
    try:
        return (workspace.releases / SHADOW).read_text().strip()
    except FileNotFoundError:  # also one that is withdrawn at this moment
        return None


def read_release(workspace: Workspace, release_id: str) -> Release:
    path = workspace.releases / f"{release_id}.json"
    if not path.exists():
        raise ArtifactError(
            f"no release {release_id}: {path} is missing; {_instead_of(workspace, release_id)}"
        )
    try:
        return Release(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ArtifactError(
            f"{path} is not a release ({error}); {_instead_of(workspace, release_id)}"
        ) from error


def _instead_of(workspace: Workspace, release_id: str) -> str:
    """Which command makes which release live where one cannot be read: `rollback` cannot either."""
    others = []
    for path in workspace.releases.glob("*.json"):
        try:
            other = Release(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            continue
        if other.release_id != release_id:
            others.append(other)
    if not others:
        return "run `crescendo release` to make one"
    newest = max(others, key=lambda other: other.created_at)
    return (
        f"the newest of the others is {newest.release_id}: run `crescendo release --model-id "
        f"{newest.model_id}` to make it live"
    )


def read_features(release: Release, of_model: Sequence[str]) -> list[str]:
    """`view:feature` of all that a request reads of a user, and of the tracks' counts."""
    view = release.candidates_view
    candidates = [] if view is None else [f"{view}:{name}" for name in CANDIDATES]
    return [*of_model, *candidates]


def _plain(value: Any) -> Any:
    """JSON brings tuples back as lists: compare both as lists."""
    return list(value) if isinstance(value, list | tuple) else value


def _replaced_by(workspace: Workspace, release_id: str) -> str | None:
    """None too where the release's file cannot be read: it is being made again."""
    try:
        return read_release(workspace, release_id).replaces
    except ArtifactError:
        return None


def _register_service(workspace: Workspace, release: Release, features: Sequence[str]) -> None:
    """Registers the service that holds `features`, each `view:feature`, and the model's IDs."""
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
    _point(workspace, CURRENT, release_id)
    _leave(workspace, release_id, CANARY)
    _leave(workspace, release_id, SHADOW)


def _point(workspace: Workspace, name: str, release_id: str) -> None:
    with replacing(workspace.releases / name) as stream:
        stream.write(f"{release_id}\n".encode())


def _leave(workspace: Workspace, release_id: str, name: str) -> None:
    """Removes CANARY or SHADOW where it names this release, which now has another place."""
    path = workspace.releases / name
    # As text: a canary that cannot be read is no reason to keep a good release from going live.
    if path.exists() and release_id in path.read_text():
        path.unlink()
