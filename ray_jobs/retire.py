"""Drops generations and candidates that nobody reads any more, and releases that are not needed.

    crescendo retire                            every generation and all candidates without readers
    crescendo retire --generation GENERATION    that one, or says who still reads it
    crescendo retire --release RELEASE          one that is neither live, canary, shadow nor
                                                the way back

Of a generation its online rows, its Feast view and `features/track_semantic_ids_<generation>/` go;
`generations/<generation>/` and the codebooks stay, so `crescendo publish --generation` brings it
back. The newest generation stays, and so does one that a release or a feature service names. The
same holds for the candidates of a retriever model (`features/user_candidates_<model>/`), of which
the newest stay: their release may be still to come; the model stays, and `crescendo score-users`
brings them back. Online rows go first and the registry's entry last: a run that was killed is
finished by the next one.
"""

import json
import shutil
from dataclasses import dataclass
from typing import Any

from feature_repo.artifacts import MANIFEST, newest, read_manifest, recover
from feature_repo.errors import ArtifactError, InputError
from feature_repo.scratch import only_writer
from feature_repo.workspace import Workspace
from ray_jobs.progress import step

GENERATION_TAG = "generation"
MODEL_TAG = "model"
"""Of the view of a retriever model's candidates."""
RELEASE_TAG = "release"
CURRENT, CANARY, SHADOW = "CURRENT", "CANARY", "SHADOW"


@dataclass(frozen=True, kw_only=True)
class RetireOptions:
    generation: str | None = None
    """The generation to drop; every unused one, and unused candidates, when neither is given."""
    release: str | None = None
    """The release to drop. Its generation can go afterwards."""

    def __post_init__(self) -> None:
        if self.generation is not None and self.release is not None:
            raise InputError(
                f"generation is {self.generation!r} and release is {self.release!r}; expected one "
                "of them"
            )


def retire(workspace: Workspace, options: RetireOptions) -> dict[str, Any]:
    """Returns what was dropped, `generations`, `candidates` (model ids) and `releases`, and `kept`:
    generation -> readers.

    Raises ArtifactError, and drops nothing, where what was asked for is still in use; InputError
    for what does not exist.
    """
    with step("import feast"):
        from feature_repo.store import open_store
    store = open_store(workspace)
    if options.release is not None:
        _drop_release(workspace, store, options.release)
        return {"generations": [], "candidates": [], "releases": [options.release], "kept": {}}
    registered = store.registry.list_feature_views(store.project, allow_cache=False)
    views = {view.tags[GENERATION_TAG]: view for view in registered if GENERATION_TAG in view.tags}
    readers = _readers(workspace, store, views)
    if options.generation is not None:
        if options.generation not in views:
            raise InputError(
                f"generation {options.generation} is not published; published are {sorted(views)}"
            )
        if readers[options.generation]:
            raise ArtifactError(
                f"generation {options.generation} is still read by "
                f"{', '.join(readers[options.generation])}; make a release of another generation, "
                "and drop the old ones with `crescendo retire --release`"
            )
    unused = sorted(generation for generation, who in readers.items() if not who)
    dropped = [options.generation] if options.generation is not None else unused
    for generation_id in dropped:
        with step(f"retire {generation_id}"):
            _drop_view(workspace, store, views[generation_id])
    candidates = [] if options.generation is not None else _unread(workspace, store, registered)
    for view in candidates:
        with step(f"retire {view.name}"):
            _drop_view(workspace, store, view)
    kept = {generation: who for generation, who in readers.items() if generation not in dropped}
    return {
        "generations": dropped,
        "candidates": sorted(view.tags[MODEL_TAG] for view in candidates),
        "releases": [],
        "kept": dict(sorted(kept.items())),
    }


