"""The users of the listening log, to choose one from: ids and when each was last active.

    listeners = Listeners.load(workspace)
    listeners.search("12", 20)      # ids that begin with 12, the newest first

Reads `tables/events`; 16 bytes a user stay in memory. An online store cannot list its users, so a
user whose first event came after the log was written is found by the whole id only.

Shape suffixes: U users.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

import duckdb
import numpy as np
from pydantic import BaseModel

from feature_repo import schema
from feature_repo.artifacts import parquet_files
from feature_repo.workspace import Workspace

MEMORY = "1GB"
"""Of the scan, which runs beside rankings, on one thread."""


class Listener(BaseModel):
    user_id: int
    last_active: datetime


class Listeners:
    """Every user of the log."""

    def __init__(self, user_ids_U: np.ndarray, last_us_U: np.ndarray) -> None:
        """`user_ids_U` sorted, `last_us_U` in microseconds since 1970."""
        self._user_ids_U, self._last_us_U = user_ids_U, last_us_U

    @classmethod
    def load(cls, workspace: Workspace) -> "Listeners":
        """Scans two columns of the workspace's events."""
        files = [str(path) for path in parquet_files(workspace.events)]
        if not files:
            return cls(np.zeros(0, np.int64), np.zeros(0, np.int64))
        with duckdb.connect(config={"threads": 1, "memory_limit": MEMORY}) as connection:
            users = connection.execute(
                "SELECT user_id, epoch_us(max(event_timestamp)) AS last_us "
                "FROM read_parquet(?) GROUP BY user_id ORDER BY user_id",
                [files],
            ).fetchnumpy()
        return cls(np.asarray(users[schema.USER_ID]), np.asarray(users["last_us"]))

    def search(self, digits: str, count: int) -> list[Listener]:
        """Users whose id begins with `digits` (all users for none), the newest first."""
        places = [slice(None)] if digits in ("", "-") else list(self._places(digits))
        rows_U = np.arange(len(self._user_ids_U))
        rows = np.concatenate([rows_U[:0], *(rows_U[place] for place in places)])
        if len(rows) > count:
            rows = rows[np.argpartition(-self._last_us_U[rows], count)[:count]]
        newest = rows[np.argsort(-self._last_us_U[rows], kind="stable")]
        return [
            Listener(user_id=int(self._user_ids_U[row]), last_active=moment.replace(tzinfo=UTC))
            for row, moment in zip(
                newest, self._last_us_U[newest].astype("datetime64[us]").tolist(), strict=True
            )
        ]

    def _places(self, digits: str) -> Iterator[slice]:
        """Where the sorted ids begin with the digits: one run for each number of further digits."""
        negative, first = digits.startswith("-"), int(digits.lstrip("-"))
        largest = 2**63 if negative else 2**63 - 1
        for further in range(1 if first == 0 else 19):
            low = first * 10**further
            high = min((first + 1) * 10**further - 1, largest)
            if low > largest:
                return
            ends = (-high, -low) if negative else (low, high)
            yield slice(
                np.searchsorted(self._user_ids_U, ends[0], side="left"),
                np.searchsorted(self._user_ids_U, ends[1], side="right"),
            )
