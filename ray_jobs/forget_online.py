"""A user's rows in the online store: deleted, searched, and rebuilt after single events went.

Feast has no deletion by entity. Ours is per store: the packed stores have `delete_rows`; stock
SQLite has a table a view keyed by the entity; stock Redis has one hash an entity. Any other store
is refused before anything is deleted. SQLite files are vacuumed, because a deleted row's bytes stay
in the file's free pages until then (it costs writing the file once: 2 s for 300 MB).
"""

import mmap
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo import schema
from feature_repo.artifacts import parquet_files
from feature_repo.errors import InputError
from feature_repo.event_journal import since
from feature_repo.tombstones import read_tombstones
from feature_repo.workspace import Workspace

BUSY_S = 30.0
SQLITE_HEADER = b"SQLite format 3\0"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class OnlineRows:
    """What the online store of an opened FeatureStore holds about users."""

    def __init__(self, store: Any) -> None:
        """Raises InputError for a store or a view from which nobody can delete a user."""
        from feast.infra.online_stores.redis import RedisOnlineStore
        from feast.infra.online_stores.sqlite import SqliteOnlineStore

        from feature_repo.stores.packed_store import PackedOnlineStore

        self._store = store
        self._online = store._get_provider().online_store
        self._is_packed = isinstance(self._online, PackedOnlineStore)
        self._is_redis = isinstance(self._online, RedisOnlineStore)
        if not (self._is_packed or self._is_redis or isinstance(self._online, SqliteOnlineStore)):
            raise InputError(
                f"online_store is {type(self._online).__name__}, from which a single user cannot "
                "be deleted; expected a packed store, sqlite or redis; set it in "
                "feature_store.yaml, run `crescendo publish`, and drop the old store as a whole"
            )
        views = store.list_feature_views()
        self._views = [view for view in views if schema.USER_ID in view.join_keys]
        mixed = [view.name for view in self._views if view.join_keys != [schema.USER_ID]]
        if mixed:
            raise InputError(
                f"views {mixed} are keyed by {schema.USER_ID} and more, so a user's rows in them "
                "cannot be found; delete those views, or key them by one user"
            )

    def delete(self, user_id: int) -> int:
        """Deletes every row of the user; returns how many there were."""
        deleted = 0
        if self._is_packed:
            ids = np.array([user_id], np.int64)
            config = self._store.config
            deleted = sum(self._online.delete_rows(config, view, ids) for view in self._views)
        elif self._is_redis:
            deleted = self._views_in_hash(user_id)
            self._client().delete(self._hash(user_id))
        path = self._sqlite_path()
        if path is not None:
            deleted += _delete_in_sqlite(path, self._entity_key(user_id))
        return deleted

    def found(self, user_id: int) -> int:
        """Rows of the user that are there; in a SQLite file also in what was deleted of it."""
        found = 0
        if self._is_packed and self._views:
            asked = [(view, [view.features[0].name]) for view in self._views]
            ids = np.array([user_id], np.int64)
            columns = self._online.read_columns(self._store.config, asked, ids)
            found = sum(int(there.sum()) for there in columns.found.values())
        elif self._is_redis:
            found = self._views_in_hash(user_id)
        path = self._sqlite_path()
        return found if path is None else found + _count_in_sqlite(path, self._entity_key(user_id))

    def refuse_unless_packed(self) -> None:
        """InputError for a store whose sequences cannot be written anew."""
        from feature_repo.online import packed_store

        packed_store(self._store)

    def found_events(self, user_ids: Sequence[int], event_ids: Sequence[int]) -> int:
        """Online sequences of these users that hold one of these events."""
        names = [
            f"{view.name}:{schema.SEQUENCE_EVENT_IDS}"
            for view in self._views
            if schema.SEQUENCE_LENGTH_TAG in view.tags
        ]
        if not names or not user_ids:
            return 0
        rows = self._store.get_online_features(
            features=names, entity_rows=[{schema.USER_ID: user_id} for user_id in user_ids]
        ).to_dict()
        lists = rows[schema.SEQUENCE_EVENT_IDS]
        return sum(not set(event_ids).isdisjoint(events or ()) for events in lists)

    def elsewhere(self, workspace: Workspace) -> list[str]:
        """Sources of views about users that lie outside the workspace: their owners' to clean."""
        inside = f"{workspace.location}/"
        paths = {str(getattr(view.batch_source, "path", "")) for view in self._views}
        return sorted(path for path in paths if path and not path.startswith(inside))

    def rebuild(self, workspace: Workspace, user_ids: Sequence[int]) -> int:
        """Writes the sequences of these users anew from the log; returns how many.

        A listen that comes in meanwhile is journaled before it goes online, so the second, merging
        write has it if the first, replacing one lost it. InputError unless the store is packed.
        """
        from feature_repo.online import packed_store

        packed = packed_store(self._store)
        views = [view for view in self._views if schema.SEQUENCE_LENGTH_TAG in view.tags]
        if not user_ids or not views:
            return 0
        for view in views:
            length = int(view.tags[schema.SEQUENCE_LENGTH_TAG])
            for replace in (True, False):
                windows = _windows(workspace, user_ids, length)
                if replace:
                    left = np.setdiff1d(user_ids, windows[schema.USER_ID].to_numpy())
                    packed.delete_rows(self._store.config, view, left)
                packed.write_table(self._store.config, view, windows, replace=replace)
        path = self._sqlite_path()
        if path is not None:
            _vacuum(path)
        return len(user_ids)

    def _entity_key(self, user_id: int) -> bytes:
        from feast.infra.key_encoding_utils import serialize_entity_key

        return bytes(
            serialize_entity_key(
                self._key_proto(user_id), self._store.config.entity_key_serialization_version
            )
        )

    def _key_proto(self, user_id: int) -> Any:
        from feast.protos.feast.types.EntityKey_pb2 import EntityKey
        from feast.protos.feast.types.Value_pb2 import Value

        return EntityKey(join_keys=[schema.USER_ID], entity_values=[Value(int64_val=user_id)])

    def _client(self) -> Any:
        return self._online._get_client(self._store.config.online_store)

    def _hash(self, user_id: int) -> bytes:
        from feast.infra.online_stores.helpers import _redis_key

        config = self._store.config
        return bytes(
            _redis_key(
                config.project, self._key_proto(user_id), config.entity_key_serialization_version
            )
        )

    def _views_in_hash(self, user_id: int) -> int:
        fields = self._client().hkeys(self._hash(user_id))
        return sum(field.startswith(b"_ts:") for field in fields)

    def _sqlite_path(self) -> Path | None:
        """The store's file, where it is a SQLite database that exists."""
        path = getattr(self._store.config.online_store, "path", None)
        if not isinstance(path, str):
            return None
        file = Path(self._store.repo_path) / path
        if not file.is_file():
            return None
        with file.open("rb") as stream:
            return file if stream.read(len(SQLITE_HEADER)) == SQLITE_HEADER else None


