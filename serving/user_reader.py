"""Reads users' rows without ever waiting longer for the store than a request may.

    user, asked_s = await reader.read(ranker, user_id, budget_s=0.03)   # None: no answer in time

A store that answers within INLINE_S is asked by the event loop itself: a quarter of a millisecond,
while changing threads and back costs three more, and the scoring that follows finds cold caches.
The loop cannot be held up for long: the store that it asks has short timeouts (`serving.ranker`).

Once a read was slow or failed, a thread asks, until it was quick again. Requests that come while it
waits are read together in its next round trip. While a read takes longer than the budget, new
requests are told at once that the store is away, instead of queueing behind it.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from serving.ranker import ReleaseRanker
from serving.user_rows import UserRow

INLINE_S = 0.003
MAX_TOGETHER = 64
"""Users of one round trip."""
LOG_EVERY_S = 10.0

logger = logging.getLogger(__name__)


class Read(NamedTuple):
    """What the store said of one user."""

    row: UserRow | None
    """None: it did not answer in time, or failed."""
    asked_s: float
    """Of the wait, the time that the round trip took."""


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    ranker: ReleaseRanker
    user_id: int
    read: "asyncio.Future[Read]"


class UserReader:
    """Used in one event loop only."""

    def __init__(self) -> None:
        self._waiting: deque[_Waiting] = deque()
        self._working: asyncio.Task[None] | None = None
        self._asked_at: float | None = None
        """When the thread's read under way began."""
        self._is_quick = False
        """Whether the last read was."""
        self._logged_at = -LOG_EVERY_S
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="user-rows")

    async def read(self, ranker: ReleaseRanker, user_id: int, budget_s: float) -> Read:
        """The user's row for this release, if the store gives it within `budget_s`."""
        if self._asked_at is not None and time.monotonic() - self._asked_at > budget_s:
            return Read(None, 0.0)
        if self._is_quick and self._working is None:
            return self._read_inline(ranker, user_id)
        read: asyncio.Future[Read] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(ranker=ranker, user_id=user_id, read=read))
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        try:
            async with asyncio.timeout(budget_s):
                return await read
        except TimeoutError:
            return Read(None, budget_s)

    def close(self) -> None:
        """Waits for nothing: a read under way may hang for as long as its store's timeouts."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _read_inline(self, ranker: ReleaseRanker, user_id: int) -> Read:
        began = time.monotonic()
        row: UserRow | None = None
        try:
            (row,) = ranker.user_rows.read([user_id])
        except Exception:
            self._log()
        asked_s = time.monotonic() - began
        self._is_quick = row is not None and asked_s < INLINE_S
        return Read(row, asked_s)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                group = self._next_group()
                if not group:
                    continue
                self._asked_at = time.monotonic()
                ids = [waiting.user_id for waiting in group]
                rows: Sequence[UserRow | None]
                try:
                    rows = await loop.run_in_executor(
                        self._thread, group[0].ranker.user_rows.read, ids
                    )
                except Exception:
                    # Whatever the store's driver raises: a ranking for nobody in particular is
                    # better than none, and the answer says what it is.
                    rows = [None] * len(group)
                    self._log()
                asked_s = time.monotonic() - self._asked_at
                self._is_quick = rows[0] is not None and asked_s < INLINE_S
                for waiting, row in zip(group, rows, strict=True):
                    if not waiting.read.done():
                        waiting.read.set_result(Read(row, asked_s))
        finally:
            self._asked_at = None
            self._working = None

    def _next_group(self) -> list[_Waiting]:
        """Those that still wait and read with the same release; the others stay."""
        group: list[_Waiting] = []
        while self._waiting and len(group) < MAX_TOGETHER:
            if self._waiting[0].read.done():  # its request has given up
                self._waiting.popleft()
                continue
            if group and self._waiting[0].ranker is not group[0].ranker:
                break
            group.append(self._waiting.popleft())
        return group

    def _log(self) -> None:
        now = time.monotonic()
        if now - self._logged_at >= LOG_EVERY_S:
            self._logged_at = now
            logger.exception("users' rows could not be read; rankings go on without them")
