"""The source of a view as materialization sees it: its files, its settled part, its entities.

Plain DuckDB over the view's parquet files, apart from the offline store that reads the rows to be
written: what is checked and what checks it do not share code. A view is plain (one row of an entity
is its value) or a sequence (its rows are listens, its value the last N of them).
"""

import copy
import os
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feast import FeatureView

from feature_repo import schema
from feature_repo.artifacts import MANIFEST, read_manifest
from feature_repo.errors import ArtifactError
from feature_repo.workspace import Workspace
from ray_jobs.arrow_sql import literal, quoted
from ray_jobs.watermarks import EPOCH, Settled

BUCKETS = 1024
"""Parts into which a span of time is counted when chunks are cut."""
MEMORY_MB = 1024
"""DuckDB's bound for questions to a source; what needs more goes to its temporary files."""
US = timedelta(microseconds=1)
LISTENS = {
    schema.SEQUENCE_TRACK_IDS: "track_id",
    schema.SEQUENCE_TIMESTAMPS: "epoch_us(listened_at)",
    schema.SEQUENCE_ACTIONS: "action",
    schema.SEQUENCE_EVENT_IDS: "event_id",
}
"""List feature of a sequence view -> SQL over its log."""


@dataclass(frozen=True)
class ViewSource:
    """The parquet files behind one view of a workspace. Times are UTC, `until` is inclusive."""

    workspace: Workspace
    view: FeatureView
    # DuckDB refuses a connection to a second thread instead of letting it wait.
    _asking: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @cached_property
    def key(self) -> str:
        (key,) = self.view.join_keys
        return str(key)

    @cached_property
    def local_view(self) -> FeatureView:
        """The view over the files in this workspace: its registered source may be a URI to which
        they are yet to be uploaded."""
        view = copy.copy(self.view)
        view.batch_source = copy.deepcopy(self.view.batch_source)
        view.batch_source.file_options.uri = str(self.folder.absolute() / "*.parquet")
        return view

    def renamed(self, table: pa.Table) -> pa.Table:
        """Rows of the offline store with the event time under the name that online stores take."""
        stamp = self.view.batch_source.timestamp_field
        names = [schema.EVENT_TIMESTAMP if n == stamp else n for n in table.column_names]
        return table.rename_columns(names)

    @cached_property
    def length(self) -> int | None:
        """N of a sequence view, None for a plain one."""
        tag = self.view.tags.get(schema.SEQUENCE_LENGTH_TAG)
        return None if tag is None else int(tag)

    @cached_property
    def folder(self) -> Path:
        return self.workspace.feature_source(self.view.name)

    @cached_property
    def files(self) -> dict[str, str]:
        """The parquet files, by name, each with what tells it from a changed one.

        Raises ArtifactError if there is none, or if they are not those of the manifest.
        """
        if (self.folder / MANIFEST).exists():
            source = read_manifest(self.folder, kind="feature_source", made_by="sequences")
            found = {name: sha for name, sha in source.files.items() if name.endswith(".parquet")}
        else:
            stats = {path.name: path.stat() for path in self.folder.glob("*.parquet")}
            found = {name: f"{stat.st_size}-{stat.st_mtime_ns}" for name, stat in stats.items()}
        if not found:
            raise ArtifactError(
                f"view {self.view.name} has no parquet file in {self.folder}; "
                "run `crescendo sequences`, then `crescendo publish`"
            )
        return dict(sorted(found.items()))

    def require_unchanged(self) -> None:
        """Raises ArtifactError if the files are not those that were found at first: what is read
        chunk by chunk must be one source."""
        if ViewSource(self.workspace, self.view).files != self.files:
            raise ArtifactError(
                f"the source of view {self.view.name} was replaced while it was materialized; "
                "run `crescendo materialize` again"
            )

    @cached_property
    def made_at(self) -> datetime:
        """When the source was written: what is online and newer cannot be in it."""
        if (self.folder / MANIFEST).exists():
            source = read_manifest(
                self.folder, kind="feature_source", made_by="sequences", verify=False
            )
            return datetime.fromisoformat(source.created_at)
        newest = max(path.stat().st_mtime for path in self.folder.glob("*.parquet"))
        return datetime.fromtimestamp(newest).astimezone()

    @cached_property
    def newest_us(self) -> int:
        """Microseconds since 1970: an online row with a later event time is newer than the source.

        The last row's moment, or the making of the source where its log lies ahead of the clock.
        """
        (last_us,) = self._one("SELECT epoch_us(max(event_timestamp)) FROM source")
        made_us = _us(self.made_at)
        return made_us if last_us is None else min(made_us, last_us)

    def settled(self, until: datetime) -> Settled:
        """Count and checksum of the rows up to `until`, whatever files they lie in.

        Of a log, its event ids and times: what a listen is does not change under its id.
        """
        columns = ["event_id", "event_timestamp"]
        if self.length is None:
            columns = self._table("SELECT * FROM source LIMIT 0").column_names
        listed = ", ".join(quoted(name) for name in sorted(columns))
        # A sum of 64-bit hashes: no order, and two equal rows do not cancel out.
        rows, checksum = self._one(
            f"SELECT count(*), coalesce(sum(hash({listed})::HUGEINT), 0)::VARCHAR "
            f"FROM source WHERE {self._up_to(until)}"
        )
        return Settled(until=until.isoformat(), rows=rows, checksum=checksum)

    def entities(self, until: datetime) -> np.ndarray:
        """Ids (E,) int64, rising, of the entities with a row up to `until`."""
        table = self._table(
            f"SELECT DISTINCT {quoted(self.key)} AS id FROM source "
            f"WHERE {self._up_to(until)} AND id IS NOT NULL ORDER BY id"
        )
        return table["id"].to_numpy().astype(np.int64)

    def chunks(self, start: datetime, end: datetime, chunk_rows: int) -> list[datetime]:
        """Moments m1 < m2 < ... = end; each of (start, m1], (m1, m2], ... holds at most
        `chunk_rows` source rows, or rows of a single microsecond. None where a long source has
        no row in the range."""
        (total,) = self._one("SELECT count(*) FROM source")  # the files' footers say it
        if total <= chunk_rows:
            return [end]
        low, high, rows = self._one(
            f"SELECT epoch_us(min(event_timestamp)), epoch_us(max(event_timestamp)), count(*) "
            f"FROM source WHERE event_timestamp > {_moment(start)} AND {self._up_to(end)}"
        )
        if rows == 0:
            return []
        moments = self._cut(low, high, chunk_rows)
        return [_from_us(us) for us in moments[:-1]] + [end]

    def _cut(self, low: int, high: int, chunk_rows: int) -> list[int]:
        """Last microseconds of chunks over [low, high], by counting rows in buckets of time."""
        width = (high - low) // BUCKETS + 1
        counted = self._table(
            f"SELECT (epoch_us(event_timestamp) - {low}) // {width} AS bucket, count(*) AS n "
            f"FROM source WHERE epoch_us(event_timestamp) BETWEEN {low} AND {high} "
            "GROUP BY ALL ORDER BY bucket"
        )
        moments: list[int] = []
        held = 0
        for bucket, n in zip(counted["bucket"].to_pylist(), counted["n"].to_pylist(), strict=True):
            first = low + bucket * width
            last = min(first + width - 1, high)
            if held and held + n > chunk_rows:
                moments.append(first - 1)
                held = 0
            if n > chunk_rows and width > 1:
                # The last part of a bucket that is cut again goes on into the next one.
                moments.extend(self._cut(first, last, chunk_rows))
                held = 0
                continue
            held += n
        if not moments or moments[-1] < high:
            moments.append(high)
        return moments

    def newest(self, ids: np.ndarray, until: datetime) -> pa.Table:
        """What the online rows of these entities must hold at `until`: key, features, and
        `event_timestamp`. One row an entity, ordered by key."""
        names = [field.name for field in self.view.features]
        if self.length is None:
            listed = ", ".join(quoted(name) for name in names)
            created = self.view.batch_source.created_timestamp_column
            order = ["event_timestamp DESC", *([f"{quoted(created)} DESC"] if created else [])]
            query = (
                f"SELECT {quoted(self.key)}, event_timestamp, {listed} FROM source "
                f"WHERE {self._up_to(until)} AND {quoted(self.key)} IN (SELECT id FROM ids) "
                f"QUALIFY row_number() OVER (PARTITION BY {quoted(self.key)} "
                f"ORDER BY {', '.join(order)}) = 1 ORDER BY {quoted(self.key)}"
            )
            return self._table(query, ids=pa.table({"id": ids}))
        # max(..., N) holds N listens a user, however many there are.
        query = (
            f"SELECT {quoted(self.key)}, max(event_timestamp) AS event_timestamp, list_reverse("
            "max({first_by: listened_at, then_by: event_id, "
            f"{', '.join(f'{name}: {LISTENS[name]}' for name in names)}}}, {self.length})) AS w "
            f"FROM source WHERE {self._up_to(until)} "
            f"AND {quoted(self.key)} IN (SELECT id FROM ids) "
            f"GROUP BY {quoted(self.key)} ORDER BY {quoted(self.key)}"
        )
        table = self._table(query, ids=pa.table({"id": ids}))
        windows = table["w"].combine_chunks()
        # A list of structs to lists of their fields: they have its offsets in common.
        for name in names:
            values = pc.struct_field(windows.values, name)
            lists = pa.ListArray.from_arrays(windows.offsets, values)
            table = table.append_column(name, lists)
        return table.drop_columns(["w"])

    def _up_to(self, until: datetime) -> str:
        return f"event_timestamp <= {_moment(until)}"

    def _one(self, query: str) -> tuple[Any, ...]:
        table = self._table(query)
        return tuple(column[0].as_py() for column in table.columns)

    def _table(self, query: str, **tables: pa.Table) -> pa.Table:
        try:
            with self._asking:
                for name, table in tables.items():
                    self._connection.register(name, table)
                return self._connection.sql(query).to_arrow_table()
        except duckdb.Error as error:
            self.require_unchanged()
            raise ArtifactError(
                f"cannot read the source of view {self.view.name} in {self.folder}: {error}; "
                "run `crescendo sequences` (or the command that writes it) again"
            ) from error

    @cached_property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        """One for all questions."""
        connection = _database(os.getpid()).cursor()
        connection.execute("SET TimeZone = 'UTC'")
        files = ", ".join(literal(str(self.folder / name)) for name in self.files)
        stamp = quoted(self.view.batch_source.timestamp_field)
        connection.execute(
            f"CREATE TEMP VIEW source AS SELECT * EXCLUDE ({stamp}), "
            f"{stamp}::TIMESTAMPTZ AS event_timestamp "
            f"FROM read_parquet([{files}], union_by_name = true)"
        )
        return connection


