"""One `train` in a process of its own, which a test can kill.

    RAY_ADDRESS=HOST:PORT python -m tests.train_driver WORKSPACE WORKERS

The last line is what training answered, as JSON.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from feature_repo.artifacts import MANIFEST
from feature_repo.workspace import Workspace
from ray_jobs.run_folder import PREFIX
from ray_jobs.train import train
from tests.trained import SMALL

OPTIONS = replace(SMALL, batch_size=24, epochs=2, checkpoint_every_s=0.0)


def start(workspace: Workspace, ray_address: str, *, workers: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.train_driver", str(workspace.root), str(workers)],
        env=os.environ | {"RAY_ADDRESS": ray_address},
        stdout=subprocess.PIPE,
        text=True,
    )


def answer(driver: subprocess.Popen[str]) -> dict[str, Any]:
    printed, _ = driver.communicate()
    assert driver.returncode == 0
    return json.loads(printed.splitlines()[-1])


def at_first_checkpoint(
    workspace: Workspace, driver: subprocess.Popen[str], then: Callable[[Path], None]
) -> None:
    """Calls `then` with the run's folder as soon as it holds a checkpoint."""
    while driver.poll() is None:
        for path in workspace.models.glob(f"{PREFIX}*/checkpoints/epoch-*/{MANIFEST}"):
            then(path.parents[2])
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"the driver ended with {driver.returncode} before a checkpoint")


def kill_rank(rank: int) -> Callable[[Path], None]:
    def kill(folder: Path) -> None:
        os.kill(worker(folder, rank)["pid"], signal.SIGKILL)

    return kill


def worker(folder: Path, rank: int) -> dict[str, Any]:
    return json.loads((folder / "workers" / f"{rank}.json").read_text())


if __name__ == "__main__":
    options = replace(OPTIONS, workers=int(sys.argv[2]))
    print(json.dumps(train(Workspace(Path(sys.argv[1])), options)))
