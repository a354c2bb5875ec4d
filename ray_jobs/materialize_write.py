"""Rows from the offline store into the online store: reading and writing at the same time.

A thread reads the next table while this one is packed and sent; at most `TABLES_AHEAD` wait between
them, so memory does not grow with the range. A write that fails because the store is away is done
again with growing waits: writes are idempotent, so it does not matter how much of it had arrived.
"""

import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa
import tenacity

from feature_repo.errors import StoreUnavailableError
from ray_jobs.progress import log

TABLES_AHEAD = 2
RETRY_FOR_S = 60.0
"""How long a store may be away within one write: a restart of Redis takes seconds."""
LONGEST_WAIT_S = 5.0


def write_all(tables: Iterable[pa.Table], write: Callable[[pa.Table], int], view: str) -> int:
    """Hands every table to `write`, in order; returns the sum of what it returned.

    Raises what reading or writing raised: StoreUnavailableError where the store stayed away.
    """
    rows = 0
    for table in _read_ahead(tables):
        rows += _patiently(write, table, view)
    return rows


def gathered(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of at least `rows`, but the last: a write of few costs as much."""
    held: list[pa.Table] = []
    for table in tables:
        if table.num_rows:
            held.append(table)
        if sum(part.num_rows for part in held) >= rows:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _read_ahead(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same tables, read by a thread that stays a few ahead."""
    ready: queue.Queue[pa.Table | BaseException | None] = queue.Queue(TABLES_AHEAD)
    gone = threading.Event()

    def put(item: pa.Table | BaseException | None) -> bool:
        while not gone.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def read() -> None:
        try:
            for table in tables:
                if not put(table):
                    return
            put(None)
        except BaseException as error:  # raised again where the tables are used
            put(error)

    reader = threading.Thread(target=read, name="materialize-reader", daemon=True)
    reader.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        gone.set()
        reader.join()


def _patiently(write: Callable[[pa.Table], int], table: pa.Table, view: str) -> int:
    attempts = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_comes_back),
        wait=tenacity.wait_exponential_jitter(initial=0.1, max=LONGEST_WAIT_S),
        stop=tenacity.stop_after_delay(RETRY_FOR_S),
        before_sleep=lambda state: log.warning(
            f"materialize {view}: the online store is away, trying again",
            attempt=state.attempt_number,
            error=str(state.outcome.exception() if state.outcome else ""),
        ),
        reraise=True,
    )
    try:
        return attempts(write, table)
    except StoreUnavailableError as error:
        raise StoreUnavailableError(
            f"view {view}: {error}; the watermark has not moved: mend the store, then run "
            "`crescendo materialize` again"
        ) from error


def _comes_back(error: BaseException) -> bool:
    """Whether waiting helps: a lost connection or a lock, not a full disk."""
    if not isinstance(error, StoreUnavailableError):
        return False
    return not isinstance(error.__cause__, sqlite3.Error) or "locked" in str(error)
