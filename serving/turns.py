"""One after the other, with a look at the sockets in between.

    async with turns:
        ...                      # milliseconds of work, no await

A loop that runs every ready request to its end reads no socket meanwhile: what comes then waits
unseen, is counted nowhere, and is answered late. Between two turns the loop takes in what came, so
that it can be refused in time. Costs two rounds of the loop, some 50 us.

The time from the end of a turn to the end of the next, where somebody waited, is what a request
costs this process in all: `serving.pressure` goes by it.
"""

import asyncio
import time
from collections import deque


class Turns:
    """First come, first served. For one event loop."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_taken = False
        self._ended_s = 0.0
        self._is_awaited = False
        """Whether somebody waited when the last turn ended."""
        self.after_s: float | None = None
        """From the end of the turn before the last to its end; None: nobody waited in between."""

    async def __aenter__(self) -> None:
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        if not self._is_taken:
            self._is_taken = True
            loop.call_soon(self._next)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was this one's turn already
                loop.call_soon(self._next)
            raise

    async def __aexit__(self, *_: object) -> None:
        now = time.perf_counter()
        self.after_s = now - self._ended_s if self._is_awaited else None
        self._ended_s, self._is_awaited = now, bool(self._waiting)
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else its client is gone
                turn.set_result(None)
                return
        self._is_taken = False
