"""SQL over Arrow tables: one DuckDB in memory for one query, times in UTC.

`query("SELECT ... FROM log", log=table)` returns an Arrow table; rows keep their order where the
SQL does not change it. DuckDB's plain TIMESTAMP drops the offset of `2019-02-20T12:28+02:00`
without a word, so every cast of text to a time must be to TIMESTAMPTZ, as here.
"""

import duckdb
import pyarrow as pa

MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}


def query(sql: str, **tables: pa.Table) -> pa.Table:
    """The result of `sql`, in which each of `tables` goes by its keyword."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for name, table in tables.items():
            connection.register(name, table)
        return connection.sql(sql).to_arrow_table()


def quoted(name: str) -> str:
    """A column or table name as SQL, whatever characters it holds."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A piece of text as SQL."""
    return "'" + text.replace("'", "''") + "'"


def text_from_epoch(column: str, unit: str) -> str:
    """SQL that turns a number of `unit` since 1970 into ISO text.

    What is no number stays as it is, so that the contract rejects the row and shows its value.
    """
    number = f"try_cast(try_cast({column} AS DOUBLE) * {MICROSECONDS[unit]} AS BIGINT)"
    moment = f"TRY(make_timestamptz({number}))"
    return f"coalesce(CAST({moment} AS VARCHAR), CAST({column} AS VARCHAR))"
