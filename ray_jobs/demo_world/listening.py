"""Simulates the listening log: sessions, what is played in them, and how each play ends.

A listener is exposed to tracks that fit one interest (the mood of the session), to tracks heard to
the end before, to popular and new ones, and to chance. Whether a play is completed is a coin with
the *true probability*: a sigmoid of taste, appeal, familiarity and the listener's own bias. No
audio is needed: the truth table of the tracks is enough.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from feature_repo import schema
from ray_jobs.demo_world.catalogue import LOG_DAYS, LOG_START
from ray_jobs.demo_world.tastes import (
    TASTE_STREAM,
    TRAITS,
    Taste,
    Traits,
    draw_taste,
    interest_scores,
    match,
    traits_of,
)

ACTIVITY_STREAM, LISTENER_STREAM = 5, 6
ACTIVITY_SPREAD = 0.7
MIN_EVENTS = 5
"""Events that every listener has at least, where the total allows it."""
LATE_JOINER_SHARE, LAST_JOIN_DAY = 0.3, 100

SLOT_HOURS = 4
SLOTS_A_DAY = 24 // SLOT_HOURS
MEAN_SESSION_EVENTS = 8
FAVOURED_SLOT_WEIGHT = 4.0
MEAN_PAUSE_S = 20.0

MIX_TASTE, MIX_REPLAY, MIX_POPULAR, MIX_CHANCE = 0.50, 0.12, 0.25, 0.13
TASTE_SHARPNESS = 1.2
POPULARITY_SPREAD = 0.7
NOVELTY_BOOST, NOVELTY_DAYS = 4.0, 7.0

BASE_LOGIT = -0.25
MATCH_SLOPE, APPEAL_SLOPE, FAMILIAR_SLOPE, BIAS_SPREAD = 1.75, 0.4, 0.2, 0.4
FAMILIAR_AT_MOST = 3
FAVOURITE_LOGIT, FAVOURITE_SLOPE = -2.6, 1.1
NEUTRAL_SHARE, TIE_SHARE, LATE_SHARE = 0.04, 0.01, 0.02
MEAN_LATENESS_H = 9.0

TRUTH_EVENTS = pa.schema(
    [
        pa.field("event_id", pa.int64(), nullable=False),
        pa.field("true_probability", pa.float64(), nullable=False),
    ]
)
"""Chance that the play is completed, were it not a neutral `play`."""

TRUTH_LISTENERS = pa.schema(
    [
        pa.field("user_id", pa.int64(), nullable=False),
        pa.field("interest", pa.int64(), nullable=False),
        pa.field("strength", pa.float64()),
        pa.field("anchor_track_id", pa.int64()),
        pa.field("bias", pa.float64()),
        *(pa.field(f"weight_{trait}", pa.float64()) for trait in TRAITS),
    ]
)
"""One row an interest of a listener: the track it is drawn from, what it cares for."""


@dataclass(frozen=True)
class ListeningLog:
    """Contract events, and the truth beside them."""

    events: pa.Table
    true_probabilities: pa.Table
    listeners: pa.Table


def simulate(truth: pa.Table, *, listeners: int, events: int, seed: int) -> ListeningLog:
    """The log of `events` events by `listeners` listeners over the tracks of a truth table."""
    order = np.argsort(truth["released_at"].to_numpy(), kind="stable")
    catalogue = _Catalogue(truth.take(order))
    counts = _events_per_listener(listeners, events, seed)
    columns: list[dict[str, np.ndarray]] = []
    taste_rows: list[dict[str, float | int]] = []
    first_session = 0
    for user_id, count in enumerate(counts, start=1):
        random = np.random.default_rng([seed, LISTENER_STREAM, user_id])
        taste = draw_taste(catalogue.traits, np.random.default_rng([seed, TASTE_STREAM, user_id]))
        bias = float(random.normal(0, BIAS_SPREAD))
        listener = _Listener(user_id, taste, bias, catalogue, random)
        columns.append(listener.log(int(count), first_session))
        first_session = int(columns[-1]["session_id"].max()) + 1
        taste_rows.extend(listener.taste_rows())
    log = {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}
    return ListeningLog(
        *_event_tables(log), pa.Table.from_pylist(taste_rows, schema=TRUTH_LISTENERS)
    )
