"""A small published workspace with a trained model, shared by the tests that need one."""

from dataclasses import replace

import numpy as np

from feature_repo.workspace import Workspace
from ray_jobs.publish import publish
from ray_jobs.sequences import SequenceOptions, sequences
from ray_jobs.train import TrainOptions, train
from tests.event_logs import event, write_events
from tests.generations import write_generation

GENERATION = "gen-cccccccccccc"
USERS, TRACKS = 40, 60


def learnable_log(seed: int = 0, events: int = 3000) -> list[dict]:
    """Users complete the tracks of their own parity and skip the others, mostly."""
    random = np.random.default_rng(seed)
    log = []
    for number in range(events):
        user, track = int(random.integers(1, USERS + 1)), int(random.integers(1, TRACKS + 1))
        completes = random.random() < (0.9 if user % 2 == track % 2 else 0.2)
        late = float(random.integers(1, 600)) if random.random() < 0.05 else None
        minute = float(random.integers(0, 60 * 24 * 20))
        log.append(event(number, user, track, minute, "complete" if completes else "skip", late))
    return log


def published_workspace(folder) -> Workspace:
    workspace = Workspace(folder)
    write_events(workspace, learnable_log())
    write_generation(workspace, GENERATION, TRACKS)
    sequences(workspace, SequenceOptions(length=10))
    publish(workspace)
    return workspace


SMALL = TrainOptions(
    model="mcca",
    epochs=4,
    patience=4,
    batch_size=64,
    learning_rate=5e-3,
    embedding_width=16,
    workers=0,
)
"""Trained in the process that asks: a group of Ray Train workers costs more than the fit."""


def train_small(workspace: Workspace, **changes) -> dict:
    return train(workspace, replace(SMALL, **changes))
