"""Keeps what a serving process holds of the catalogue up to date, in a thread of its own.

    watch = CatalogueWatch(live.rankers)
    watch.start(); ...; watch.stop()

Tracks that `crescendo assign` appended are ranked, and proposed by `/v1/recommend`, within
`poll_s` and what reading their codes and vectors takes; play counts and new releases follow too. A
look costs a few calls of `stat` and the footer of one file. What cannot be read leaves the old
state serving, is logged, and is tried again at the next look.
"""

import logging
import threading
from collections.abc import Callable, Sequence

from serving.background import give_way
from serving.ranker import ReleaseRanker

POLL_S = 10.0

logger = logging.getLogger(__name__)


class CatalogueWatch:
    """`rankers` tells which serve at the moment."""

    def __init__(
        self, rankers: Callable[[], Sequence[ReleaseRanker]], *, poll_s: float = POLL_S
    ) -> None:
        self._rankers, self._poll_s = rankers, poll_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="catalogue", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """A look that is under way is waited for."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        give_way()
        while not self._stopping.wait(self._poll_s):
            for ranker in self._rankers():
                try:
                    ranker.refresh()
                except Exception:
                    # Whatever a file or a store's driver raises: what is loaded serves on.
                    logger.exception("catalogue of %s", ranker.release.generation_id)
                del ranker  # else it would live through the wait
