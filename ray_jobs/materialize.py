"""Brings the newest rows of the views online, in chunks of time, and checks that they are there.

    crescendo materialize [--views NAMES] [--late-bound-h 24] [--full] [--replace]
        [--remove-vanished]

Writes the online store, Feast's registry (what is online up to when) and, last,
`materialization/<view>.json`. May be killed at any moment: run it again.

A run reads the rows of (watermark - lateness bound, now]. Rows that came later than the bound are
found by counting what lies before it: then the whole source is read, and how many they were is
logged, answered and exported. The whole source is read too where there is no watermark, where its
settled part changed, where a view has other fields or another store, and where the online store
has lost rows. An older row never overwrites a newer one, so no order of runs does harm.
"""

import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from feast import FeatureStore, FeatureView

from feature_repo import schema
from feature_repo.errors import ArtifactError, InputError
from feature_repo.scratch import only_writer
from feature_repo.store import find_view, open_store
from feature_repo.store_connections import registry_errors
from feature_repo.stores.packed_store import PackedOnlineStore
from feature_repo.workspace import Workspace
from ray_jobs.materialize_check import Check, check
from ray_jobs.materialize_chunks import write_range
from ray_jobs.materialize_options import MaterializeOptions
from ray_jobs.materialize_range import Range, range_of, settled_until, store_identity
from ray_jobs.materialize_registry import record_interval
from ray_jobs.materialize_source import ViewSource, last_moment
from ray_jobs.materialize_stock import materialize_stock
from ray_jobs.progress import log, step
from ray_jobs.watermarks import (
    EPOCH,
    Watermark,
    drop_progress,
    folder,
    read_watermark,
    write_watermark,
)


def materialize(workspace: Workspace, options: MaterializeOptions) -> dict[str, Any]:
    """All asked views. Returns `as_of`, `rows` written, and for each of `views` its `rows`,
    `entities`, `online`, `vanished`, `removed`, `newer`, `late_rows`, `from`, `reason`, `seconds`.

    Raises InputError or ArtifactError; the watermark of a view that failed does not move.
    """
    store = open_store(workspace)
    names = options.views or _all_views(store, workspace.location)
    views = [find_view(store, name) for name in names]
    return materialize_views(workspace, store, views, options)


def materialize_views(
    workspace: Workspace, store: FeatureStore, views: list[FeatureView], options: MaterializeOptions
) -> dict[str, Any]:
    """`materialize` of registered views of an open store."""
    as_of = moment_of(workspace)
    results: dict[str, dict[str, Any]] = {}
    folder(workspace).mkdir(parents=True, exist_ok=True)
    with only_writer(folder(workspace)):
        for partial in folder(workspace).glob(".*.json.*"):
            partial.unlink()  # of a run that was killed inside a write
        for view in views:
            with step(f"materialize {view.name}"):
                results[view.name] = _materialize_view(workspace, store, view, as_of, options)
    return {
        "as_of": as_of.isoformat(),
        "rows": sum(result["rows"] for result in results.values()),
        "views": results,
    }


def moment_of(workspace: Workspace) -> datetime:
    """Now, or the last row of the listening log where that lies ahead of this machine's clock."""
    paths = sorted(workspace.feature_source(schema.USER_SEQUENCE).glob("*.parquet"))
    return max([datetime.now(UTC), *filter(None, map(last_moment, paths))])


def _all_views(store: FeatureStore, location: str) -> tuple[str, ...]:
    with registry_errors(store):
        views = [view for view in store.list_feature_views() if view.online]
    if not views:
        raise InputError("no view is in the feature store; run `crescendo publish`")
    ours = [view for view in views if view.batch_source.path.startswith(f"{location}/")]
    others = [view.name for view in views if view not in ours]
    if ours and others:
        log.info("materialize: views of sources outside this workspace are left out", views=others)
    # A workspace that was moved has none of its own: the first then says so.
    return tuple(view.name for view in ours or views)


def _materialize_view(
    workspace: Workspace,
    store: FeatureStore,
    view: FeatureView,
    as_of: datetime,
    options: MaterializeOptions,
) -> dict[str, Any]:
    started = time.monotonic()
    source = ViewSource(workspace, view)
    online = store._get_provider().online_store
    identity = store_identity(store.config, view)
    if isinstance(online, PackedOnlineStore):
        before = read_watermark(workspace, view.name)
        span = range_of(store, online, source, before, identity, as_of, options)
        _announce(view, span, options)
        rows, expected, settled = write_range(
            workspace, store, online, source, span, identity, options
        )
        source.require_unchanged()
        try:
            found = check(store, online, source, expected)
        except ArtifactError:
            drop_progress(workspace, view.name)  # what it says is done is not
            raise
        found, removed = _removed(store, online, source, found, options)
    else:
        span = Range(start=EPOCH, end=as_of, reason="one of Feast's own online stores")
        rows = materialize_stock(store, source, as_of)
        found, removed = Check(entities=rows, online=rows), 0
        settled = source.settled(settled_until(as_of, options))
        source.require_unchanged()
    with registry_errors(store):
        record_interval(store, view.name, span.start, span.end)
    mark = Watermark(
        view=view.name,
        watermark=span.end.isoformat(),
        source=source.files,
        settled=settled,
        store=identity,
        entities=found.entities,
        online=found.online,
        rows=rows,
        late_rows=span.late_rows,
        vanished=len(found.vanished_X),
        made_at=datetime.now(UTC).isoformat(),
    )
    write_watermark(workspace, mark)
    return {
        "rows": rows,
        "entities": found.entities,
        "online": found.online,
        "vanished": len(found.vanished_X),
        "removed": removed,
        "newer": found.newer,
        "late_rows": span.late_rows,
        "from": span.start.isoformat(),
        "reason": span.reason,
        "seconds": round(time.monotonic() - started, 3),
    }


def _announce(view: FeatureView, span: Range, options: MaterializeOptions) -> None:
    log.info(f"materialize {view.name}: range", start=span.start.isoformat(), reason=span.reason)
    if span.late_rows:
        log.warning(
            f"materialize {view.name}: rows came later than the lateness bound",
            late_rows=span.late_rows,
            late_bound_h=options.late_bound_h,
        )


def _removed(
    store: FeatureStore,
    online: PackedOnlineStore,
    source: ViewSource,
    found: Check,
    options: MaterializeOptions,
) -> tuple[Check, int]:
    """Removes vanished rows where that is asked for; what is left, and how many went."""
    if not len(found.vanished_X):
        return found, 0
    if not options.remove_vanished:
        log.warning(
            f"materialize {source.view.name}: online rows without an entity in the source",
            vanished=len(found.vanished_X),
            remedy="crescendo materialize --remove-vanished",
        )
        return found, 0
    if found.entities == 0:
        raise ArtifactError(
            f"the source of view {source.view.name} has no row, its {found.online} online rows "
            "were not removed; is it whole? Run `crescendo sequences` again"
        )
    removed = online.delete_rows(store.config, source.view, found.vanished_X)
    left = replace(found, online=found.online - removed, vanished_X=np.zeros(0, dtype=np.int64))
    return left, removed
