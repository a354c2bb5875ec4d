"""Simulates the listening log: what is played in each session, and how each play ends.

A listener is exposed to tracks that fit one interest (the mood of the session), to tracks heard to
the end before, to popular and new ones, and to chance. Whether a play is completed is a coin with
the *true probability*: a sigmoid of taste, appeal, familiarity and the listener's own bias. No
audio is needed: the truth table of the tracks is enough.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from feature_repo import schema
from ray_jobs.demo_world.catalogue import LOG_START
from ray_jobs.demo_world.sessions import draw_sessions, events_per_listener
from ray_jobs.demo_world.tastes import (
    TRAITS,
    Taste,
    Traits,
    draw_taste,
    interest_scores,
    match,
    traits_of,
)

LISTENER_STREAM = 6
MIX_TASTE, MIX_REPLAY, MIX_POPULAR, MIX_CHANCE = 0.50, 0.12, 0.25, 0.13
TASTE_SHARPNESS = 1.2
POPULARITY_SPREAD = 0.6
NOVELTY_BOOST, NOVELTY_S = 4.0, 7 * 86_400
MEAN_PAUSE_S = 20.0

BASE_LOGIT = -0.5
MATCH_SLOPE, APPEAL_SLOPE, FAMILIAR_SLOPE, BIAS_SPREAD = 1.3, 0.4, 0.2, 0.4
FAMILIAR_AT_MOST = 3
"""Completed plays after which a track grows no more familiar."""
FAVOURITE_LOGIT, FAVOURITE_SLOPE = -2.6, 1.1
NEUTRAL_SHARE = 0.04
"""Plays that end neither way (the app was closed, say): action `play`."""
TIE_SHARE = 0.01
"""Events stamped with the very time of the one before, as a client does that sends in batches."""
LATE_SHARE, MEAN_LATENESS_S, LEAST_LATENESS_S = 0.02, 9 * 3600, 600
"""Events that reach the log hours after they happened."""

TRUTH_EVENTS = pa.schema(
    [
        pa.field("event_id", pa.int64(), nullable=False),
        pa.field("true_probability", pa.float64(), nullable=False),
    ]
)
"""Chance that the track is played to its end, given that the play is not a neutral one."""

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
"""One row an interest of a listener: the track whose traits it likes, and each trait's weight."""


@dataclass(frozen=True)
class ListeningLog:
    """Contract events, and the truth beside them."""

    events: pa.Table
    true_probabilities: pa.Table
    listeners: pa.Table


@dataclass(frozen=True)
class _Catalogue:
    """Tracks in order of release, so that those out at a time are the front of each array."""

    track_ids: np.ndarray
    released_s: np.ndarray
    durations_s: np.ndarray
    appeals: np.ndarray
    traits: Traits


def simulate(truth: pa.Table, *, listeners: int, events: int, seed: int) -> ListeningLog:
    """A log of `events` events by `listeners` listeners over the tracks of a truth table."""
    catalogue = _in_order_of_release(truth)
    counts = events_per_listener(listeners, events, seed=seed)
    sessions: list[dict[str, np.ndarray]] = []
    tastes: list[dict[str, float]] = []
    for user_id, count in enumerate(counts, start=1):
        random = np.random.default_rng([seed, LISTENER_STREAM, user_id])
        taste = draw_taste(catalogue.traits, random)
        bias = float(random.normal(0, BIAS_SPREAD))
        tastes.extend(_taste_rows(user_id, taste, bias, catalogue))
        for session in _listen(taste, bias, int(count), catalogue, random):
            size = len(session["track_id"])
            session["user_id"] = np.full(size, user_id)
            session["session_id"] = np.full(size, len(sessions) + 1)
            sessions.append(session)
    log = {name: np.concatenate([part[name] for part in sessions]) for name in sessions[0]}
    # Stable, so that events of one moment keep the order in which they were played.
    in_time = np.argsort(log["time_us"], kind="stable")
    log = {name: column[in_time] for name, column in log.items()}
    event_ids = np.arange(1, events + 1)
    return ListeningLog(
        events=_events_table(event_ids, log),
        true_probabilities=pa.table([event_ids, log["probability"]], schema=TRUTH_EVENTS),
        listeners=pa.Table.from_pylist(tastes, schema=TRUTH_LISTENERS),
    )


def _in_order_of_release(truth: pa.Table) -> _Catalogue:
    start_us = int(LOG_START.timestamp() * 1_000_000)
    truth = truth.sort_by([("released_at", "ascending"), ("track_id", "ascending")])
    released_us = truth["released_at"].cast(pa.int64()).to_numpy()
    return _Catalogue(
        track_ids=truth["track_id"].to_numpy(),
        released_s=(released_us - start_us) / 1e6,
        durations_s=truth["duration_s"].to_numpy(),
        appeals=truth["appeal"].to_numpy(),
        traits=traits_of(truth),
    )


