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
CHUNK = 65_536
"""Tracks of one read of packed rows: bounds them in memory."""


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
    ids = np.unique(track_ids)
    generation = f"{view}:{schema.GENERATION}"
    columns = {family: f"{view}:{schema.sid_column(family)}" for family in families}
    if isinstance(store._get_provider().online_store, PackedOnlineStore):
        held, codes_IFL, found = _packed_codes(store, ids, generation, columns, levels)
    else:
        rows = read_online(store, schema.TRACK_ID, ids.tolist(), [*columns.values(), generation])
        held = set(rows[schema.GENERATION])
        found = np.array([name is not None for name in rows[schema.GENERATION]], dtype=bool)
        codes_IFL = dense_codes({f: rows[schema.sid_column(f)] for f in families}, levels)
    others = sorted(name for name in held if name is not None and name != generation_id)
    if others:
        raise ArtifactError(
            f"view {view} holds rows of {others}; wanted {generation_id}; "
            f"run `crescendo publish --generation {generation_id}`"
        )
    return ids[found], codes_IFL[found]


def _packed_codes(
    store: FeatureStore, ids: np.ndarray, generation: str, columns: dict[str, str], levels: int
) -> tuple[set[str | None], np.ndarray, np.ndarray]:
    """Generations of the rows, codes_IFL of all ids, and which of them have a row.

    Feast's SDK makes a Python object a value: 100,000 tracks hold up a serving process for ten
    seconds, this for one half.
    """
    reader = OnlineReader(store, [*columns.values(), generation])
    held: set[str | None] = set()
    codes, found = [np.empty((0, len(columns), levels), np.int64)], [np.empty(0, bool)]
    for start in range(0, len(ids), CHUNK):
        part = reader.read(ids[start : start + CHUNK])
        held |= set(part[generation].to_arrow().unique().to_pylist())
        found.append(part[generation].valid_N)
        families = []
        for family, reference in columns.items():
            counts_N = part[reference].counts_N
            wrong_N = counts_N[(counts_N != levels) & (counts_N != 0)]
            if len(wrong_N):
                raise _wrong_levels(family, int(wrong_N[0]), levels)
            families.append(part[reference].matrix(levels, MISSING_CODE))
        codes.append(np.stack(families, axis=1))
    return held, np.concatenate(codes), np.concatenate(found)


def _wrong_levels(family: str, found: int, levels: int) -> ArtifactError:
    return ArtifactError(
        f"family {family} has an ID of {found} codes; wanted {levels}; "
        "run `crescendo quantize` and `crescendo publish` again"
    )


def read_counts_online(
    store: FeatureStore, track_ids_I: np.ndarray, columns: Sequence[str]
) -> dict[str, np.ndarray]:
    """Columns of `track_stats` by name, (I,) each; 0 where a track has no row: nothing happened."""
    references = {name: f"{schema.TRACK_STATS}:{name}" for name in columns}
    if not isinstance(store._get_provider().online_store, PackedOnlineStore):
        rows = read_online(store, schema.TRACK_ID, track_ids_I.tolist(), [*references.values()])
        return {name: np.array([count or 0 for count in rows[name]]) for name in columns}
    reader = OnlineReader(store, [*references.values()])
    starts = range(0, len(track_ids_I), CHUNK)
    parts = [reader.read(track_ids_I[start : start + CHUNK]) for start in starts]
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
                    raise _wrong_levels(family, len(codes), levels)
                codes_IL[row] = codes
        families.append(codes_IL)
    return np.stack(families, axis=1)
