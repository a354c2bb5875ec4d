"""The workspace's Feast store: open, apply, and read online.

Which stores those are is said by `feature_store.yaml` in the workspace: see `store_settings.py`.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from feast import FeatureService, FeatureStore, FeatureView
from feast.errors import FeatureViewNotFoundException

from feature_repo.errors import ArtifactError
from feature_repo.published_stores import check_published
from feature_repo.schema_changes import refuse_breaking
from feature_repo.store_connections import check_online_store, connect_registry, registry_errors
from feature_repo.store_settings import read_settings
from feature_repo.workspace import Workspace

# Feast turns deprecation warnings on for the whole process; they are its own and its libraries'.
warnings.filterwarnings("ignore", category=DeprecationWarning)
# It says that the first registry flag below has no effect on file registries; it has been seen
# to have one there (a reader during a materialization).
logging.getLogger("feast.repo_config").setLevel(logging.ERROR)

READ_CHUNK = 2000
"""Entities of one online read: bounds the response that Feast builds in memory."""


def open_store(workspace: Workspace, *, publishing: bool = False) -> FeatureStore:
    """The store that `<workspace>/feature_store.yaml` describes, which is written if missing.

    `publishing` is for the command that fills the stores: all others are refused (ArtifactError)
    while the settings name stores that were never filled. Raises InputError within seconds if
    the registry cannot be reached.
    """
    settings = read_settings(workspace.root)
    if publishing:
        check_online_store(settings)
    else:
        check_published(workspace.root, settings)
    store = FeatureStore(repo_path=str(workspace.root.absolute()))
    connect_registry(store)
    return store


def find_view(store: FeatureStore, name: str) -> FeatureView:
    """A registered view, read from this workspace; else an error that names the command."""
    try:
        with registry_errors(store):
            view = store.get_feature_view(name)
    except FeatureViewNotFoundException as error:
        raise ArtifactError(
            f"view {name} is not in the feature store; run `crescendo publish`"
        ) from error
    workspace = Workspace(Path(store.repo_path))
    if not view.batch_source.path.startswith(f"{workspace.location}/"):
        raise ArtifactError(
            f"view {name} was published for {view.batch_source.path}, which lies outside "
            f"{workspace.location}: the workspace was moved or copied; run `crescendo publish`"
        )
    return view


def apply(store: FeatureStore, objects: Sequence[Any], *, then: Sequence[Any] = ()) -> None:
    """`feast apply` of these objects; what else the registry holds stays.

    `then` are services that are applied in a later call, when the rows of their views are online;
    they count with what they will read. Raises ArtifactError, and changes nothing, where the
    objects would break a release or another service.
    """
    with registry_errors(store):
        refuse_breaking(store, [*objects, *then])
        store.apply(list(objects))
        store.refresh_registry()  # a SQL registry's cache is renewed by a thread, a minute late


def read_online(
    store: FeatureStore, key: str, ids: Sequence[int], features: Sequence[str] | FeatureService
) -> dict[str, list[Any]]:
    """Feature values of entities, in the order of `ids`; None for what the store lacks."""
    values: dict[str, list[Any]] = {}
    for chunk in _chunks(ids, READ_CHUNK):
        references = features if isinstance(features, FeatureService) else list(features)
        response = store.get_online_features(
            features=references, entity_rows=[{key: int(entity)} for entity in chunk]
        ).to_dict()
        for name, column in response.items():
            values.setdefault(name, []).extend(column)
    return values


def _chunks(ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
