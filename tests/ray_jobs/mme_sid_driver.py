"""One `train_mme_sid` in a process of its own, which a test can kill.

    python -m tests.ray_jobs.mme_sid_driver WORKSPACE BASE

The last line is what training answered, as JSON.
"""

import json
import sys
from pathlib import Path

from feature_repo.workspace import Workspace
from ray_jobs.mme_sid import train_mme_sid
from ray_jobs.mme_sid_options import TrainMmeSidOptions
from tests.ray_jobs.mme_sid_world import small


def options(base: Path) -> TrainMmeSidOptions:
    """Enough steps, each with a checkpoint, to be killed between."""
    return small(base, epochs=4, batch_size=4)


if __name__ == "__main__":
    print(json.dumps(train_mme_sid(Workspace(Path(sys.argv[1])), options(Path(sys.argv[2])))))
