"""Where the offline store reads and appends: parquet under local paths or `s3://`, by DuckDB.

A source is a Feast `FileSource` whose path is a file, a folder or a pattern. `Source.of` resolves
it, `session` opens a DuckDB of bounded memory that can read it, `explained` turns what DuckDB says
about a missing or damaged file into an error that names the file.
"""

import glob
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.infra.offline_stores.file_source import FileSource
from pyarrow import fs

from feature_repo.errors import ArtifactError, InputError
from feature_repo.parquet_form import parquet_settings

S3 = "s3://"
PATTERN_CHARACTERS = frozenset("*?[")


@dataclass(frozen=True, kw_only=True)
class SessionLimits:
    """What one DuckDB may take."""

    memory_mb: int
    threads: int
    temp_directory: str | None
    """Parent of the folder for what does not fit; the system's own when None."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The parquet files behind a Feast source."""

    name: str
    """How errors call it."""
    pattern: str
    """Absolute path or URI that DuckDB expands."""
    s3_endpoint: str
    """URL of an S3-protocol server; empty for AWS itself and for local paths."""
    credentials: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, source: DataSource | None, repo_path: Path | None) -> "Source":
        """Raises InputError for sources that are no parquet files."""
        if not isinstance(source, FileSource) or not isinstance(
            source.file_format, ParquetFormat | None
        ):
            raise InputError(
                f"source {getattr(source, 'name', None)!r} is {type(source).__name__}; "
                "AsofOfflineStore reads a FileSource of parquet files"
            )
        path = FileSource.get_uri_for_file_path(repo_path, source.path)
        remote = path.startswith(S3)
        if not remote:
            path = path.removeprefix("file://")
        is_file = PATTERN_CHARACTERS & set(path) or path.endswith(".parquet")
        # A folder may be called `x.parquet` too: that is how Spark and Feast's datasets write.
        if not is_file or (not remote and os.path.isdir(path)):
            path = f"{path.rstrip('/')}/*.parquet"
        endpoint = source.s3_endpoint_override or os.environ.get("AWS_ENDPOINT_URL", "")
        credentials = (source.resolve_credentials() or {}) if remote else {}
        return cls(
            name=source.name or path,
            pattern=path,
            s3_endpoint=endpoint if remote else "",
            credentials=tuple(sorted(credentials.items())),
        )

    @property
    def sql(self) -> str:
        """The table function that reads it; a column that older files lack is null there."""
        return f"read_parquet({literal(self.pattern)}, union_by_name = true)"

    @cached_property
    def filesystem(self) -> fs.FileSystem:
        if not self.pattern.startswith(S3):
            return fs.LocalFileSystem()
        filesystem, _ = FileSource.create_filesystem_and_path(
            self.pattern, self.s3_endpoint, dict(self.credentials)
        )
        return filesystem

    def files(self) -> list[str]:
        """Paths for `filesystem`, in the order of their names."""
        if not self.pattern.startswith(S3):
            return sorted(glob.glob(self.pattern, recursive=True))
        from fsspec.implementations.arrow import ArrowFSWrapper

        return sorted(ArrowFSWrapper(self.filesystem).glob(self.pattern.removeprefix(S3)))

    def columns(self) -> pa.Schema:
        """Columns of the newest file by name. Raises ArtifactError when there is none."""
        paths = self.files()
        if not paths:
            raise ArtifactError(self._nothing())
        try:
            return pq.read_schema(paths[-1], filesystem=self.filesystem)
        except (pa.ArrowException, OSError) as error:
            raise ArtifactError(self._damaged(paths[-1], error)) from error

    def append(self, table: pa.Table) -> str:
        """Writes the rows as one more file beside the others, whole or not at all."""
        folder, _, name = self.pattern.rpartition("/")
        if not PATTERN_CHARACTERS & set(name) or PATTERN_CHARACTERS & set(folder):
            raise InputError(
                f"source {self.name} is {self.pattern}: rows cannot be appended to one file "
                "without rewriting it; give its path as FOLDER/*.parquet"
            )
        target = f"{folder.removeprefix(S3)}/part-{uuid.uuid4().hex}.parquet"
        write_whole(self.filesystem, target, [table], table.schema)
        return target

    def blame(self) -> ArtifactError | None:
        """The error to show if a file is missing or cannot be read; reads every file."""
        paths = self.files()
        if not paths:
            return ArtifactError(self._nothing())
        for path in paths:
            try:
                with pq.ParquetFile(path, filesystem=self.filesystem) as file:
                    for _ in file.iter_batches():
                        pass
            except (pa.ArrowException, OSError) as problem:
                return ArtifactError(self._damaged(path, problem))
        return None

    def _nothing(self) -> str:
        return (
            f"source {self.name}: no file matches {self.pattern}; "
            "run the job that writes it (`crescendo sequences`, `crescendo publish`)"
        )

    def _damaged(self, path: str, error: Exception) -> str:
        return (
            f"source {self.name}: {path} is not a whole parquet file ({first_line(error)}); "
            "run the job that writes it again (`crescendo sequences`, `crescendo publish`)"
        )


