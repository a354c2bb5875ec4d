"""An event log whose files are sorted by user, read as they lie: nothing is sorted or spilled.

`crescendo sequences` writes such files: the rows of a user are neighbours, in one file. Whether a
source is like that is found out from its users alone, a column that packs to nearly nothing; other
sources are sorted by DuckDB, which costs twice as much and memory that grows with the log. Inside
a user, late listens lie where they became visible: they are put in order a batch at a time.

Shape suffixes: E rows of a batch.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import schema
from feature_repo.stores.asof_log import (
    EVENT_ID,
    LISTENED_US,
    SOURCE_COLUMNS,
    USER,
    VISIBLE_US,
    integers,
)
from feature_repo.stores.asof_sources import Source, explained

BATCH_ROWS = 1 << 18
"""12 MB of six columns: what one step holds, and small enough for a processor's cache."""

Batch = dict[str, np.ndarray]
"""Our name of a log's column -> its values (E,) int64."""


def sorted_by_user(source: Source) -> bool:
    """Whether every file's rows rise by user, no user lies in two files, and types are a log's.

    Reads one column. False too for files that cannot be read: who reads them says what is wrong.
    """
    users: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    try:
        for path in source.files():
            with pq.ParquetFile(path, filesystem=source.filesystem) as file:
                if not _is_log(file.schema_arrow):
                    return False
                of_file = [_run_starts(batch, source) for batch in _user_columns(file)]
            # A user goes on over the edge of two batches, but not over that of two files.
            rising = np.concatenate([users[0], *of_file])
            if (rising[1:] < rising[:-1]).any():
                return False
            users.append(rising[np.append(True, rising[1:] != rising[:-1])[: len(rising)]])
    except (pa.ArrowException, OSError):
        return False
    every = np.sort(np.concatenate(users))
    return not (every[1:] == every[:-1]).any()


def _user_columns(file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    return file.iter_batches(BATCH_ROWS, columns=[schema.USER_ID], use_threads=False)


def _run_starts(batch: pa.RecordBatch, source: Source) -> np.ndarray:
    """The user of each run of rows of one user."""
    user_E = integers(batch.column(0), source, USER)
    return user_E[np.append(True, user_E[1:] != user_E[:-1])[: len(user_E)]]


def _is_log(columns: pa.Schema) -> bool:
    """Whether the log's columns are there with types that need no conversion."""
    for wanted in schema.EVENT_LOG:
        kind = columns.field(wanted.name).type if wanted.name in columns.names else None
        if pa.types.is_timestamp(wanted.type):
            if kind is None or not pa.types.is_timestamp(kind) or kind.unit != wanted.type.unit:
                return False
        elif kind != wanted.type:
            return False
    return True


def user_batches(
    source: Source, names: list[str], low_us: int | None, high_us: int | None
) -> Iterator[Batch]:
    """Rows with low_us <= visible <= high_us of whole users, sorted by (user, listened, event id).

    `source` must be `sorted_by_user`. Memory: some batches, and the rows of one user.
    """
    read = list(dict.fromkeys([USER, LISTENED_US, EVENT_ID, VISIBLE_US, *names]))
    for columns in whole_users(_batches(source, read, low_us, high_us)):
        yield _in_order(columns)


def whole_users(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same rows, sorted by user, cut so that no user is in two batches."""
    held: Batch = {}
    for columns in batches:
        user_E = columns[USER]
        if len(user_E) == 0:
            continue
        start = 0
        if held and user_E[0] == held[USER][-1]:
            # Only the rest of the held user is copied, not the batch.
            start = int(np.searchsorted(user_E, user_E[0], side="right"))
            held = {n: np.concatenate([values, columns[n][:start]]) for n, values in held.items()}
            if start == len(user_E):
                continue
        if held:
            yield held
        cut = int(np.searchsorted(user_E, user_E[-1]))
        if cut > start:
            yield {name: values[start:cut] for name, values in columns.items()}
        held = {name: values[cut:] for name, values in columns.items()}
    if held:
        yield held


def _batches(
    source: Source, names: list[str], low_us: int | None, high_us: int | None
) -> Iterator[Batch]:
    wanted = [SOURCE_COLUMNS[name] for name in names]
    with explained([source]):
        for path in source.files():
            try:
                with pq.ParquetFile(path, filesystem=source.filesystem) as file:
                    for batch in file.iter_batches(BATCH_ROWS, columns=wanted, use_threads=False):
                        yield _within(_columns(batch, names, source), low_us, high_us)
            except OSError as error:  # how Arrow spells a page that cannot be unpacked
                raise source.blame() or error from error


def _columns(batch: pa.RecordBatch, names: list[str], source: Source) -> Batch:
    return {
        name: integers(batch.column(SOURCE_COLUMNS[name]).view(pa.int64()), source, name)
        for name in names
    }


def _within(columns: Batch, low_us: int | None, high_us: int | None) -> Batch:
    visible_E = columns[VISIBLE_US]
    inside_E = np.ones(len(visible_E), dtype=bool)
    if low_us is not None:
        inside_E &= visible_E >= low_us
    if high_us is not None:
        inside_E &= visible_E <= high_us
    if inside_E.all():
        return columns
    return {name: values[inside_E] for name, values in columns.items()}


def _in_order(columns: Batch) -> Batch:
    """Sorted by (user, listened, event id): of users with a row out of order, all rows."""
    user_E, listened_E, event_E = columns[USER], columns[LISTENED_US], columns[EVENT_ID]
    tie = listened_E[1:] == listened_E[:-1]
    falls = (listened_E[1:] < listened_E[:-1]) | (tie & (event_E[1:] < event_E[:-1]))
    falls &= user_E[1:] == user_E[:-1]
    if not falls.any():
        return columns
    rows = np.flatnonzero(np.isin(user_E, user_E[1:][falls]))
    order = rows[np.lexsort((event_E[rows], listened_E[rows], user_E[rows]))]
    sorted_columns = {}
    for name, values in columns.items():
        sorted_columns[name] = values.copy()
        sorted_columns[name][rows] = values[order]
    return sorted_columns
