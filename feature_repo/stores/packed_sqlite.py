"""Packed online rows in SQLite: one table a view, one file. The embedded store.

    online_store: {type: feature_repo.stores.packed_sqlite.PackedSqliteOnlineStore, path: online.db}

An int64 join key is the table's primary key itself; any other is Feast's serialized entity key.
The file is in WAL mode: readers never wait for a writer. Every write is one transaction, so a
full disk or a lock that does not come free leaves no half of it. Connections belong to one
thread and process each.
"""

import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from feast import RepoConfig
from feast.repo_config import FeastConfigBaseModel
from pydantic import Field

from feature_repo.errors import InputError, StoreUnavailableError
from feature_repo.stores.packed_layout import row_times
from feature_repo.stores.packed_store import (
    Change,
    PackedOnlineStore,
)
from feature_repo.stores.packed_view import Keys, PackedView

READ_KEYS = 512
"""Keys of one IN list."""
SCAN_ROWS = 50_000
MMAP_BYTES = 1 << 28

_FIELDS_TABLE = (
    "CREATE TABLE IF NOT EXISTS packed_fields "
    "(tag TEXT, fields TEXT, name TEXT, PRIMARY KEY (tag, fields)) WITHOUT ROWID"
)
_NOT_OLDER = "WHERE (excluded.event_us, excluded.created_us) >= (now.event_us, now.created_us)"


class PackedSqliteOnlineStoreConfig(FeastConfigBaseModel):
    """`online_store` of feature_store.yaml."""

    type: Literal["feature_repo.stores.packed_sqlite.PackedSqliteOnlineStore"] = (
        "feature_repo.stores.packed_sqlite.PackedSqliteOnlineStore"
    )
    path: str = "online.db"
    """File, relative to the folder of feature_store.yaml."""
    timeout_s: float = Field(default=10.0, gt=0)
    """Longest wait for another writer's transaction."""


class PackedSqliteOnlineStore(PackedOnlineStore):
    """See the module's docstring; rows: packed_layout; semantics: packed_store."""

    def __init__(self) -> None:
        super().__init__()
        self._local = threading.local()

    def _fetch(
        self, config: RepoConfig, asked: Sequence[tuple[PackedView, Keys]]
    ) -> list[list[bytes | None]]:
        answers = []
        # One read transaction: all views as of one moment.
        with self._reading(config) as connection:
            for view, keys in asked:
                answers.append(_select(connection, view, _entities(view, keys)))
        return answers

    def _put(
        self, config: RepoConfig, view: PackedView, keys: Keys, rows: list[bytes], replace: bool
    ) -> None:
        with self._writing(config) as connection:
            _remember(connection, view)
            _upsert(connection, view, _entities(view, keys), rows, replace)

    def change_rows(self, config: RepoConfig, view: PackedView, keys: Keys, change: Change) -> None:
        entities = _entities(view, keys)
        with self._writing(config) as connection:
            _remember(connection, view)
            old = _select(connection, view, entities)
            new = change(np.arange(len(entities)), old)
            changed = [n for n, row in enumerate(new) if row != old[n]]
            _upsert(
                connection, view, [entities[n] for n in changed], [new[n] for n in changed], True
            )

    def _delete(self, config: RepoConfig, view: PackedView, keys: Keys) -> int:
        with self._writing(config) as connection:
            cursor = connection.executemany(
                f"DELETE FROM {_table(view)} WHERE entity = ?",
                [(key,) for key in _entities(view, keys)],
            )
            return max(cursor.rowcount, 0)

    def _keys(self, config: RepoConfig, view: PackedView) -> Iterator[Keys]:
        after: list[int | bytes] = []
        while True:
            where = "WHERE entity > ?" if after else ""
            with self._reading(config) as connection:
                rows = connection.execute(
                    f"SELECT entity FROM {_table(view)} {where} ORDER BY entity LIMIT {SCAN_ROWS}",
                    after,
                ).fetchall()
            if not rows:
                return
            found = [entity for (entity,) in rows]
            after = [found[-1]]
            yield found if view.template is None else np.array(found, dtype="i8")

    def _create(self, config: RepoConfig, view: PackedView) -> None:
        with self._writing(config) as connection:
            _remember(connection, view)

    def _drop(self, config: RepoConfig, view: PackedView) -> None:
        with self._writing(config) as connection:
            connection.execute(f"DROP TABLE IF EXISTS {_table(view)}")
            connection.execute(_FIELDS_TABLE)
            connection.execute("DELETE FROM packed_fields WHERE tag = ?", (view.tag,))

    def _load_fields(self, config: RepoConfig, view: PackedView) -> list[str]:
        with self._reading(config) as connection:
            rows = connection.execute(
                "SELECT fields FROM packed_fields WHERE tag = ?", (view.tag,)
            ).fetchall()
        return [fields for (fields,) in rows]

    # --- connections and errors --------------------------------------------------------------

    def _connection(self, config: RepoConfig) -> sqlite3.Connection:
        path = _path(config)
        known = getattr(self._local, "known", None)
        if known is not None and known[:2] == (os.getpid(), path):
            return known[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            path, timeout=config.online_store.timeout_s, isolation_level=None
        )
        connection.execute("PRAGMA journal_mode = WAL")
        # A commit survives the process; the last ones may not survive a power cut. What is
        # online can be built again from the sources and the journal.
        connection.execute("PRAGMA synchronous = NORMAL")
        # Reads from the page cache in place: half the time of copying pages out of it.
        connection.execute(f"PRAGMA mmap_size = {MMAP_BYTES}")
        self._local.known = (os.getpid(), path, connection)
        return connection

    @contextmanager
    def _transaction(self, config: RepoConfig, begin: str) -> Iterator[sqlite3.Connection]:
        try:
            connection = self._connection(config)
            connection.execute(begin)
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            if "no such table" in str(error):
                raise InputError(
                    f"{_path(config)} has no such view ({error}); run `crescendo publish`"
                ) from error
            raise StoreUnavailableError(
                f"online store {_path(config)}: {error}; nothing of this write was kept"
            ) from error

    def _reading(self, config: RepoConfig) -> AbstractContextManager[sqlite3.Connection]:
        return self._transaction(config, "BEGIN")

    def _writing(self, config: RepoConfig) -> AbstractContextManager[sqlite3.Connection]:
        # IMMEDIATE: what a merge has read is still there when it writes.
        return self._transaction(config, "BEGIN IMMEDIATE")


