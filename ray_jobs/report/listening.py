"""The listening log as events per period and action.

The period is a day, a week or a month: the finest that leaves few enough bars to tell apart, and
a month where the log knows no finer time.
"""

from dataclasses import dataclass
from datetime import datetime

import duckdb

from feature_repo import schema
from feature_repo.workspace import Workspace
from ray_jobs.arrow_sql import literal

MOST_DAYS = 120
MOST_WEEKS = 210


@dataclass(frozen=True, kw_only=True)
class Listening:
    period: str
    """day, week or month."""
    first: datetime
    last: datetime
    events: dict[str, dict[str, int]]
    """Per action, events of each period, by the period's first day as ISO text."""
    totals: dict[str, int]
    """Events of each action; the contract's actions first, in its order."""


def read_listening(workspace: Workspace) -> Listening | None:
    """None for a log without events."""
    if not workspace.events.exists():
        return None
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        files = literal(f"{workspace.events}/*.parquet")
        connection.execute(f"CREATE VIEW events AS FROM read_parquet({files})")
        time = schema.EVENT_TIMESTAMP
        first, last, month_grain = connection.sql(
            f"SELECT min({time}), max({time}), bool_and({time} = date_trunc('month', {time})) "
            "FROM events"
        ).fetchall()[0]
        if first is None:
            return None
        period = "month" if month_grain else _period((last - first).days + 1)
        rows = connection.sql(
            f"SELECT action, strftime(date_trunc('{period}', {time}), '%Y-%m-%d') AS start, "
            "count(*) FROM events GROUP BY ALL ORDER BY start"
        ).fetchall()
    found: dict[str, dict[str, int]] = {action: {} for action in schema.ACTIONS}
    for action, start, count in rows:
        found.setdefault(action, {})[start] = count
    events = {action: counts for action, counts in found.items() if counts}
    return Listening(
        period=period,
        first=first,
        last=last,
        events=events,
        totals={action: sum(counts.values()) for action, counts in events.items()},
    )


def _period(days: int) -> str:
    if days <= MOST_DAYS:
        return "day"
    return "week" if days <= 7 * MOST_WEEKS else "month"
