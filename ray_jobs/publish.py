"""Registers the Feast views and services and brings every view's newest rows online.

    crescendo publish [--generation GENERATION]

Writes `features/track_semantic_ids_<generation>/`, `features/track_collaborative/` where there are
collaborative embeddings, the registry and the online store. What `crescendo score-users` has
written is published with the rest; it calls `publish_candidates` too.
"""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import schema
from feature_repo.artifacts import MANIFEST, Manifest, newest, read_manifest, write_artifact
from feature_repo.published_stores import end_publishing
from feature_repo.working_copy import publish_now
from feature_repo.workspace import Workspace
from ray_jobs.collaborative_view import write_collaborative
from ray_jobs.generation_table import IDS_FILE
from ray_jobs.progress import step

SCORED_BY = "score-users --model-id MODEL"


def publish(workspace: Workspace, generation_id: str | None = None) -> dict[str, Any]:
    """Returns `views`, `rows` per view, `feature_services` and the `generation_id`."""
    if generation_id is None:
        generation_id = newest(workspace.generations, kind="generation", made_by="quantize").id
    folder = workspace.generations / generation_id
    generation = read_manifest(folder, kind="generation", made_by="quantize")
    for view in (schema.USER_SEQUENCE, schema.USER_STATS, schema.TRACK_STATS):
        source = workspace.feature_source(view)
        made = read_manifest(source, kind="feature_source", made_by="sequences")
        if view == schema.USER_SEQUENCE:
            length = made.options["length"]
    with step("import feast"):
        from feature_repo import feature_definitions as definitions
        from feature_repo.store import apply, open_store
        from ray_jobs.materialize import materialize_views
        from ray_jobs.materialize_options import MaterializeOptions
    write_semantic_ids(workspace, generation)

    sources = workspace.published_sources
    families = tuple(generation.info["families"])
    semantic_ids = definitions.semantic_ids_view(sources, generation_id, families)
    user_sequence = definitions.user_sequence_view(sources, length)
    user_stats = definitions.stats_view(sources, definitions.user)
    track_stats = definitions.stats_view(sources, definitions.track)
    candidates = [
        definitions.user_candidates_view(sources, model_id)
        for model_id in _retrievers_with_candidates(workspace)
    ]
    views = [semantic_ids, track_stats, user_sequence, user_stats, *candidates]
    if write_collaborative(workspace):
        views.append(definitions.collaborative_view(sources))
    services = [
        definitions.content_service(semantic_ids, track_stats),
        definitions.taste_service(user_sequence, user_stats),
    ]
    store = open_store(workspace, publishing=True)
    publish_now(workspace)  # the registry is about to name the sources to other machines
    with step("feast apply"):
        apply(store, [definitions.user, definitions.track, *views], then=services)
    online = materialize_views(workspace, store, views, MaterializeOptions())["views"]
    end_publishing(workspace.root)
    with step("feast apply: services"):
        # Only now: who follows a service goes from one whole generation to the next.
        apply(store, services)
    return {
        "generation_id": generation_id,
        "views": [view.name for view in views],
        "rows": {name: result["entities"] for name, result in online.items()},
        "feature_services": [service.name for service in services],
    }


def publish_candidates(workspace: Workspace, model_id: str) -> dict[str, Any]:
    """Registers the view of a retriever model's candidates and brings its newest rows online.

    The workspace must have been published. Returns `view` and what `materialize` says of it.
    """
    from feature_repo import feature_definitions as definitions
    from feature_repo.store import apply, open_store
    from ray_jobs.materialize import materialize_views
    from ray_jobs.materialize_options import MaterializeOptions

    store = open_store(workspace)
    view = definitions.user_candidates_view(workspace.published_sources, model_id)
    publish_now(workspace)  # the registry is about to name the source to other machines
    with step("feast apply"):
        apply(store, [definitions.user, view])
    options = MaterializeOptions(remove_vanished=True)
    online = materialize_views(workspace, store, [view], options)["views"]
    return {"view": view.name, **online[view.name]}


def _retrievers_with_candidates(workspace: Workspace) -> list[str]:
    """Models that `crescendo score-users` has written candidates of, in the order of their ids."""
    manifests = workspace.feature_source("").glob(f"{schema.USER_CANDIDATES}_*/{MANIFEST}")
    sources = [
        read_manifest(path.parent, kind="feature_source", made_by=SCORED_BY, verify=False)
        for path in sorted(manifests)
    ]
    return [source.parents["model"] for source in sources]


def write_semantic_ids(workspace: Workspace, generation: Manifest) -> None:
    view = schema.semantic_ids_view_name(generation.id)
    ids = pq.read_table(workspace.generations / generation.id / IDS_FILE)
    rows = ids.num_rows
    # What a track is does not depend on when one asks: valid from before any event.
    stamp = pa.array([schema.CONTENT_SINCE] * rows, type=schema.TIMESTAMP)
    table = ids.append_column(schema.EVENT_TIMESTAMP, stamp)
    table = table.append_column(schema.GENERATION, pa.array([generation.id] * rows))
    manifest = Manifest(
        kind="feature_source", id=view, parents={"generation": generation.id}, rows={"rows": rows}
    )
    with write_artifact(workspace.feature_source(view), manifest) as partial:
        pq.write_table(table, partial / "part-0.parquet")
