"""Numbers for the ids of a source: id maps for tracks and users, and ids for events.

Integer ids stay as they are. Strings are numbered in their sorted order, and the map from string
to number is kept with the tables, so that the same source ingested again keeps its numbers.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.artifacts import MANIFEST, file_sha256, read_manifest
from feature_repo.errors import ArtifactError
from feature_repo.schema import ACTIONS
from feature_repo.workspace import Workspace

TABLES = "tables"
"""The kind of artifact that the contract tables are."""

ID_MAP = pa.schema([pa.field("source_id", pa.string()), pa.field("id", pa.int64())])
NOTHING_KNOWN = ID_MAP.empty_table()
BEFORE_ALL = np.iinfo(np.int64).min


def known_ids(workspace: Workspace, source: str) -> dict[str, pa.Table]:
    """`tracks` and `users`: the id maps of an earlier ingest of the same source, or empty ones."""
    known = {"tracks": NOTHING_KNOWN, "users": NOTHING_KNOWN}
    folder = workspace.tracks.parent
    if not (folder / MANIFEST).is_file():
        return known
    manifest = read_manifest(folder, kind=TABLES, made_by="ingest", verify=False)
    if manifest.options.get("source") != source:
        return known
    for name in known:
        path = workspace.id_maps / f"{name}.parquet"
        recorded = manifest.files.get(str(path.relative_to(folder)))
        if recorded is None:
            continue
        if not path.is_file() or file_sha256(path) != recorded:
            # To number anew would give embeddings and semantic IDs to the wrong tracks.
            raise ArtifactError(
                f"{path} is missing or was changed, so the numbers of {source}'s {name} are lost; "
                f"bring it back, or remove {folder} and all that was made from it to start anew"
            )
        known[name] = pq.read_table(path, schema=ID_MAP)
    return known


def numbered(ids: pa.ChunkedArray, known: pa.Table) -> tuple[pa.ChunkedArray, pa.Table | None]:
    """Ids as int64, and the map that says how; integers stay as they are and need no map.

    A number once given stays given, also when its string is gone from the source.
    """
    if pa.types.is_integer(ids.type):
        return ids, None
    distinct = ids.unique().drop_null()
    new = distinct.filter(pc.invert(pc.is_in(distinct, known["source_id"].combine_chunks())))
    new = new.take(pc.sort_indices(new))
    first = (pc.max(known["id"]).as_py() or 0) + 1
    numbers = pa.array(np.arange(first, first + len(new)), pa.int64())
    id_map = pa.concat_tables([known, pa.table([new, numbers], schema=ID_MAP)]).combine_chunks()
    positions = pc.index_in(ids, id_map["source_id"].combine_chunks())
    return id_map["id"].take(positions), id_map


class EventOrder:
    """Orders a log by what its events are, never by where a row stands in the source.

    Events of one moment are ordered by `event_id` downstream. The order of a source's rows often
    follows from what the file was made of (its users, its popular tracks), so an id that we give
    goes by time and, within a moment, by a hash of the event itself.
    """

    def __init__(self, log: pa.Table) -> None:
        action = pc.index_in(log["action"], pa.array(ACTIONS))
        self._event = [
            _integers(log["event_timestamp"]),
            _integers(log["user_id"]),
            _integers(log["track_id"]),
            action.to_numpy().astype(np.int64),
        ]
        others = [
            log["played_ratio"].fill_null(-1.0).to_numpy(),
            _integers(log["session_id"]),
            _integers(log["ingested_at"]),
        ]
        self._by_content = _sorted_rows(*self._event, *others)

    def repeated(self, event_ids: pa.ChunkedArray) -> np.ndarray:
        """For each row, whether its id is that of an event earlier in time (or in content)."""
        in_order = event_ids.take(pa.array(self._by_content)).combine_chunks()
        # Codes, because integers with nulls become floats in pandas and large ids the same one.
        codes = in_order.dictionary_encode().indices.to_pandas()
        repeated = np.zeros(len(codes), bool)
        repeated[self._by_content] = codes.duplicated() & codes.notna()
        return repeated

    def event_ids(self, source_ids: pa.ChunkedArray) -> np.ndarray:
        """The source's integer ids; rows without one get ids after the largest, by time and hash.

        A source's string ids are replaced: they are not needed once they are known to be unique.
        """
        if pa.types.is_integer(source_ids.type):
            missing = source_ids.is_null().to_numpy()
            event_ids = source_ids.fill_null(0).to_numpy().copy()
        else:
            missing = np.ones(len(source_ids), bool)
            event_ids = np.zeros(len(source_ids), np.int64)
        rows = self._by_content[missing[self._by_content]]
        event = [values[rows] for values in self._event]
        # The events of one user, track, moment and action, which stand together, are counted.
        repeats = np.logical_and.reduce([values[1:] == values[:-1] for values in event])
        place = np.arange(len(rows))
        starts = np.insert(~repeats, 0, True)[: len(rows)]
        occurrence = place - np.maximum.accumulate(np.where(starts, place, 0))
        time, *rest = event
        in_time = _sorted_rows(time, _stable_hash(*event, occurrence), *rest, occurrence)
        event_ids[rows[in_time]] = int(event_ids.max(initial=0)) + 1 + place
        return event_ids

    def by_time(self, event_ids: np.ndarray) -> np.ndarray:
        """The rows by event_timestamp, then event_id."""
        return _sorted_rows(self._event[0], event_ids)


def _integers(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.int64()).fill_null(BEFORE_ALL).to_numpy()


def _sorted_rows(*keys: np.ndarray) -> np.ndarray:
    """The rows sorted by the first key, then the second, ...; a constant one costs no sorting."""
    telling = [key for key in keys if key.size and key.min() != key.max()]
    return np.lexsort(telling[::-1]) if telling else np.arange(len(keys[0]))


def _stable_hash(*columns: np.ndarray) -> np.ndarray:
    """A 64-bit hash a row (splitmix64 over the columns), the same in every run and version."""
    state = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        state = (state ^ column.view(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state
