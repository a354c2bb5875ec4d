"""The checks of the data contract: which rows of a source are accepted, and why others are not.

`check_tracks` and `check_events` read a source's columns as the contract's types and give each
row that breaks the contract the first reason that applies. Used by `ray_jobs.contract`, which
numbers the ids and writes the tables. Reasons:

- `malformed_row`: a line of a CSV file that has too few or too many cells, or a broken quote
- `null_<column>`, `unparseable_<column>`: a required value is missing, or is of another type
- `empty_title`, `duplicate_track_id`, `duplicate_event_id`, `unknown_action`
- `unknown_track`: an event of a track that the source lacks; `rejected_track`: that it rejected
- `<column>_out_of_range`: a ratio outside 0 to 1, a negative duration, a time that no listening
  log can hold (mostly seconds taken for milliseconds), NaN or infinity in any of these
- `<modality>_vector_wrong_length`, `<modality>_vector_not_finite`
"""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.errors import InputError
from feature_repo.schema import ACTIONS, EVENTS, TIMESTAMP, TRACKS, VECTOR_SUFFIX
from ray_jobs.arrow_sql import query

MALFORMED_ROW = "malformed_row"
"""A column that a reader may add: the raw text of a line that could not be split into cells."""

EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)
LATEST = datetime(2100, 1, 1, tzinfo=UTC)
LARGEST_EXACT_INTEGER = 2**53
CANONICAL_INTEGER = r"^(0|-?[1-9][0-9]{0,18})$"
REJECTED = pa.schema([pa.field("reason", pa.string()), pa.field("row", pa.string())])
SQL_TYPES = {TIMESTAMP: "TIMESTAMPTZ", pa.float64(): "DOUBLE"}


