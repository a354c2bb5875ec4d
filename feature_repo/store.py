"""The workspace's Feast store: open, apply, materialize with a check, and read online.

Embedded by default: file registry, SQLite online, DuckDB offline. `feature_store.yaml` lies in
the workspace and is written once, so a deployment edits it there (Redis, SQL registry).
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from feast import FeatureService, FeatureStore, FeatureView
from feast.errors import FeatureViewNotFoundException

from feature_repo import schema
from feature_repo.artifacts import parquet_files
from feature_repo.errors import ArtifactError, InputError
from feature_repo.workspace import Workspace

# Feast turns deprecation warnings on for the whole process; they are its own and its libraries'.
warnings.filterwarnings("ignore", category=DeprecationWarning)
# It says that the first registry flag below has no effect on file registries; it has been seen
# to have one there (a reader during a materialization).
logging.getLogger("feast.repo_config").setLevel(logging.ERROR)

READ_CHUNK = 2000
"""Entities of one online read: bounds the response that Feast builds in memory."""
VERIFIED_ENTITIES = 500
"""Entities read back after each materialization."""

STORE_SETTINGS: dict[str, Any] = {
    "project": "crescendo",
    "provider": "local",
    # The first flag keeps reads alive while a view is materialized, the second allows two
    # versions of a view side by side.
    "registry": {
        "registry_type": "file",
        "path": "registry.db",
        "cache_ttl_seconds": 60,
        "serve_features_while_materializing": True,
        "enable_online_feature_view_versioning": True,
    },
    "online_store": {"type": "sqlite", "path": "online.db"},
    # Feast's `dask` and `ray` stores return wrong point-in-time rows: never those.
    "offline_store": {"type": "duckdb"},
    "materialization": {"online_write_batch_size": 10_000},
    "entity_key_serialization_version": 3,
}
WRONG_OFFLINE_STORES = ("file", "dask", "ray")


def open_store(workspace: Workspace) -> FeatureStore:
    """The store that `<workspace>/feature_store.yaml` describes, which is written if missing."""
    path = workspace.root / "feature_store.yaml"
    if not path.exists():
        workspace.root.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(yaml.safe_dump(STORE_SETTINGS, sort_keys=False))
        os.replace(partial, path)
    settings = yaml.safe_load(path.read_text())
    offline = settings.get("offline_store", {}).get("type", "dask")
    if offline in WRONG_OFFLINE_STORES:
        raise InputError(
            f"{path}: offline_store.type is {offline!r}, which returns wrong point-in-time rows; "
            "set it to duckdb"
        )
    return FeatureStore(repo_path=str(workspace.root.absolute()))


def find_view(store: FeatureStore, name: str) -> FeatureView:
    """A registered view, read from this workspace; else an error that names the command."""
    try:
        view = store.get_feature_view(name)
    except FeatureViewNotFoundException as error:
        raise ArtifactError(
            f"view {name} is not in the feature store; run `crescendo publish`"
        ) from error
    if not Path(view.batch_source.path).is_relative_to(store.repo_path):
        raise ArtifactError(
            f"view {name} was published for {view.batch_source.path}, which lies outside "
            f"{store.repo_path}: the workspace was moved or copied; run `crescendo publish`"
        )
    return view


def apply(store: FeatureStore, objects: Sequence[Any]) -> None:
    """`feast apply` of these objects; what else the registry holds stays."""
    store.apply(list(objects))


def materialize(store: FeatureStore, view: FeatureView, source: Path, as_of: datetime) -> int:
    """Every entity's latest row at `as_of` to the online store; reads a sample back and compares.

    Returns the number of entities. Raises ArtifactError if what is read back differs.
    """
    table = pq.read_table(parquet_files(source))
    table = table.filter(pc.less_equal(table[schema.EVENT_TIMESTAMP], pa.scalar(as_of)))
    if table.num_rows == 0:
        return 0
    with redirect_stdout(sys.stderr):  # Feast prints; standard output is a command's answer
        store.materialize(
            start_date=datetime(1970, 1, 1, tzinfo=UTC), end_date=as_of, feature_views=[view.name]
        )
    return _verify(store, view, table)


def _verify(store: FeatureStore, view: FeatureView, table: pa.Table) -> int:
    (key,) = view.join_keys
    features = [field.name for field in view.features]
    # Sorted by time, the last row of an entity is the one that must be online.
    table = table.sort_by([(key, "ascending"), (schema.EVENT_TIMESTAMP, "ascending")])
    keys = table[key].to_numpy()
    last_rows = np.flatnonzero(np.append(keys[1:] != keys[:-1], True))
    step = max(1, len(last_rows) // VERIFIED_ENTITIES)
    expected = table.take(last_rows[::step])
    ids = expected[key].to_pylist()
    online = read_online(store, key, ids, [f"{view.name}:{name}" for name in features])
    for name in features:
        for entity, want, got in zip(ids, expected[name].to_pylist(), online[name], strict=True):
            # A store may spell an empty list as nothing at all; it means the same.
            if (None if want == [] else want) != (None if got == [] else got):
                raise ArtifactError(
                    f"after materializing {view.name}, {key} {entity} has {name}={got!r} online "
                    f"but {want!r} in its source; run `crescendo publish` again"
                )
    return len(last_rows)


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