@contextmanager
def session(limits: SessionLimits, sources: Sequence[Source]) -> Iterator[Any]:
    """A DuckDB in memory for these sources, and beside it a folder for what does not fit.

    Yields (connection, folder). Times are in UTC. DuckDB fetches extensions over the network when
    a query seems to need one; not here: `s3://` goes through Arrow's own client.
    """
    with tempfile.TemporaryDirectory(prefix="asof-", dir=limits.temp_directory) as folder:
        settings = {
            "memory_limit": f"{limits.memory_mb}MiB",
            "threads": limits.threads,
            "temp_directory": f"{folder}/duckdb",
            "autoinstall_known_extensions": False,
            "preserve_insertion_order": False,
        }
        with duckdb.connect(config=settings) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute("SET enable_progress_bar = false")  # it goes to standard output
            remote = [source for source in sources if source.pattern.startswith(S3)]
            places = {(source.s3_endpoint, source.credentials) for source in remote}
            if len(places) > 1:
                raise InputError(
                    f"one join reads from one S3 server with one set of credentials, got "
                    f"{sorted(endpoint or 'AWS' for endpoint, _ in places)}"
                )
            if remote:
                from fsspec.implementations.arrow import ArrowFSWrapper

                connection.register_filesystem(ArrowFSWrapper(remote[0].filesystem))
            yield connection, Path(folder)


@contextmanager
def explained(sources: Sequence[Source]) -> Iterator[None]:
    """DuckDB's errors as ours: the file that is missing or damaged, else what DuckDB said.

    Looking for a damaged file reads the sources once more; only after an error.
    """
    try:
        yield
    except (duckdb.Error, pa.ArrowException) as error:  # the latter while a result is streamed
        if isinstance(error, duckdb.OutOfMemoryException) or "Out of Memory" in str(error):
            raise InputError(
                f"DuckDB ran out of memory: {first_line(error)}; raise offline_store."
                "memory_limit_mb in feature_store.yaml, or give temp_directory_path more room"
            ) from error
        for source in sources:
            problem = source.blame()
            if problem is not None:
                raise problem from error
        names = ", ".join(f"{source.name} ({source.pattern})" for source in sources)
        raise InputError(f"the query over {names or 'no source'} failed: {error}") from error


def write_whole(
    filesystem: fs.FileSystem, target: str, tables: Iterable[pa.Table], schema: pa.Schema
) -> int:
    """Writes the tables as one parquet file under a hidden name, then renames it; returns rows.

    On object storage an upload that was cut off leaves nothing; there it goes to its own name.
    """
    local = isinstance(filesystem, fs.LocalFileSystem)
    folder, _, name = target.rpartition("/")
    partial = f"{folder}/.{name}.{uuid.uuid4().hex}" if local else target
    if local:
        filesystem.create_dir(folder or ".", recursive=True)
    rows = 0
    try:
        with pq.ParquetWriter(
            partial,
            schema,
            filesystem=filesystem,
            coerce_timestamps="us",
            **parquet_settings(schema),
        ) as writer:
            for table in tables:
                writer.write_table(table.cast(schema) if table.schema != schema else table)
                rows += table.num_rows
        if local:
            os.replace(partial, target)
    finally:
        if local and os.path.exists(partial):
            os.remove(partial)
    return rows


def literal(text: str) -> str:
    """A piece of text as SQL."""
    return "'" + text.replace("'", "''") + "'"


def quoted(name: str) -> str:
    """A column name as SQL, whatever characters it holds."""
    return '"' + name.replace('"', '""') + '"'


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
