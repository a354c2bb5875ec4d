"""A small published world whose listeners walk through the tracks in circles."""

from pathlib import Path

import numpy as np

from feature_repo.workspace import Workspace
from ray_jobs.publish import publish
from ray_jobs.sequences import SequenceOptions, sequences
from tests.embedded import clustered, write_catalogue
from tests.event_logs import event, write_events
from tests.generations import write_generation

TRACKS, UNHEARD = 24, 3
"""Tracks 1 to 24 are listened to, 25 to 27 by nobody."""
LENGTH = 8


def circle_log(users: int = 80, *, repeating: int = 0, seed: int = 0) -> list[dict]:
    """The next track is always the next number; `repeating` users end with their first track."""
    random = np.random.default_rng(seed)
    log = []
    for user in range(1, users + 1):
        first, listens = int(random.integers(TRACKS)), int(random.integers(4, LENGTH))
        tracks = [(first + step) % TRACKS + 1 for step in range(listens)]
        if user <= repeating:
            tracks[-1] = tracks[0]
        for step, track in enumerate(tracks):
            log.append(event(len(log), user, track, user + 10.0 * step))
    return log


def published_world(folder: Path, log: list[dict], *, length: int = LENGTH) -> Workspace:
    """Tables, a generation that nothing here reads, and the views."""
    workspace = Workspace(folder)
    write_catalogue(workspace, clustered(TRACKS + UNHEARD, {"audio": 4}))
    write_events(workspace, log)
    write_generation(workspace, "gen-dddddddddddd", TRACKS + UNHEARD)
    sequences(workspace, SequenceOptions(length=length))
    publish(workspace)
    return workspace