class Verdict:
    """One source table, its columns as the contract's types, and each row's reason to reject it."""

    def __init__(self, source: pa.Table) -> None:
        self.source = source
        self.columns: dict[str, pa.ChunkedArray] = {}
        self._reasons = ["accepted"]
        self._reason_of_row = np.zeros(len(source), np.int16)
        if MALFORMED_ROW in source.column_names:
            self.reject(source[MALFORMED_ROW].is_valid(), MALFORMED_ROW)

    def reject(self, rows: pa.ChunkedArray | np.ndarray, reason: str) -> None:
        """Gives `reason` to those of `rows` (true or false a row) that have none yet."""
        if not isinstance(rows, np.ndarray):
            rows = rows.fill_null(False).to_numpy()
        rows = rows & self.accepted
        if rows.any():
            self._reasons.append(reason)
            self._reason_of_row[rows] = len(self._reasons) - 1

    def reject_accepted(self, rows: np.ndarray, reason: str) -> None:
        """As `reject`, with true or false for each row that was accepted so far."""
        everywhere = np.zeros(len(self.source), bool)
        everywhere[np.flatnonzero(self.accepted)[rows]] = True
        self.reject(everywhere, reason)

    @property
    def accepted(self) -> np.ndarray:
        return self._reason_of_row == 0

    @property
    def rejected(self) -> int:
        return int(np.count_nonzero(self._reason_of_row))

    def accepted_column(self, name: str) -> pa.ChunkedArray:
        return self.columns[name].filter(pa.array(self.accepted))

    def rejected_by_reason(self) -> dict[str, int]:
        """Rejected rows of each reason, the commonest first."""
        counts = np.bincount(self._reason_of_row, minlength=len(self._reasons)).tolist()
        pairs = list(zip(self._reasons, counts, strict=True))[1:]
        return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))

    def rejected_rows(self) -> pa.Table:
        """`reason` and `row`: the source's row as JSON."""
        rows = self.source.filter(pa.array(~self.accepted))
        if not len(rows):
            return REJECTED.empty_table()
        if not self.rejected_by_reason().get(MALFORMED_ROW):
            rows = rows.select([name for name in rows.column_names if name != MALFORMED_ROW])
        rows = pa.table({name: _json_safe(rows[name]) for name in rows.column_names})
        as_json = query("SELECT CAST(to_json(rows) AS VARCHAR) AS row FROM rows", rows=rows)["row"]
        reasons = np.array(self._reasons, dtype=object)[self._reason_of_row[~self.accepted]]
        return pa.table([pa.array(reasons, pa.string()), as_json], schema=REJECTED)

    def read(self, field: pa.Field) -> None:
        """Reads a column as the contract's type; one that the source lacks is null."""
        if field.name not in self.source.column_names:
            self.columns[field.name] = pa.chunked_array([pa.nulls(len(self.source), field.type)])
            return
        source = self.source[field.name]
        values = _read_as(source, field)
        self.reject(pc.and_(source.is_valid(), values.is_null()), f"unparseable_{field.name}")
        if not field.nullable:
            self.reject(values.is_null(), f"null_{field.name}")
        self.columns[field.name] = values

    def read_ids(self, field: pa.Field) -> None:
        """Reads an id column as int64, or as strings where not every id spells an integer."""
        if field.name not in self.source.column_names:
            self.columns[field.name] = pa.chunked_array([pa.nulls(len(self.source), pa.int64())])
            return
        source = _plain(self.source[field.name])
        if pa.types.is_floating(source.type):
            # Integers with gaps come out of pandas as floats, NaN where the gap was.
            values = source.to_numpy().astype(np.float64)
            whole = np.floor(values) == values
            whole &= np.abs(values) < LARGEST_EXACT_INTEGER
            missing = source.is_null(nan_is_null=True)
            self.reject(~whole & ~missing.to_numpy(), f"unparseable_{field.name}")
            integers = np.where(whole, values, 0).astype(np.int64)
            ids = pa.chunked_array([pa.array(integers, mask=~whole)])
        elif _is_text(source.type):
            ids = source.cast(pa.string())
            blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(ids)), 0)
            ids = _as_integers(pc.if_else(blank, pa.scalar(None, pa.string()), ids))
        else:
            ids = _cast(source, pa.field(field.name, pa.int64()))
        if not field.nullable:
            self.reject(ids.is_null(), f"null_{field.name}")
        self.columns[field.name] = ids

    def read_vectors(self, name: str) -> None:
        """Reads a list column as fixed_size_list<float32>; its length is the commonest one."""
        source = self.source[name].combine_chunks()
        kind = source.type
        if not _is_list(kind) or not (
            pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)
        ):
            raise InputError(f"column {name} has type {kind}; expected lists of numbers")
        lengths = pc.list_value_length(source).fill_null(-1).to_numpy(zero_copy_only=False)
        known = lengths[lengths >= 0]
        if pa.types.is_fixed_size_list(kind):
            width = kind.list_size
        else:
            width = int(np.bincount(known).argmax()) if known.size else 0
        if width == 0:
            raise InputError(f"column {name} holds no vector; leave it out, or give it numbers")
        self.reject((lengths >= 0) & (lengths != width), f"{name}_wrong_length")
        fitting = lengths == width
        numbers = source.filter(pa.array(fitting)).flatten().to_numpy(zero_copy_only=False)
        vectors = np.zeros((len(source), width), np.float32)
        with np.errstate(over="ignore"):
            vectors[fitting] = numbers.reshape(-1, width)
        self.reject(~np.isfinite(vectors).all(axis=1), f"{name}_not_finite")
        self.columns[name] = pa.chunked_array(
            [pa.FixedSizeListArray.from_arrays(vectors.ravel(), width, mask=pa.array(~fitting))]
        )


def check_tracks(tracks: pa.Table) -> Verdict:
    """The catalogue's verdict. Of two rows with one `track_id` the first stays."""
    verdict = Verdict(tracks)
    verdict.read_ids(TRACKS.field("track_id"))
    for field in TRACKS:
        if field.name != "track_id":
            verdict.read(field)
    title = verdict.columns["title"]
    verdict.reject(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(title)), 0), "empty_title")
    _reject_outside(verdict, "duration_s", 0.0, np.finfo(np.float64).max)
    for name in tracks.column_names:
        if name.endswith(VECTOR_SUFFIX):
            verdict.read_vectors(name)
    ids = verdict.accepted_column("track_id").to_pandas()
    verdict.reject_accepted(ids.duplicated().to_numpy(), "duplicate_track_id")
    return verdict