def _tables(connection: sqlite3.Connection) -> list[str]:
    """Stock tables: of registered views, of older versions and of dropped ones."""
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return [
        name
        for (name,) in names
        if any(
            column[1] == "entity_key"
            for column in connection.execute(f"PRAGMA table_info({_quoted(name)})")
        )
    ]


def _delete_in_sqlite(path: Path, key: bytes) -> int:
    """Deletes the key's rows of every table, and its bytes from the file. Returns tables."""
    with closing(sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)) as connection:
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("BEGIN IMMEDIATE")
        touched = sum(
            connection.execute(f"DELETE FROM {_quoted(name)} WHERE entity_key = ?", (key,)).rowcount
            > 0
            for name in _tables(connection)
        )
        connection.execute("COMMIT")
    _vacuum(path)
    return touched


def _vacuum(path: Path) -> None:
    with closing(sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)) as connection:
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _count_in_sqlite(path: Path, key: bytes) -> int:
    """Rows of the key, or 1 where only its bytes are left somewhere in the files."""
    with closing(sqlite3.connect(path, timeout=BUSY_S)) as connection:
        rows = sum(
            connection.execute(
                f"SELECT count(*) FROM {_quoted(name)} WHERE entity_key = ?", (key,)
            ).fetchone()[0]
            for name in _tables(connection)
        )
    if rows:
        return int(rows)
    files = [path, path.with_name(f"{path.name}-wal")]
    return int(any(_holds(file, key) for file in files if file.is_file() and file.stat().st_size))


def _holds(path: Path, key: bytes) -> bool:
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(key) >= 0


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _windows(workspace: Workspace, user_ids: Sequence[int], length: int) -> pa.Table:
    """The users' last listens as of now, of the log and the journal: rows for `write_table`."""
    journal = since(workspace, EPOCH)
    journal = journal.filter(pc.is_in(journal["user_id"], pa.array(user_ids, pa.int64())))
    gone = pa.table({"event_id": read_tombstones(workspace).event_ids})
    sources = ["SELECT * FROM journal"]
    if parquet_files(workspace.events):
        sources.append(f"SELECT * FROM '{workspace.events}/*.parquet'")
    actions = ", ".join(f"'{action}'" for action in schema.LISTEN_ACTIONS)
    codes = " ".join(f"WHEN '{name}' THEN {code}" for name, code in schema.ACTION_CODES.items())
    tracks, times, kinds, events = schema.SEQUENCE_COLUMNS
    # row time = max(happened, reached the log) + 1 us; the order of listens is (time, event id)
    sql = f"""
        WITH listens AS (
            SELECT user_id, event_id, any_value(track_id) AS track_id,
                   epoch_us(any_value(event_timestamp)) AS event_us,
                   CASE any_value(action) {codes} END AS action,
                   min(epoch_us(greatest(event_timestamp, coalesce(ingested_at, event_timestamp))))
                       + 1 AS visible_us
            FROM ({" UNION ALL BY NAME ".join(sources)})
            WHERE user_id IN (SELECT user_id FROM users) AND action IN ({actions})
                  AND event_id NOT IN (SELECT event_id FROM gone)
            GROUP BY user_id, event_id
        ), ordered AS (
            SELECT *, max(visible_us) OVER (PARTITION BY user_id) AS newest_us FROM listens
            QUALIFY row_number() OVER (PARTITION BY user_id ORDER BY event_us DESC, event_id DESC)
                    <= {length}
        )
        SELECT user_id, make_timestamptz(max(newest_us)) AS {schema.EVENT_TIMESTAMP},
               list(track_id ORDER BY event_us, event_id) AS {tracks},
               list(event_us ORDER BY event_us, event_id) AS {times},
               list(action::BIGINT ORDER BY event_us, event_id) AS {kinds},
               list(event_id ORDER BY event_us, event_id) AS {events}
        FROM ordered GROUP BY user_id ORDER BY user_id
    """
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("journal", journal)
        connection.register("gone", gone)
        connection.register("users", pa.table({"user_id": pa.array(user_ids, pa.int64())}))
        table = connection.sql(sql).to_arrow_table()
    names = [schema.USER_ID, schema.EVENT_TIMESTAMP, *schema.SEQUENCE_COLUMNS]
    lists = pa.list_(pa.int64())
    kinds_of = [pa.int64(), schema.TIMESTAMP, *(lists for _ in schema.SEQUENCE_COLUMNS)]
    return table.select(names).cast(pa.schema(zip(names, kinds_of, strict=True)))
