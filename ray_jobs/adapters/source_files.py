"""Reading a source's files: CSV and parquet as Arrow tables, with errors a user can act on.

A CSV cell comes as text and is read as a number or a time by the contract's checks, so that one
bad cell rejects one row. A line that cannot be split into cells becomes a row with nothing but
its text in the column `malformed_row`: it is counted and rejected, never skipped in silence.
"""

import csv
import gzip
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from feature_repo.errors import InputError
from ray_jobs.arrow_sql import literal, quoted
from ray_jobs.contract_checks import MALFORMED_ROW

DELIMITERS = ("\t", ",", ";", "|")
CHUNK_BYTES = 1 << 20
SHOWN_CHARACTERS = 400


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Turns a missing or unreadable file into an error that says what was expected there."""
    if not path.exists():
        raise InputError(
            f"{path} does not exist; expected {expected}; check --path, or fetch the file"
        )
    try:
        yield
    except InputError:
        raise
    except (pa.ArrowException, duckdb.Error, OSError, EOFError, ValueError) as error:
        raise InputError(
            f"cannot read {path}: {' '.join(str(error).split())[:SHOWN_CHARACTERS]}; "
            f"expected {expected}; is the file cut off or of another kind? write it again"
        ) from error


def read_delimited(path: Path, required: Sequence[str]) -> pa.Table:
    """A CSV or TSV file, gzipped or not: columns of text, empty cells null, and `malformed_row`.

    The delimiter is the one that the header line has most of. Quotes are read as in RFC 4180,
    but not to hold a tab or a line break in a tab-separated file: there a title that merely
    begins with a quote would swallow the lines after it.
    """
    with reading(path, f"a delimited text file with the columns {', '.join(required)}"):
        header_line = _header_line(path)
        delimiter = max(DELIMITERS, key=header_line.count)
        header = next(csv.reader([header_line], delimiter=delimiter), [])
        require_columns(path, header, required)
        if len(set(header)) < len(header) or MALFORMED_ROW in header:
            raise InputError(f"{path} names a column twice, or {MALFORMED_ROW}: {header}")
        packing = "gzip" if path.suffix == ".gz" else "none"
        tabs = delimiter == "\t"
        quote = "" if tabs else '"'
        types = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in header)
        cells = ", ".join(_unquoted(name) if tabs else quoted(name) for name in header)
        with duckdb.connect() as connection:
            rows = connection.sql(
                f"SELECT {cells} FROM read_csv({_file_name(path)}, compression = '{packing}',"
                f" delim = {literal(delimiter)}, quote = '{quote}', escape = '{quote}',"
                f" header = true, columns = {{{types}}}, nullstr = '',"
                f" auto_detect = false, store_rejects = true)"
            ).to_arrow_table()
            malformed = connection.sql(
                "SELECT any_value(csv_line) AS text FROM reject_errors GROUP BY line ORDER BY line"
            ).to_arrow_table()["text"]
    rows = rows.append_column(MALFORMED_ROW, pa.nulls(len(rows), pa.string()))
    broken = pa.table({MALFORMED_ROW: malformed.cast(pa.string())})
    return pa.concat_tables([rows, broken], promote_options="default")


def read_parquet(path: Path, required: Sequence[str]) -> pa.Table:
    """A parquet file, or a folder of them."""
    with reading(path, f"a parquet file with the columns {', '.join(required)}"):
        table = ds.dataset(path, format="parquet").to_table()
        require_columns(path, table.column_names, required)
    return table


def read_vectors(path: Path) -> np.ndarray:
    """A numpy file of one vector a row, as float32."""
    expected = "a .npy file with one vector a row"
    with reading(path, expected):
        vectors = np.load(path, allow_pickle=False)
        if vectors.ndim != 2:
            raise InputError(f"{path} has shape {vectors.shape}; expected {expected}")
        return vectors.astype(np.float32)


def require_columns(path: Path, found: Sequence[str], required: Sequence[str]) -> None:
    missing = [name for name in required if name not in found]
    if missing:
        raise InputError(
            f"{path} lacks the columns {', '.join(missing)}; found {', '.join(found) or 'none'}"
        )


def absolute_uris(uris: pa.ChunkedArray, folder: Path) -> pa.ChunkedArray:
    """File names relative to the source, so that they hold wherever a worker runs."""
    uris = uris.cast(pa.string())
    absolute = pc.match_substring_regex(uris, r"^(/|[A-Za-z][A-Za-z0-9+.-]*:)")
    base = pa.scalar(f"{folder.resolve()}/")
    return pc.if_else(absolute, uris, pc.binary_join_element_wise(base, uris, ""))


def _header_line(path: Path) -> str:
    """The first line, once a gzipped file is known to be whole: DuckDB checks no checksum."""
    if path.suffix == ".gz":
        with gzip.open(path) as stream:
            while stream.read(CHUNK_BYTES):
                pass
        with gzip.open(path, "rt", encoding="utf-8-sig", errors="replace") as text:
            return text.readline().rstrip("\r\n")
    with path.open(encoding="utf-8-sig", errors="replace") as text:
        return text.readline().rstrip("\r\n")


def _file_name(path: Path) -> str:
    """SQL for a path whose `*`, `?` and `[` stand for themselves and not for other files."""
    return literal(re.sub(r"[*?\[]", r"[\g<0>]", str(path)))


def _unquoted(name: str) -> str:
    """SQL for a cell without the quotes that a CSV writer put around it, if it did."""
    cell = quoted(name)
    inner = f"substr({cell}, 2, length({cell}) - 2)"
    return (
        f"""CASE WHEN length({cell}) > 1 AND {cell} LIKE '"%"' """
        f"""AND NOT contains(replace({inner}, '""', ''), '"') """
        f"""THEN nullif(replace({inner}, '""', '"'), '') ELSE {cell} END AS {cell}"""
    )
