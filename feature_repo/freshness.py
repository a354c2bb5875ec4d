"""How old a feature may be: bounds of each view, and what is past them.

Feast does not apply a TTL to online reads: a row that was written once is served for ever. The
platform checks ages itself, in the `freshness` job and wherever features are served. Everything
here is plain arithmetic on moments: no clock, no store.

Age is `now - moment` in hours, never below 0: a log may run ahead of this machine's clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType

from feature_repo import schema
from feature_repo.errors import InputError

HOUR = timedelta(hours=1)
HOUR_US = 3_600_000_000
MAX_AGE_H: Mapping[str, float | None] = MappingProxyType(
    {
        # Listens are appended as they happen, and materialized every night: a day, and some slack.
        schema.USER_SEQUENCE: 26.0,
        # Whole days are counted the night after: a day, the night, and one night that failed.
        schema.USER_STATS: 50.0,
        schema.TRACK_STATS: 50.0,
        # What a track is does not change with time.
        schema.TRACK_SEMANTIC_IDS: None,
    }
)
"""Hours since a view was brought online after which it is stale; None: never by age."""
MAX_USER_AGE_H: Mapping[str, float | None] = MappingProxyType(
    {
        # Tastes of four weeks ago are the longest window that the stats keep.
        schema.USER_SEQUENCE: 24.0 * max(schema.STATS_WINDOWS_DAYS),
        # A user's counts get a row on each day on which one changes, the last one when they all
        # have become 0: a row's own age says nothing about it.
        schema.USER_STATS: None,
    }
)
"""Hours since the last event in a user's row after which that row is stale."""


@dataclass(frozen=True, kw_only=True)
class Age:
    """The age of one thing against its bound."""

    at: datetime | None
    """Moment up to which it knows; None: it is not there."""
    age_h: float | None
    max_age_h: float | None
    stale: bool


def age(at: datetime | None, now: datetime, max_age_h: float | None) -> Age:
    """The age of what knows everything up to `at`. What is not there is stale, bound or not."""
    if now.tzinfo is None or (at is not None and at.tzinfo is None):
        raise InputError(f"at is {at!r}, now is {now!r}; wanted moments with a time zone")
    if at is None:
        return Age(at=None, age_h=None, max_age_h=max_age_h, stale=True)
    age_h = max((now - at) / HOUR, 0.0)
    return Age(
        at=at, age_h=age_h, max_age_h=max_age_h, stale=max_age_h is not None and age_h > max_age_h
    )


def bound_of(view: str, bounds: Mapping[str, float | None]) -> float | None:
    """The bound of a view; generations' views, which carry an id, share that of their kind."""
    if view in bounds:
        return bounds[view]
    kind = schema.TRACK_SEMANTIC_IDS
    return bounds.get(kind) if view.startswith(f"{kind}_") else None
