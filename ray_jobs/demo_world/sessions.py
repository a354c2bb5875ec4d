"""When listeners listen: how much each does in all, and the sessions that this falls into."""

import numpy as np

from ray_jobs.demo_world.catalogue import LOG_DAYS

ACTIVITY_STREAM = 5
ACTIVITY_SPREAD = 0.7
MIN_EVENTS = 5
"""Events that every listener has at least, where the total allows it."""
LATE_JOINER_SHARE = 0.3
LAST_JOIN_DAY = 100

SLOT_S = 4 * 3600
SLOTS_A_DAY = 24 * 3600 // SLOT_S
FAVOURED_SLOT_WEIGHT = 4.0
MEAN_SESSION_EVENTS = 8
BUSIEST_SLOT_SHARE = 0.4
"""At most this share of a listener's slots holds a session; sessions grow longer instead."""


def events_per_listener(listeners: int, events: int, *, seed: int) -> np.ndarray:
    """Events of each listener: log-normal activity, summing to `events` exactly."""
    random = np.random.default_rng([seed, ACTIVITY_STREAM])
    activity = random.lognormal(0, ACTIVITY_SPREAD, size=listeners)
    least = min(MIN_EVENTS, events // listeners)
    return least + random.multinomial(events - least * listeners, activity / activity.sum())


def draw_sessions(events: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Starts (seconds since the log's start, ascending) and sizes of one listener's sessions.

    The log is cut into slots of four hours; a slot holds one session at most, which starts in its
    first half, so that sessions of one listener never overlap.
    """
    late = random.random() < LATE_JOINER_SHARE
    first_slot = int(random.integers(LAST_JOIN_DAY)) * SLOTS_A_DAY if late else 0
    slots = np.arange(first_slot, LOG_DAYS * SLOTS_A_DAY)
    mean_size = max(MEAN_SESSION_EVENTS, events / (BUSIEST_SLOT_SHARE * len(slots)))
    sessions = max(1, round(events / mean_size))
    sizes = 1 + random.multinomial(events - sessions, np.full(sessions, 1 / sessions))
    weights = np.ones(SLOTS_A_DAY)
    weights[random.integers(SLOTS_A_DAY)] = FAVOURED_SLOT_WEIGHT
    odds = weights[slots % SLOTS_A_DAY]
    taken = np.sort(random.choice(slots, size=sessions, replace=False, p=odds / odds.sum()))
    return taken * SLOT_S + random.uniform(0, SLOT_S / 2, size=sessions), sizes