def _readers(workspace: Workspace, store: Any, views: dict[str, Any]) -> dict[str, list[str]]:
    """Who reads each published generation: releases, feature services, and being the newest."""
    readers: dict[str, set[str]] = {generation: set() for generation in views}
    last = newest(workspace.generations, kind="generation", made_by="quantize").id
    readers.get(last, set()).add("those who want the newest generation")
    for release_id, release in _releases(workspace).items():
        readers.get(release["generation_id"], set()).add(f"release {release_id}")
    generation_of = {view.name: generation for generation, view in views.items()}
    for service in store.registry.list_feature_services(store.project, allow_cache=False):
        release_id = service.tags.get(RELEASE_TAG)
        name = f"feature service {service.name}" if release_id is None else f"release {release_id}"
        for projection in service.feature_view_projections:
            if projection.name in generation_of:
                readers[generation_of[projection.name]].add(name)
    return {generation: sorted(who) for generation, who in readers.items()}


def _unread(workspace: Workspace, store: Any, registered: list[Any]) -> list[Any]:
    """Views of candidates that neither a release nor a feature service names, less the newest."""
    views = {view.name: view for view in registered if MODEL_TAG in view.tags}
    read = {release.get("candidates_view") for release in _releases(workspace).values()}
    for service in store.registry.list_feature_services(store.project, allow_cache=False):
        read |= {projection.name for projection in service.feature_view_projections}
    made_at = {
        name: read_manifest(
            workspace.feature_source(name),
            kind="feature_source",
            made_by=f"score-users --model-id {view.tags[MODEL_TAG]}",
            verify=False,
        ).created_at
        for name, view in views.items()
        if (workspace.feature_source(name) / MANIFEST).exists()
    }
    if made_at:
        read.add(max(made_at, key=made_at.__getitem__))
    return [view for name, view in views.items() if name not in read]


def _drop_view(workspace: Workspace, store: Any, view: Any) -> None:
    online = store._get_provider().online_store
    # One view goes and none is added: nothing else in the store is touched.
    online.update(
        config=store.config,
        tables_to_delete=[view],
        tables_to_keep=[],
        entities_to_delete=[],
        entities_to_keep=[],
        partial=True,
    )
    source = workspace.feature_source(view.name)
    recover(source)
    if source.exists():
        with only_writer(source):
            # The manifest first: a folder without one is no source.
            (source / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(source)
    for name in (f"{view.name}.json", f"{view.name}.progress.json"):
        (workspace.root / "materialization" / name).unlink(missing_ok=True)
    sources = store.registry.list_data_sources(store.project, allow_cache=False)
    if view.batch_source.name in {known.name for known in sources}:
        store.registry.delete_data_source(view.batch_source.name, store.project)
    store.registry.delete_feature_view(view.name, store.project)


def _drop_release(workspace: Workspace, store: Any, release_id: str) -> None:
    """Removes the file, then the feature service, which names the release until it goes."""
    releases = _releases(workspace)
    services = [
        service.name
        for service in store.registry.list_feature_services(store.project, allow_cache=False)
        if service.tags.get(RELEASE_TAG) == release_id
    ]
    if release_id not in releases and not services:
        raise InputError(f"no release {release_id}; there are {sorted(releases)}")
    current = workspace.releases / CURRENT
    live = current.read_text().strip() if current.exists() else None
    if release_id == live:
        raise ArtifactError(
            f"release {release_id} is live; make another one live with `crescendo release` or "
            "`crescendo rollback` before it goes"
        )
    for name in (CANARY, SHADOW):
        path = workspace.releases / name
        if path.exists() and release_id in path.read_text():
            raise ArtifactError(
                f"release {release_id} is the {name.lower()}; run `crescendo withdraw` first"
            )
    if live is not None and releases.get(live, {}).get("replaces") == release_id:
        raise ArtifactError(
            f"release {release_id} is where a rollback of the live release {live} goes; it can go "
            "when a further release is live"
        )
    (workspace.releases / f"{release_id}.json").unlink(missing_ok=True)
    for name in services:
        store.registry.delete_feature_service(name, store.project)


def _releases(workspace: Workspace) -> dict[str, dict[str, Any]]:
    releases = {}
    for path in sorted(workspace.releases.glob("*.json")):
        try:
            release = json.loads(path.read_text())
            releases[release["release_id"]] = {**release, "generation_id": release["generation_id"]}
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{path} is not a release ({error}); bring it back, or remove it"
            ) from error
    return releases
