"""A release that nobody is shown: what was ranked is scored with it too, and compared.

    scorer = ShadowScorer(ranker)
    scorer.offer(user_id, ranking)     # what the live release answered
    scorer.summary()

It never delays an answer: a thread scores after the answer is given, one ranking at a time, and
rankings that come meanwhile are counted as skipped. So under load it sees a sample.

Shape suffixes: C candidates of one ranking.
"""

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np

from serving.ranker import Ranking, ReleaseRanker

TOP = 10

logger = logging.getLogger(__name__)


class ShadowComparison:
    """How far two releases agree on the same candidates, over all rankings so far."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rankings = self._scores = self._ordered = 0
        self._difference = self._top_shared = self._tau = 0.0

    def add(self, tracks_C: np.ndarray, live_C: np.ndarray, shadow_C: np.ndarray) -> None:
        """Scores of one ranking (C at least 1), both in the order of `tracks_C`."""
        from scipy.stats import kendalltau

        difference = float(np.abs(live_C.astype(np.float64) - shadow_C).sum())
        shared = np.intersect1d(_top(tracks_C, live_C), _top(tracks_C, shadow_C))
        # tau-b; NaN where a side gives one score to all: there is no order to agree on.
        tau = float(kendalltau(live_C, shadow_C).statistic) if len(tracks_C) > 1 else np.nan
        with self._lock:
            self._rankings += 1
            self._scores += len(tracks_C)
            self._difference += difference
            self._top_shared += len(shared) / min(TOP, len(tracks_C))
            if not np.isnan(tau):
                self._ordered += 1
                self._tau += tau

    def summary(self) -> dict[str, Any]:
        """Means; None where nothing was compared yet.

        `mean_difference` is of the scores' absolute difference, `top_overlap` the share of the
        first 10 that both have there, `rank_agreement` Kendall's tau (1: the same order).
        """
        with self._lock:
            return {
                "rankings": self._rankings,
                "mean_difference": _mean(self._difference, self._scores),
                "top_overlap": _mean(self._top_shared, self._rankings),
                "rank_agreement": _mean(self._tau, self._ordered),
            }


class ShadowScorer:
    """Compares what one shadow release says with answers that were given."""

    def __init__(self, ranker: ReleaseRanker) -> None:
        import scipy.stats  # noqa: F401  # a second of work: not at the first comparison

        self.ranker = ranker
        self._comparison = ShadowComparison()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shadow")
        self._busy = False
        self._skipped = self._failed = 0

    def offer(self, user_id: int, ranking: Ranking) -> None:
        """Takes an answer for comparison, or skips it. Called on the event loop, never waits.

        The shadow reads the user's row itself, as it may read other features; a listen that came
        in between shows as a difference.
        """
        if self._busy:
            self._skipped += 1
            return
        self._busy = True
        # Not before this step of the loop ends, which is when the answer has been written.
        asyncio.get_running_loop().call_soon(self._submit, user_id, ranking)

    def summary(self) -> dict[str, Any]:
        """`ShadowComparison.summary`, and how many rankings were `skipped` and `failed`."""
        return {**self._comparison.summary(), "skipped": self._skipped, "failed": self._failed}

    def close(self) -> None:
        """Waits for the comparison that runs: afterwards its ranker is used by nobody here."""
        self._thread.shutdown()

    def _submit(self, user_id: int, ranking: Ranking) -> None:
        with suppress(RuntimeError):  # closed since it was offered
            self._thread.submit(self._compare, user_id, ranking, time.time_ns() // 1000)

    def _compare(self, user_id: int, ranking: Ranking, moment_us: int) -> None:
        try:
            scored = [score for score in ranking.scores if score is not None]
            scores_C = np.array(scored, dtype=np.float32)
            tracks_C = np.array(ranking.track_ids[: len(scored)], dtype=np.int64)
            known_C = self.ranker.items.knows(tracks_C)
            if known_C.any():
                tracks_C, scores_C = tracks_C[known_C], scores_C[known_C]
                (user,) = self.ranker.user_rows.read([user_id])
                shadow_C = self.ranker.score(user, tracks_C, moment_us)
                self._comparison.add(tracks_C, scores_C, shadow_C)
        except Exception:
            # Whatever the store's driver or the model raises: nobody waits for this answer.
            self._failed += 1
            if self._failed == 1:
                logger.exception("shadow release %s", self.ranker.release.release_id)
        finally:
            self._busy = False


def _top(tracks_C: np.ndarray, scores_C: np.ndarray) -> np.ndarray:
    """The first TOP tracks, in the order of answers: by score, ties by track id."""
    return tracks_C[np.lexsort((tracks_C, -scores_C))[:TOP]]


def _mean(total: float, count: int) -> float | None:
    return total / count if count else None