def _listen(
    taste: Taste, bias: float, events: int, catalogue: _Catalogue, random: np.random.Generator
) -> Iterator[dict[str, np.ndarray]]:
    """The sessions of one listener, in order, as columns; what was completed is remembered."""
    scores = interest_scores(taste, catalogue.traits)
    fit = match(taste, scores)
    liking = BASE_LOGIT + bias + MATCH_SLOPE * fit + APPEAL_SLOPE * catalogue.appeals
    favouring = FAVOURITE_LOGIT + FAVOURITE_SLOPE * fit
    moods = np.exp(TASTE_SHARPNESS * scores)
    popularity = np.exp(POPULARITY_SPREAD * catalogue.appeals)
    completed = np.zeros(len(fit))
    for start_s, size in zip(*draw_sessions(events, random), strict=True):
        out = int(np.searchsorted(catalogue.released_s, start_s, side="right"))
        mood = moods[random.choice(len(moods), p=taste.strengths), :out]
        ages = start_s - catalogue.released_s[:out]
        popular = popularity[:out] * (1 + NOVELTY_BOOST * np.exp(-ages / NOVELTY_S))
        odds = MIX_TASTE * mood / mood.sum() + MIX_POPULAR * popular / popular.sum()
        odds += MIX_CHANCE / out
        heard = completed[:out].sum()
        odds += MIX_REPLAY * (completed[:out] / heard if heard else 1 / out)
        rows = random.choice(out, size=size, p=odds / odds.sum())

        familiarity = np.minimum(completed[rows], FAMILIAR_AT_MOST)
        probability = _sigmoid(liking[rows] + FAMILIAR_SLOPE * familiarity)
        action, played_ratio = _endings(probability, _sigmoid(favouring[rows]), random)
        finished = (action == "complete") | (action == "favourite")
        np.add.at(completed, rows[finished], 1)
        yield {
            "track_id": catalogue.track_ids[rows],
            "time_us": _times_us(start_s, played_ratio * catalogue.durations_s[rows], random),
            "action": action,
            "played_ratio": played_ratio,
            "late_us": _lateness_us(size, random),
            "probability": probability,
        }


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


def _endings(
    probability: np.ndarray, favour: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """How each play ended, and how much of the track was played by then."""
    size = len(probability)
    completes = random.random(size) < probability
    favourites = random.random(size) < favour
    action = np.where(completes, np.where(favourites, "favourite", "complete"), "skip")
    # The worse the track fits, the earlier it is skipped.
    skipped_at = random.beta(1.2, 4.0, size) * (0.5 + 0.5 * probability) * 0.9
    played_ratio = np.where(completes, random.uniform(0.95, 1.0, size), skipped_at)
    neutral = random.random(size) < NEUTRAL_SHARE
    action = np.where(neutral, "play", action)
    return action, np.where(neutral, random.uniform(0.3, 0.9, size), played_ratio).round(3)


def _times_us(start_s: float, listened_s: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """When each play of a session began, in microseconds since the log's start."""
    pauses = random.exponential(MEAN_PAUSE_S, size=len(listened_s))
    begun = start_s + np.concatenate(([0.0], np.cumsum(listened_s + pauses)[:-1]))
    times = (begun * 1000).round().astype(np.int64) * 1000
    for event in np.flatnonzero(random.random(len(times)) < TIE_SHARE):
        if event > 0:
            times[event] = times[event - 1]
    return times


def _lateness_us(size: int, random: np.random.Generator) -> np.ndarray:
    """Microseconds after which an event reaches the log; 0 for at once."""
    late = random.random(size) < LATE_SHARE
    seconds = LEAST_LATENESS_S + random.exponential(MEAN_LATENESS_S, size)
    return np.where(late, (seconds * 1e6).astype(np.int64), 0)


def _events_table(event_ids: np.ndarray, log: dict[str, np.ndarray]) -> pa.Table:
    start_us = int(LOG_START.timestamp() * 1_000_000)
    happened = start_us + log["time_us"]
    columns = {
        "event_id": event_ids,
        "user_id": log["user_id"],
        "track_id": log["track_id"],
        "event_timestamp": happened,
        "action": log["action"].astype(object),
        "played_ratio": log["played_ratio"],
        "session_id": log["session_id"],
        "ingested_at": pa.array(happened + log["late_us"], mask=log["late_us"] == 0),
    }
    return pa.table(
        [pa.array(columns[field.name]).cast(field.type) for field in schema.EVENTS],
        schema=schema.EVENTS,
    )


def _taste_rows(
    user_id: int, taste: Taste, bias: float, catalogue: _Catalogue
) -> Iterator[dict[str, float]]:
    for interest, (anchor, weights) in enumerate(zip(taste.anchors, taste.weights, strict=True)):
        yield {
            "user_id": user_id,
            "interest": interest,
            "strength": float(taste.strengths[interest]),
            "anchor_track_id": int(catalogue.track_ids[anchor]),
            "bias": bias,
            **{f"weight_{trait}": float(w) for trait, w in zip(TRAITS, weights, strict=True)},
        }
