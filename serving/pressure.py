"""How much work a request may cost, so that answers stay in time when too many come.

A server that takes more than it can do answers everything late. So the wait ahead of a request is
estimated from what is already here and what rankings cost of late: scoring, a candidate, and all
else (HTTP, JSON, the user's row, refusals that came in between), a request, which is the time from
one answer to the next while others wait. As a share of the deadline:

    up to 0.4     all candidates are scored
    up to 0.6     the first 500
    up to 0.8     the first 200
    above         the request is refused (503, Retry-After)

and from 0.7 on, by the mean of the requests before, a request is refused as it arrives, unread
(`serving.shedding`): one that was read and checked first costs a tenth of an answer. When, after
the user was read, too little time is left for that many, as many are scored as there is time for,
or none: then popularity orders them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

STEPS = ((0.4, None), (0.6, 500), (0.8, 200))
"""Share of the deadline that the wait ahead may fill for so many candidates to be scored."""
REFUSED_UNREAD = 0.7
"""The same for a request that has just arrived, of which nothing is known: below the last step, so
that few are refused after they were read."""
FEWEST_SCORED = 50
"""Fewer are not worth a pass: their order by popularity is as good."""
SMOOTHING = 0.05
REQUEST_S = 2e-3
"""What a request costs beside its candidates, before it was measured."""
MOST_GROWTH = 4.0
"""One measurement counts as so many times the estimate at most: the machine may have paused."""
RETRY_AFTER_S = 1
FIRST_GUESS_S = 5e-6
"""A candidate's cost before any was measured."""


class Overloaded(Exception):
    """The request cannot be answered in time; nothing was done for it."""

    def __init__(self, counted: str, reason: str) -> None:
        """`counted`: the kind of refusal, `queue_full` or `deadline`."""
        super().__init__(reason)
        self.counted = counted


@dataclass(frozen=True, kw_only=True)
class PressureOptions:
    deadline_ms: float = 100.0
    """From a request's arrival to its answer; a client may ask for less (`X-Deadline-Ms`)."""
    read_budget_ms: float = 30.0
    """Longest wait for the user's row."""
    max_waiting: int = 256
    """Requests taken and not answered, whatever the estimate says."""

    def __post_init__(self) -> None:
        for name in ("deadline_ms", "read_budget_ms", "max_waiting"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"PressureOptions.{name} must be above 0, got {getattr(self, name)}"
                )


class Pressure:
    """Counts what is taken, and learns what a candidate costs. Used in one event loop only."""

    def __init__(self, options: PressureOptions) -> None:
        self._max_waiting = options.max_waiting
        self._deadline_s = options.deadline_ms / 1e3
        self._candidate_s, self._request_s = FIRST_GUESS_S, REQUEST_S
        self._mean_candidates = 0.0
        self._waiting_candidates = 0
        self._mean_beside_s = self._waiting_beside_s = 0.0
        self._arrived = 0
        self.waiting = 0

    @contextmanager
    def arriving(self) -> Iterator[None]:
        """A request is in this process, from its first byte to the last one of its answer."""
        self._arrived += 1
        try:
            yield
        finally:
            self._arrived -= 1

    def is_hopeless(self) -> bool:
        """Whether one that comes now is refused unread, for what is here already, read or not."""
        expected_s = self._request_s + self._mean_candidates * self._candidate_s
        ahead_s = max(self._arrived, self.waiting) * (expected_s + self._mean_beside_s)
        return ahead_s > REFUSED_UNREAD * self._deadline_s

    @contextmanager
    def taken(self, candidates: int, deadline_s: float, beside_s: float = 0.0) -> Iterator[int]:
        """Takes a request in for the block: how many of its candidates may be scored.

        `beside_s`: what it costs beside them, where that is more than any request does. Raises
        Overloaded before anything was done for it.
        """
        if self.waiting >= self._max_waiting:
            raise Overloaded("queue_full", "too many requests are waiting")
        ahead_s = self.waiting * self._request_s + self._waiting_candidates * self._candidate_s
        ahead_s += self._waiting_beside_s
        fitting = [most for share, most in STEPS if ahead_s <= share * deadline_s]
        if not fitting:
            raise Overloaded("deadline", "the requests ahead of it fill its deadline")
        scored = candidates if fitting[0] is None else min(candidates, fitting[0])
        self._mean_candidates += SMOOTHING * (scored - self._mean_candidates)
        self._mean_beside_s += SMOOTHING * (beside_s - self._mean_beside_s)
        self.waiting += 1
        self._waiting_candidates += scored
        self._waiting_beside_s += beside_s
        try:
            yield scored
        finally:
            self.waiting -= 1
            self._waiting_candidates -= scored
            self._waiting_beside_s = self._waiting_beside_s - beside_s if self.waiting else 0.0

    def affordable(self, candidates: int, left_s: float) -> int:
        """How many of so many candidates can be scored in the time that is left."""
        fitting = int(max(left_s, 0.0) / self._candidate_s)
        if fitting >= candidates:
            return candidates
        return fitting if fitting >= FEWEST_SCORED else 0

    def measured(self, candidates: int, seconds: float) -> None:
        """A pass over so many candidates took so long."""
        cost_s = seconds / max(candidates, FEWEST_SCORED)
        self._candidate_s = _nearer(self._candidate_s, cost_s)

    def answered(self, after_s: float | None, scoring_s: float) -> None:
        """A turn ended so long after the one before (`Turns.after_s`), scoring included.

        None: nobody waited, so it tells nothing of what a request costs. Then a high estimate comes
        down: it may be that nobody waits only because it refuses everybody.
        """
        if after_s is not None:
            self._request_s = _nearer(self._request_s, max(after_s - scoring_s, 0.0))
        elif self._request_s > REQUEST_S:
            self._request_s = _nearer(self._request_s, REQUEST_S)


def _nearer(estimate: float, measured: float) -> float:
    return estimate + SMOOTHING * (min(measured, MOST_GROWTH * estimate) - estimate)
