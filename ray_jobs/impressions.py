"""Label rules: from listening events to impressions with a 0/1 label, split by time.

- `complete`: complete or favourite against skip; a plain play says neither and is left out.
- `favourite`: favourite against everything else that was not skipped.
- `replayed`: a user's first listen to a track, 1 if the user played it again within 28 days. First
  listens whose 28 days reach beyond their part of the log are left out: their label is not known
  there yet.
- `sampled_negatives`: a user's first listen to a track is 1; it brings one track as 0 that others
  played lately and the user had not. First listens only: a repeat would be told by the history.
"""

from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa

from feature_repo import schema
from feature_repo.errors import InputError

LABEL_RULES = ("complete", "favourite", "replayed", "sampled_negatives")
NEGATIVE_POOL = 10_000
"""A negative is drawn from the last so many listens of anybody: as popular as what is played."""
NEGATIVE_TRIES = 20
REPLAY_DAYS = 28
PARTS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class ImpressionOptions:
    label_rule: str = "complete"
    validation_share: float = 0.1
    """Share of the impressions, by time, right before the test part."""
    test_share: float = 0.1
    """Share of the impressions, by time, at the end."""
    seed: int = 0
    """Draws the sampled negatives."""

    def __post_init__(self) -> None:
        if self.label_rule not in LABEL_RULES:
            raise InputError(f"label_rule must be one of {LABEL_RULES}, got {self.label_rule!r}")
        for name in ("validation_share", "test_share"):
            if not 0 < getattr(self, name) < 0.5:
                raise InputError(f"{name} must lie between 0 and 0.5, got {getattr(self, name)}")


NOTHING_DELETED = np.zeros(0, dtype=np.int64)


def impressions(
    events: Path, options: ImpressionOptions, deleted_D: np.ndarray = NOTHING_DELETED
) -> pd.DataFrame:
    """impression_id, event_id, user_id, track_id, event_timestamp, label, part; ordered by time.

    A sampled negative carries the event_id of the listen that brought it. `deleted_D`: event ids
    that count as never having happened.
    """
    queries = {
        "complete": """SELECT event_id, user_id, track_id, event_timestamp,
            (action <> 'skip')::TINYINT AS label FROM events WHERE action <> 'play'""",
        "favourite": """SELECT event_id, user_id, track_id, event_timestamp,
            (action = 'favourite')::TINYINT AS label FROM events WHERE action <> 'skip'""",
        "replayed": f"""
            WITH listens AS (
                SELECT *, row_number() OVER w AS nth, lead(event_timestamp) OVER w AS again
                FROM events WHERE action <> 'skip'
                WINDOW w AS (PARTITION BY user_id, track_id ORDER BY event_timestamp, event_id)
            )
            SELECT event_id, user_id, track_id, event_timestamp,
                coalesce(again <= event_timestamp + INTERVAL {REPLAY_DAYS} DAYS, FALSE)::TINYINT
                AS label
            FROM listens WHERE nth = 1""",
        "sampled_negatives": """SELECT event_id, user_id, track_id, event_timestamp,
            1::TINYINT AS label FROM events WHERE action <> 'skip'
            QUALIFY row_number() OVER (PARTITION BY user_id, track_id
                ORDER BY event_timestamp, event_id) = 1""",
    }
    with duckdb.connect() as connection:
        connection.register("deleted", pa.table({"event_id": deleted_D}))
        connection.execute(
            f"CREATE VIEW events AS FROM '{events}/*.parquet' ANTI JOIN deleted USING (event_id)"
        )
        connection.execute("SET TimeZone = 'UTC'")
        query = queries[options.label_rule]
        rows = connection.sql(f"{query} ORDER BY event_timestamp, event_id").df()
        log_end = connection.sql("SELECT max(event_timestamp) AS ended FROM events").df()["ended"][
            0
        ]
    if options.label_rule == "sampled_negatives":
        rows = _with_negatives(rows, options.seed)
    if rows["label"].nunique() < 2:
        raise InputError(
            f"label rule {options.label_rule!r} gives {len(rows)} impressions of one class only; "
            f"choose another --label-rule of {', '.join(LABEL_RULES)}"
        )
    rows = rows.sort_values([schema.EVENT_TIMESTAMP, "event_id", "label"], kind="stable")
    rows = rows.reset_index(drop=True)
    rows["part"] = _parts(rows[schema.EVENT_TIMESTAMP], options)
    if options.label_rule == "replayed":
        rows = _with_known_label(rows, log_end)
    for part in PARTS:
        mine = rows.loc[rows["part"] == part, "label"]
        if mine.nunique() < 2:
            raise InputError(
                f"the {part} part has {len(mine)} impressions, not of both classes: the log "
                f"({len(rows)} impressions) is too short for label rule {options.label_rule!r}"
            )
    rows.insert(0, "impression_id", np.arange(len(rows)))
    return rows


