"""The entity rows of a point-in-time join: the caller's table and its moments in microseconds."""

from dataclasses import dataclass

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo import schema
from feature_repo.errors import InputError
from feature_repo.stores.asof_sources import SessionLimits, explained, session

NEVER_US = -(2**62)
"""A moment before any row: asks for nothing."""


@dataclass(frozen=True, kw_only=True)
class EntityRows:
    """The rows to answer: the caller's table, and their moments."""

    table: pa.Table
    moments_us: pa.Array
    """int64; null gives nulls."""

    @classmethod
    def of(cls, frame: pd.DataFrame | pa.Table, timestamp: str) -> "EntityRows":
        """`timestamp` names the column of moments; naive ones are UTC, text is parsed."""
        try:
            table = (
                frame
                if isinstance(frame, pa.Table)
                else pa.Table.from_pandas(frame, preserve_index=False)
            )
        except pa.ArrowException as error:
            raise InputError(f"a column of the entity rows has no one type: {error}") from error
        table = table.combine_chunks()
        position = table.column_names.index(timestamp)
        moments = table.column(position)
        if pa.types.is_string(moments.type) or pa.types.is_large_string(moments.type):
            try:
                parsed = pd.to_datetime(moments.to_pandas(), utc=True, format="mixed")
            except (ValueError, TypeError) as error:
                raise InputError(
                    f"column {timestamp} of the entity rows must hold times: {error}"
                ) from error
            moments = pa.chunked_array([pa.array(parsed, type=schema.TIMESTAMP)])
            table = table.set_column(position, timestamp, moments)
        if not (pa.types.is_timestamp(moments.type) or pa.types.is_date(moments.type)):
            raise InputError(
                f"column {timestamp} of the entity rows must hold times, got {moments.type}"
            )
        # A moment between two microseconds sees what the earlier one sees: rows have whole ones.
        stamps = pc.cast(moments, schema.TIMESTAMP, safe=False)
        return cls(table=table, moments_us=_one_array(pc.cast(stamps, pa.int64())))

    def column(self, name: str, view: str) -> pa.Array:
        if name not in self.table.column_names:
            raise InputError(
                f"view {view} joins on {name}, the entity rows have "
                f"{', '.join(self.table.column_names)}"
            )
        return _one_array(self.table.column(name))

    def moment_range_us(self) -> tuple[int, int] | None:
        """First and last moment; None where no row has one."""
        if self.moments_us.null_count == len(self.moments_us):
            return None
        ends = pc.min_max(self.moments_us)
        return ends["min"].as_py(), ends["max"].as_py()


def _one_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column if isinstance(column, pa.Array) else column.combine_chunks()


def sql_rows(query: str, limits: SessionLimits) -> pa.Table:
    """Entity rows given as a DuckDB query, for instance over parquet files."""
    with session(limits, []) as (connection, _), explained([]):
        return connection.sql(query).to_arrow_table()
