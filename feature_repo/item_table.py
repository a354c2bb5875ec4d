"""The item side of ranking: codes and counts of the whole catalogue, as dense arrays.

Training reads them from the offline store, serving from the online store; the two agree, which a
test proves.

Shape suffixes: I tracks, F families, L levels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from feast import FeatureStore

from feature_repo import schema
from feature_repo.artifacts import parquet_files
from feature_repo.errors import ArtifactError
from feature_repo.online import OnlineReader
from feature_repo.store import find_view, read_online
from feature_repo.stores.packed_store import PackedOnlineStore
from feature_repo.workspace import Workspace

MISSING_CODE = -1
COUNTS_CHUNK = 65_536
"""Tracks of one read of counts: bounds the packed rows in memory."""


def read_codes_offline(
    store: FeatureStore, generation_id: str, families: Sequence[str], levels: int
) -> tuple[np.ndarray, np.ndarray]:
    """track_ids_I (sorted int64) and codes_IFL (int64) from the view's offline source."""
    view = find_view(store, schema.semantic_ids_view_name(generation_id))
    # The workspace's own files: those of a working copy are registered under its URI.
    files = parquet_files(Workspace(Path(store.repo_path)).feature_source(view.name))
    table = pq.read_table(files).sort_by(schema.TRACK_ID)
    columns = {family: table[schema.sid_column(family)].to_pylist() for family in families}
    return table[schema.TRACK_ID].to_numpy(), dense_codes(columns, levels)


def read_codes_online(
    store: FeatureStore,
    generation_id: str,
    families: Sequence[str],
    levels: int,
    track_ids: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """track_ids_I (those the online store holds, sorted) and codes_IFL (int64).

    Refuses rows of another generation.
    """
    view = schema.semantic_ids_view_name(generation_id)
    names = [*(schema.sid_column(family) for family in families), schema.GENERATION]
    ids = np.unique(track_ids)
    rows = read_online(store, schema.TRACK_ID, ids.tolist(), [f"{view}:{name}" for name in names])
    found = np.array([generation is not None for generation in rows[schema.GENERATION]], dtype=bool)
    others = set(rows[schema.GENERATION]) - {None, generation_id}
    if others:
        raise ArtifactError(
            f"view {view} holds rows of {sorted(others)}; wanted {generation_id}; "
            f"run `crescendo publish --generation {generation_id}`"
        )
    columns = {
        family: [
            codes
            for codes, there in zip(rows[schema.sid_column(family)], found, strict=True)
            if there
        ]
        for family in families
    }
    return ids[found], dense_codes(columns, levels)


def read_counts_online(
    store: FeatureStore, track_ids_I: np.ndarray, columns: Sequence[str]
) -> dict[str, np.ndarray]:
    """Columns of `track_stats` by name, (I,) each; 0 where a track has no row: nothing happened."""
    references = {name: f"{schema.TRACK_STATS}:{name}" for name in columns}
    if not isinstance(store._get_provider().online_store, PackedOnlineStore):
        rows = read_online(store, schema.TRACK_ID, track_ids_I.tolist(), [*references.values()])
        return {name: np.array([count or 0 for count in rows[name]]) for name in columns}
    reader = OnlineReader(store, [*references.values()])
    starts = range(0, len(track_ids_I), COUNTS_CHUNK)
    parts = [reader.read(track_ids_I[start : start + COUNTS_CHUNK]) for start in starts]
    return {
        name: np.concatenate([part[reference].values for part in parts])
        for name, reference in references.items()
    }


def dense_codes(columns: dict[str, list[list[int] | None]], levels: int) -> np.ndarray:
    """Lists of codes a family -> codes_IFL, MISSING_CODE where a list is empty."""
    families = []
    for family, lists in columns.items():
        codes_IL = np.full((len(lists), levels), MISSING_CODE, dtype=np.int64)
        for row, codes in enumerate(lists):
            if codes:
                if len(codes) != levels:
                    raise ArtifactError(
                        f"family {family} has an ID of {len(codes)} codes; wanted {levels}; "
                        "run `crescendo quantize` and `crescendo publish` again"
                    )
                codes_IL[row] = codes
        families.append(codes_IL)
    return np.stack(families, axis=1)