def _with_known_label(rows: pd.DataFrame, log_end: pd.Timestamp) -> pd.DataFrame:
    """Drops first listens whose replay days were not over when their part of the log ended."""
    starts = rows.groupby("part")[schema.EVENT_TIMESTAMP].min()
    ends = {"train": starts["validation"], "validation": starts["test"], "test": log_end}
    known_at = rows[schema.EVENT_TIMESTAMP] + pd.Timedelta(days=REPLAY_DAYS)
    return rows[known_at <= rows["part"].map(ends)].reset_index(drop=True)


def _with_negatives(listens: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Adds for each first listen a track from the pool before it that the user had not played.

    A listen for which none is found in NEGATIVE_TRIES draws stays without a negative.
    """
    random = np.random.default_rng(seed)
    users, tracks = listens[schema.USER_ID].to_numpy(), listens[schema.TRACK_ID].to_numpy()
    times = listens[schema.EVENT_TIMESTAMP].to_numpy("datetime64[us]")
    # The pool ends with the listens of the same moment: a later one would be a look ahead.
    ends = np.searchsorted(times, times, side="right")
    starts = np.maximum(0, ends - NEGATIVE_POOL)
    first_listen = listens.groupby([schema.USER_ID, schema.TRACK_ID])[schema.EVENT_TIMESTAMP].min()
    negatives = np.full(len(listens), -1)
    open_rows = np.arange(len(listens))
    for _ in range(NEGATIVE_TRIES):
        drawn = random.integers(starts[open_rows], ends[open_rows])
        pairs = pd.MultiIndex.from_arrays([users[open_rows], tracks[drawn]])
        heard_at = first_listen.reindex(pairs).to_numpy("datetime64[us]")
        heard = ~np.isnat(heard_at) & (heard_at <= times[open_rows])
        negatives[open_rows[~heard]] = tracks[drawn[~heard]]
        open_rows = open_rows[heard]
    found = negatives >= 0
    sampled = listens[found].assign(label=np.int8(0), **{schema.TRACK_ID: negatives[found]})
    return pd.concat([listens, sampled], ignore_index=True)


def _parts(times: pd.Series, options: ImpressionOptions) -> np.ndarray:
    """Chronological parts, cut between moments: rows of one moment are all in one part."""
    held_out = options.validation_share + options.test_share
    validation_start = times.iloc[int(len(times) * (1 - held_out))]
    test_start = times.iloc[int(len(times) * (1 - options.test_share))]
    parts = np.select([times < validation_start, times < test_start], PARTS[:2], default=PARTS[2])
    for part in PARTS:
        if not np.any(parts == part):
            raise InputError(
                f"the log has too few distinct moments to cut a {part} part from "
                f"{len(times)} impressions between {times.iloc[0]} and {times.iloc[-1]}; "
                "check the column and the unit of event_timestamp"
            )
    return parts
