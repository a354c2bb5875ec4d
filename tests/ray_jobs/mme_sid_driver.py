"""One `train_mme_sid` in a process of its own, which a test can kill.

    python -m tests.ray_jobs.mme_sid_driver WORKSPACE BASE WORKERS

The last line is what training answered, as JSON.
"""

import json
import sys
from pathlib import Path

from feature_repo.workspace import Workspace
from ray_jobs.mme_sid import train_mme_sid
from tests.ray_jobs.mme_sid_world import small

if __name__ == "__main__":
    options = small(Path(sys.argv[2]), epochs=40, batch_size=4, workers=int(sys.argv[3]))
    print(json.dumps(train_mme_sid(Workspace(Path(sys.argv[1])), options)))
