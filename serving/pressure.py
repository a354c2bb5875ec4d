"""How much work a request may cost, so that answers stay in time when too many come.

A server that takes more than it can do answers everything late. So the wait ahead of a request is
estimated from what is already taken and what rankings cost of late. As a share of the deadline:

    up to 0.25    all candidates are scored
    up to 0.4     the first 500
    up to 0.5     the first 200
    above         the request is refused at once (503, Retry-After)

(half of the deadline is left to what is not foreseen: with all of it given away, answers came 1 to
15 ms too late, every one of them)

and when, after the user was read, too little time is left for that many, as many as there is time
for, or none: then popularity orders them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

STEPS = ((0.25, None), (0.4, 500), (0.5, 200))
"""Pressure up to which so many candidates are scored."""
FEWEST_SCORED = 50
"""Fewer are not worth a pass: their order by popularity is as good."""
SMOOTHING = 0.05
REQUEST_S = 5e-4
"""What a request costs beside its candidates: HTTP, JSON, and its share of the user's read."""
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
        self._candidate_s = FIRST_GUESS_S
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
        """Whether one that comes now would be refused, for what is here already, read or not."""
        request_s = REQUEST_S + self._mean_candidates * self._candidate_s + self._mean_beside_s
        most_share, _ = STEPS[-1]
        return self._arrived * request_s > most_share * self._deadline_s

    @contextmanager
    def taken(self, candidates: int, deadline_s: float, beside_s: float = 0.0) -> Iterator[int]:
        """Takes a request in for the block: how many of its candidates may be scored.

        `beside_s`: what it costs beside them, where that is more than any request does. Raises
        Overloaded before anything was done for it.
        """
        if self.waiting >= self._max_waiting:
            raise Overloaded("queue_full", "too many requests are waiting")
        ahead_s = self.waiting * REQUEST_S + self._waiting_candidates * self._candidate_s
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
        self._candidate_s += SMOOTHING * (cost_s - self._candidate_s)
