"""A study to be killed: two models with two seeds on the world of `study_world.py`.

RAY_ADDRESS=... python -m tests.ray_jobs.killed_study WORKSPACE PARALLEL
"""

import sys
from dataclasses import replace
from pathlib import Path

from feature_repo.workspace import Workspace
from ray_jobs.study import StudyOptions, study
from ray_jobs.train import TrainOptions

OPTIONS = StudyOptions(
    models=("din", "din_sid"),
    seeds=2,
    train=TrainOptions(
        epochs=8,
        patience=8,
        batch_size=16,
        embedding_width=8,
        tower_hidden=(16,),
        checkpoint_every_s=0.1,
    ),
)


def options(parallel: int) -> StudyOptions:
    """One run at a time is trained by the driver itself."""
    train = replace(OPTIONS.train, workers=min(parallel - 1, 1))
    return replace(OPTIONS, parallel=parallel, train=train)


if __name__ == "__main__":
    study(Workspace(Path(sys.argv[1])), options(int(sys.argv[2])))