def _path(config: RepoConfig) -> Path:
    path = Path(config.online_store.path)
    return path if path.is_absolute() or not config.repo_path else config.repo_path / path


def _table(view: PackedView) -> str:
    # Not the name that Feast's SQLite store would take: the two may share a file.
    name = f"packed_{view.project}_{view.name}".replace('"', '""')
    return f'"{name}"'


def _entities(view: PackedView, keys: Keys) -> list[Any]:
    """The primary keys: ids as they are, other entity keys as Feast serializes them."""
    return keys.tolist() if isinstance(keys, np.ndarray) else keys


def _remember(connection: sqlite3.Connection, view: PackedView) -> None:
    """The view's table, and the fields that its rows are packed from."""
    key = "BLOB" if view.template is None else "INTEGER"
    connection.execute(
        f"CREATE TABLE IF NOT EXISTS {_table(view)} (entity {key} PRIMARY KEY, "
        "event_us INTEGER NOT NULL, created_us INTEGER NOT NULL, value BLOB NOT NULL)"
    )
    connection.execute(_FIELDS_TABLE)
    connection.execute(
        "INSERT OR IGNORE INTO packed_fields VALUES (?, ?, ?)",
        (view.tag, view.codec.layout.text, view.name),
    )


def _select(
    connection: sqlite3.Connection, view: PackedView, entities: list[Any]
) -> list[bytes | None]:
    if view.template is not None:
        # The ids as one parameter, answered in their order: half the time of an IN list.
        sql = (
            f"SELECT row.value FROM json_each(?) AS asked LEFT JOIN {_table(view)} AS row "
            "ON row.entity = asked.value"
        )
        return [row for (row,) in connection.execute(sql, (json.dumps(entities),))]
    found: dict[bytes, bytes] = {}
    for start in range(0, len(entities), READ_KEYS):
        part = entities[start : start + READ_KEYS]
        places = ",".join("?" * len(part))
        found.update(
            connection.execute(
                f"SELECT entity, value FROM {_table(view)} WHERE entity IN ({places})", part
            )
        )
    return [found.get(key) for key in entities]


def _upsert(
    connection: sqlite3.Connection,
    view: PackedView,
    entities: list[Any],
    rows: list[bytes],
    replace: bool,
) -> None:
    """Stores rows; without `replace` only where (event, creation) is not older than what is."""
    event_us, created_us = row_times(rows)
    not_older = "" if replace else _NOT_OLDER
    connection.executemany(
        f"INSERT INTO {_table(view)} AS now VALUES (?, ?, ?, ?) ON CONFLICT (entity) DO "
        "UPDATE SET event_us = excluded.event_us, created_us = excluded.created_us, "
        f"value = excluded.value {not_older}",
        zip(entities, event_us.tolist(), created_us.tolist(), rows, strict=True),
    )
