"""The answer of the offline store: runs when it is asked for, whole or streamed to files."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from uuid import uuid4

import pyarrow as pa
from feast.data_format import ParquetFormat
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.saved_dataset import SavedDatasetStorage

from feature_repo.errors import InputError
from feature_repo.stores.asof_sources import PATTERN_CHARACTERS, S3, Source, write_whole


class AsofRetrievalJob(RetrievalJob):
    """Feast's interface, and beside it `to_arrow_batches` and `write_parquet` of flat memory."""

    def __init__(
        self,
        tables: Callable[[], Iterator[pa.Table]],
        *,
        repo_path: Any,
        on_demand: list[OnDemandFeatureView] | None = None,
        full_feature_names: bool = False,
        metadata: RetrievalMetadata | None = None,
        staging_location: str | None = None,
        one_chunk: bool = False,
    ) -> None:
        """`tables` runs the query anew at each call; at least one table comes, maybe empty.

        `one_chunk`: `to_arrow` gives one chunk a column, at twice the memory. Feast's writers read
        the first chunk alone.
        """
        super().__init__()
        self._tables = tables
        self._repo_path = repo_path
        self._on_demand = on_demand or []
        self._full_feature_names = full_feature_names
        self._metadata = metadata
        self._staging_location = staging_location
        self._one_chunk = one_chunk

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._on_demand

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        table = pa.concat_tables(list(self._tables()))
        return table.combine_chunks() if self._one_chunk else table

    def _to_df_internal(self, timeout: int | None = None) -> Any:
        return self._to_arrow_internal().to_pandas()

    def to_arrow_batches(self) -> Iterator[pa.Table]:
        """The same rows in the same order as `to_arrow`, a part at a time, on-demand views too."""
        for table in self._tables():
            if not self._on_demand:
                yield table
                continue
            yield AsofRetrievalJob(
                partial(iter, [table]),
                repo_path=self._repo_path,
                on_demand=self._on_demand,
                full_feature_names=self._full_feature_names,
                metadata=self._metadata,
            ).to_arrow()

    def write_parquet(self, path: str, *, s3_endpoint: str | None = None) -> int:
        """Streams the rows into one parquet file, which is whole or absent; returns their number.

        `path`: a local one, relative to the feature repository, or an `s3://` URI.
        """
        if not path.endswith(".parquet"):
            raise InputError(f"path must end in .parquet, got {path}")
        place = FileSource(path=path, file_format=ParquetFormat(), s3_endpoint_override=s3_endpoint)
        target = Source.of(place, self._repo_path)
        tables = self.to_arrow_batches()
        first = next(tables)

        def all_tables() -> Iterator[pa.Table]:
            yield first
            yield from tables

        location = target.pattern.removeprefix(S3)
        return write_whole(target.filesystem, location, all_tables(), first.schema)

    def persist(
        self,
        storage: SavedDatasetStorage,
        allow_overwrite: bool = False,
        timeout: int | None = None,
    ) -> None:
        """Writes a Feast saved data set: to the path itself, or as one file in a folder."""
        destination = Source.of(storage.to_data_source(), self._repo_path)
        if destination.files() and not allow_overwrite:
            raise SavedDatasetLocationAlreadyExists(location=destination.pattern)
        replaced = destination.files()
        target = destination.pattern
        if PATTERN_CHARACTERS & set(target):
            target = f"{target.rpartition('/')[0]}/part-{uuid4().hex}.parquet"
        else:
            replaced = []  # the rename replaces it
        self.write_parquet(target, s3_endpoint=destination.s3_endpoint)
        for path in replaced:
            destination.filesystem.delete_file(path)

    def supports_remote_storage_export(self) -> bool:
        return self._staging_location is not None

    def to_remote_storage(self) -> list[str]:
        """Writes the rows under `offline_store.staging_location`; returns the file's URI."""
        if self._staging_location is None:
            raise InputError(
                "to_remote_storage has no place to write to; set offline_store.staging_location in "
                "feature_store.yaml"
            )
        path = f"{self._staging_location.rstrip('/')}/{uuid4().hex}/part-0.parquet"
        self.write_parquet(path)
        return [path]
