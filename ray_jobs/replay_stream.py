"""A listening log as the stream that a service would have received: late, repeated, tied events.

E events of the log become S >= E arrivals, cut into pushes of 1 to MOST_EVENTS_PER_PUSH arrivals.
Pure numpy over a seed: the same options give the same stream.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from feature_repo import schema
from feature_repo.errors import InputError

MOST_EVENTS_PER_PUSH = 32
LATE_BY_US = (1, 3_600_000_000, 30 * 86_400_000_000)
"""A late event comes by a delay whose logarithm is evenly spread over one of the two stretches
between these: up to an hour, up to thirty days. One microsecond is as late as an hour is."""


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    late_share: float = 0.1
    """Events that reach the service after they happened."""
    duplicate_share: float = 0.1
    """Events that are sent twice, the second time later."""
    tied_share: float = 0.1
    """Events moved to the moment of the event before them of the same user."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("late_share", "duplicate_share", "tied_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected a share from 0 to 1")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; expected a number from 0")


@dataclass(frozen=True, kw_only=True)
class Push:
    """What one call of the service brings."""

    events: pa.Table
    """schema.EVENTS without `ingested_at`, in the order of arrival."""
    clock_us: int
    """The service's time when it takes them: after all of them happened, and after the clock of
    the push before."""


@dataclass(frozen=True, kw_only=True)
class Planted:
    """How many of each, over the whole stream."""

    late: int
    duplicates: int
    tied: int


def plan_stream(log: pa.Table, options: StreamOptions) -> tuple[list[Push], Planted]:
    """The pushes, in order. `log` has the columns of schema.EVENTS; its `ingested_at` is not
    used, because when an event arrives is what this plans."""
    random = np.random.default_rng(options.seed)
    log = log.drop_columns(["ingested_at"])
    log = log.sort_by([("event_timestamp", "ascending"), ("event_id", "ascending")])
    moments = log["event_timestamp"].cast(pa.int64()).to_numpy()
    tied = _tied(log["user_id"].to_numpy(), moments, options.tied_share, random)
    moments = np.where(tied >= 0, moments[tied], moments)
    place = log.schema.get_field_index("event_timestamp")
    log = log.set_column(place, "event_timestamp", pa.array(moments).cast(schema.TIMESTAMP))

    late = random.random(len(log)) < options.late_share
    arrived = moments + np.where(late, _delays(len(log), random), 0)
    again = np.flatnonzero(random.random(len(log)) < options.duplicate_share)
    rows = np.concatenate([np.arange(len(log)), again])
    arrived = np.concatenate([arrived, arrived[again] + _delays(len(again), random)])
    # Of those that arrive in one microsecond, any may be first.
    order = np.lexsort((random.random(len(rows)), arrived))
    planted = Planted(late=int(late.sum()), duplicates=len(again), tied=int((tied >= 0).sum()))
    return list(_pushes(log, rows[order], arrived[order], random)), planted


def _tied(
    users: np.ndarray, moments: np.ndarray, share: float, random: np.random.Generator
) -> np.ndarray:
    """For each event the one whose moment it takes, -1 for none: int64 of E."""
    by_user = np.lexsort((np.arange(len(users)), users))
    before = np.full(len(users), -1)
    same = users[by_user[1:]] == users[by_user[:-1]]
    before[by_user[1:][same]] = by_user[:-1][same]
    # Two events of one moment already are a tie, and nothing to plant.
    moves = (before >= 0) & (moments[before] < moments) & (random.random(len(users)) < share)
    # An event whose predecessor moves stays: it would be tied with nothing.
    return np.where(moves & ~moves[before], before, -1)


def _delays(count: int, random: np.random.Generator) -> np.ndarray:
    """Microseconds, int64."""
    bounds = np.log(np.array(LATE_BY_US, dtype=float))
    stretch = random.integers(0, len(bounds) - 1, count)
    return np.exp(random.uniform(bounds[stretch], bounds[stretch + 1])).astype(np.int64)


def _pushes(
    log: pa.Table, rows: np.ndarray, arrived: np.ndarray, random: np.random.Generator
) -> Iterator[Push]:
    start, clock_us = 0, np.iinfo(np.int64).min
    while start < len(rows):
        end = min(start + int(random.integers(1, MOST_EVENTS_PER_PUSH + 1)), len(rows))
        clock_us = max(int(arrived[end - 1]), clock_us + 1)
        yield Push(events=log.take(pa.array(rows[start:end])), clock_us=clock_us)
        start = end


def read_moments(
    pushes: list[Push], reads: int, users: np.ndarray, seed: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For each push: its place, and the moments (us, sorted) and users of the reads after it.

    Nearly half of the reads are of users whom the push touched. The first moment at which its
    events may be seen, one microsecond after the clock, and the last one before the next push,
    whose own events must not be seen at its clock, are each read by a quarter of them.
    """
    random = np.random.default_rng((seed, 1))
    counts = np.full(len(pushes), reads // len(pushes))
    counts[random.permutation(len(pushes))[: reads % len(pushes)]] += 1
    for place, push in enumerate(pushes):
        first = push.clock_us + 1
        last = pushes[place + 1].clock_us if place + 1 < len(pushes) else first + 3_600_000_000
        moments = random.integers(first, last + 1, counts[place])
        edge = random.random(counts[place])
        moments = np.where(edge < 0.25, first, np.where(edge > 0.75, last, moments))
        touched = push.events["user_id"].to_numpy()
        chosen = np.where(
            random.random(counts[place]) < 0.5,
            random.choice(touched, counts[place]),
            random.choice(users, counts[place]),
        )
        order = np.argsort(moments, kind="stable")
        yield place, moments[order], chosen[order]
