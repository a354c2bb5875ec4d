"""Rows on which a stage fails become rows with a reason; the other rows of their chunk go on.

That includes rows that kill their worker (`attempts.py`). What ends a job instead: a stage that
fails on every one of several rows, as the fault is then hardly theirs, and a store of which no file
is reached.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from feature_repo.errors import InputError, StoreUnavailableError
from feature_repo.schema import TRACK_ID
from ray_jobs.encoders.attempts import KILLER, Attempts
from ray_jobs.encoders.audio_sources import UNREACHABLE
from ray_jobs.encoders.turns import Turns

T = TypeVar("T")
DEAD_STORE_ROWS = 16
"""In one chunk. A few objects that stay broken in a store that works must not stop every run."""


def prepared_rows(encoder: Any, tracks: pa.Table, attempts: Attempts | None = None) -> pa.Table:
    """What the encoder prepares; a row on which it fails is one with its error."""

    def failed(row: pa.Table, reason: str) -> pa.Table:
        return pa.table({TRACK_ID: row[TRACK_ID], "error": [reason]})

    prepare = encoder.prepare
    tables = _all_or_one_by_one(tracks, prepare, prepare, nullcontext, failed, attempts)
    # What a failed row lacks is null in it.
    prepared = pa.concat_tables(tables, promote_options="default")
    if not prepared[TRACK_ID].equals(tracks[TRACK_ID]):
        raise RuntimeError(f"encoder {encoder.encoder_id} did not prepare the rows that it got")
    return prepared


Outcomes = list[np.ndarray | str]


def outcomes_of(
    begin: Callable[[pa.Table], Callable[[], Outcomes]],
    rows: pa.Table,
    turns: Turns,
    attempts: Attempts | None = None,
) -> Outcomes:
    """What the encoder makes of each row; a row on which it fails has its error."""

    def beside(every: pa.Table) -> Outcomes:
        return turns.beside(lambda: begin(every))

    def alone(row: pa.Table) -> Outcomes:
        return begin(row)()

    def failed(_: pa.Table, reason: str) -> Outcomes:
        return [reason]

    lists = _all_or_one_by_one(rows, beside, alone, turns.alone, failed, attempts)
    return [outcome for outcomes in lists for outcome in outcomes]


def _all_or_one_by_one(
    rows: pa.Table,
    work: Callable[[pa.Table], T],
    work_alone: Callable[[pa.Table], T],
    alone: Callable[[], AbstractContextManager[None]],
    failed: Callable[[pa.Table, str], T],
    attempts: Attempts | None,
) -> list[T]:
    """`work` of all rows, or, where it fails or has ended its process, `work_alone` of each."""
    try:
        if attempts is None or not attempts.careful:
            return [work(rows)]
    except InputError:  # of what the job was given, not of a row
        raise
    except Exception as error:
        whole: Exception | None = error
    else:
        whole = None
    done: list[T] = []
    failures = 0
    with alone():
        for at in range(rows.num_rows):
            row = rows.slice(at, 1)
            if attempts is not None and at in attempts.killers:
                done.append(failed(row, KILLER))
                continue
            if attempts is not None:
                attempts.begin(at)
            try:
                done.append(work_alone(row))
            except Exception as error:
                failures += 1
                done.append(failed(row, f"{type(error).__name__}: {error}"))
    if whole is not None and 1 < failures == rows.num_rows:
        raise whole
    return done


def refuse_dead_store(errors: list[str | None]) -> None:
    """Ends the job where no file of a chunk could be reached, rather than fail the catalogue."""
    reached = [error for error in errors if not (error or "").startswith(UNREACHABLE)]
    if not reached and len(errors) >= DEAD_STORE_ROWS:
        raise StoreUnavailableError(
            f"{errors[0]}; what was embedded is kept: run the command again when the store answers"
        )
