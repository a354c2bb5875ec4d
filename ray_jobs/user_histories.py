"""Every user's last listens, as the online store has them after `publish`, for jobs over all users.

    for table in user_histories(workspace, track_ids_I, salt): ...

Read from the offline store through the view `user_sequence`, some thousands of users a table, so
that memory does not grow with their number.

Shapes: V tracks that a model knows, N users of one table, P listens of all of them.
"""

from collections.abc import Iterator
from datetime import datetime
from hashlib import blake2b
from itertools import pairwise

import numpy as np
import pyarrow as pa

from feature_repo import schema
from feature_repo.workspace import Workspace

ROWS = "rows"
HISTORY_HASH = "history_hash"
HISTORIES = pa.schema(
    [
        pa.field(schema.USER_ID, pa.int64(), nullable=False),
        pa.field(ROWS, pa.list_(pa.int32()), nullable=False),
        pa.field(HISTORY_HASH, pa.int64(), nullable=False),
    ]
)
"""`rows`: of the tracks that the model knows, oldest first, 1 for the first track; maybe none.
`history_hash`: of the user, these rows and what else decides about the user's candidates."""
USERS_A_TABLE = 10_000


def user_histories(
    workspace: Workspace, track_ids_V: np.ndarray, salt: bytes, until: datetime
) -> Iterator[pa.Table]:
    """Tables of HISTORIES, each user once: listens that readers may see at `until`.

    `track_ids_V` rising, the first one is row 1. `salt`: bytes that change the hashes. InputError
    where the workspace was not published.
    """
    from feature_repo.store import find_view, open_store
    from feature_repo.stores.asof import latest_rows
    from ray_jobs.materialize_source import ViewSource
    from ray_jobs.watermarks import EPOCH

    store = open_store(workspace)
    view = ViewSource(workspace, find_view(store, schema.USER_SEQUENCE)).local_view
    for table in latest_rows(store.config, view, EPOCH, until, chunk_rows=USERS_A_TABLE):
        yield _history(table, track_ids_V, salt)


def _history(table: pa.Table, track_ids_V: np.ndarray, salt: bytes) -> pa.Table:
    user_ids_N = table[schema.USER_ID].to_numpy()
    lists = table[schema.SEQUENCE_TRACK_IDS].combine_chunks()
    counts_N = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    track_ids_P = lists.flatten().to_numpy()
    place_P = np.searchsorted(track_ids_V, track_ids_P)
    place_P = np.where(place_P < len(track_ids_V), place_P, 0)
    known_P = track_ids_V[place_P] == track_ids_P
    rows_P = (place_P[known_P] + 1).astype(np.int32)
    ends_N = np.cumsum(known_P)[np.cumsum(counts_N) - 1] if len(known_P) else 0 * counts_N
    offsets = np.concatenate([[0], np.where(np.cumsum(counts_N) > 0, ends_N, 0)]).astype(np.int32)
    data = rows_P.tobytes()
    hashes = (
        _hash(salt, user_id, data[4 * first : 4 * last])
        for user_id, (first, last) in zip(
            user_ids_N.tolist(), pairwise(offsets.tolist()), strict=True
        )
    )
    return pa.Table.from_arrays(
        [
            pa.array(user_ids_N),
            pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows_P)),
            pa.array(np.fromiter(hashes, np.int64, len(user_ids_N))),
        ],
        schema=HISTORIES,
    )


def _hash(salt: bytes, user_id: int, rows: bytes) -> int:
    data = b"%b %d %b" % (salt, user_id, rows)
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little", signed=True)