def check_events(events: pa.Table, tracks: Verdict) -> Verdict:
    """The log's verdict; `ray_jobs.contract` adds the duplicates, which need numbered ids."""
    verdict = Verdict(events)
    for name in ("user_id", "track_id"):
        verdict.read_ids(EVENTS.field(name))
    for name in ("event_id", "session_id"):
        verdict.read_ids(EVENTS.field(name).with_nullable(True))
    for name in ("event_timestamp", "action", "played_ratio", "ingested_at"):
        verdict.read(EVENTS.field(name))
    action = verdict.columns["action"]
    verdict.reject(pc.invert(pc.is_in(action, pa.array(ACTIONS))), "unknown_action")
    _reject_outside(verdict, "played_ratio", 0.0, 1.0)
    _reject_outside(verdict, "event_timestamp", EARLIEST, LATEST)
    _reject_outside(verdict, "ingested_at", EARLIEST, LATEST)
    listened, every, kept = comparable(
        verdict.columns["track_id"],
        tracks.columns["track_id"],
        tracks.accepted_column("track_id"),
    )
    in_source, in_catalogue = (
        pc.is_in(listened, ids.combine_chunks()).to_numpy() for ids in (every, kept)
    )
    verdict.reject(in_source & ~in_catalogue, "rejected_track")
    verdict.reject(~in_catalogue, "unknown_track")
    return verdict


def comparable(*ids: pa.ChunkedArray) -> list[pa.ChunkedArray]:
    """Id columns of one type: as strings where they differ."""
    if len({column.type for column in ids}) == 1:
        return list(ids)
    return [column.cast(pa.string()) for column in ids]


def _reject_outside(verdict: Verdict, name: str, low: object, high: object) -> None:
    """NaN fails both comparisons, so it is outside as well."""
    values = verdict.columns[name]
    low, high = (pa.scalar(limit, values.type) for limit in (low, high))
    inside = pc.and_(pc.greater_equal(values, low), pc.less_equal(values, high))
    verdict.reject(pc.invert(inside), f"{name}_out_of_range")


def _read_as(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    """The column as the field's type, null where a text can't be read as such."""
    column = _plain(column)
    if _is_text(column.type) and field.type in SQL_TYPES:
        sql = f"SELECT try_cast(value AS {SQL_TYPES[field.type]}) AS value FROM text"
        return query(sql, text=pa.table({"value": column}))["value"].cast(field.type)
    is_time = pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)
    if field.type == TIMESTAMP and not (is_time or pa.types.is_null(column.type)):
        # Arrow would take any integer for microseconds.
        raise InputError(
            f"column {field.name} has type {column.type}; expected timestamps or ISO text"
        )
    return _cast(column, field)


def _cast(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    exact = pa.types.is_integer(field.type)
    try:
        return column.cast(field.type, safe=exact)
    except pa.ArrowException as error:
        raise InputError(
            f"column {field.name} has type {column.type}; expected {field.type} ({error})"
        ) from error


def _as_integers(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """String ids as int64 where all of them spell one, without leading zeros; else unchanged."""
    distinct = ids.unique().drop_null()
    if (
        not len(distinct)
        or not pc.all(pc.match_substring_regex(distinct, CANONICAL_INTEGER)).as_py()
    ):
        return ids
    try:
        return ids.cast(pa.int64())
    except pa.ArrowInvalid:  # nineteen digits may exceed int64
        return ids


def _json_safe(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """JSON has no NaN and no infinity: a column that holds one is shown as text."""
    kind = column.type
    numbers = column.combine_chunks().flatten() if _is_list(kind) else column
    if not pa.types.is_floating(numbers.type):
        return column
    numbers = numbers.cast(pa.float64())
    finite = pc.all(pc.is_finite(numbers)).as_py() in (True, None)
    shown = pa.float64() if finite else pa.string()
    return column.cast(pa.list_(shown) if _is_list(kind) else shown)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column without dictionary encoding."""
    kind = column.type
    return column.cast(kind.value_type) if pa.types.is_dictionary(kind) else column


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