def last_moment(path: Path) -> datetime | None:
    """The largest `event_timestamp` of a parquet file, as its footer says it; None without rows.

    Raises ArtifactError for a file that cannot be read, or whose writer left that out.
    """
    try:
        metadata = pq.read_metadata(path)
        column = metadata.schema.names.index(schema.EVENT_TIMESTAMP)
        groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
        newest = [group.column(column).statistics.max for group in groups if group.num_rows]
    except (pa.ArrowException, OSError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"{path} does not say when its last row is ({error}); run `crescendo sequences` again"
        ) from error
    # Times without a zone are UTC.
    return max((at if at.tzinfo else at.replace(tzinfo=UTC) for at in newest), default=None)


@cache
def _database(process: int) -> duckdb.DuckDBPyConnection:
    """One of a process for all sources: opening one costs more than most answers. A forked child
    has none of its parent's threads, so it opens its own."""
    settings = {"memory_limit": f"{MEMORY_MB}MB", "preserve_insertion_order": False}
    return duckdb.connect(config=settings)


def _moment(moment: datetime) -> str:
    return f"make_timestamptz({_us(moment)})"


def _us(moment: datetime) -> int:
    return (moment - EPOCH) // US


def _from_us(us: int) -> datetime:
    return EPOCH + timedelta(microseconds=us)
