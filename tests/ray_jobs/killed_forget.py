"""Runs `forget` over and over, killed at another step each time, as tests/killed.py does.

    python -m tests.ray_jobs.killed_forget user|event FOLDER [KILLS]

A step is whatever changes the disk from Python, and a connection to SQLite. After each kill every
artifact has to be whole, and the same command has to end in the state of a run that was not killed.
KILLS are spread evenly over the run's steps (default: all of them); the last line says how many
kills there were, and of how many steps.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from feature_repo.workspace import Workspace
from ray_jobs.forget import ForgetOptions, forget
from tests.kill_steps import STEPS, WRITES, forked
from tests.ray_jobs.forget_checks import manifests_are_whole, online_rows
from tests.ray_jobs.forget_world import all_events, build


def command(workspace: Workspace, what: str) -> None:
    if what == "user":
        forget(workspace, ForgetOptions(user="ada"))
    else:
        forget(workspace, ForgetOptions(event_ids=(10_001, 20_000)))


def state(workspace: Workspace) -> dict:
    """All rows, the online rows and the texts; not the moments at which manifests were written."""
    found = {"online": online_rows(workspace)}
    for path in sorted(workspace.root.rglob("*")):
        name = str(path.relative_to(workspace.root))
        if path.suffix == ".parquet" and not name.startswith(("forgotten/", "journal/")):
            found[name] = pq.read_table(path).to_pylist()
        elif path.suffix in (".html", ".jsonl") and not name.startswith("journal/"):
            found[name] = path.read_text()
    order = sorted(all_events(workspace), key=lambda event: event["event_id"])
    found["events"] = order
    return found


def killed(workspace: Workspace, what: str, last_step: int, counted: Path) -> None:
    """Runs the command up to a step; a run that gets through says how many steps there are."""
    seen = 0
    root = str(workspace.root)

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        connected = event == "sqlite3.connect"
        if (opened or connected or event in STEPS) and str(arguments[0]).startswith(root):
            seen += 1
            if seen == last_step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    command(workspace, what)
    counted.write_text(str(seen))


def main(what: str, folder: Path, kills: int | None = None) -> None:
    pristine, finished = Workspace(folder / "pristine"), Workspace(folder / "finished")
    counted = folder / "steps"
    assert forked(lambda: build(pristine.root)) == 0
    shutil.copytree(pristine.root, finished.root)
    assert forked(lambda: killed(finished, what, -1, counted)) == 0
    steps = int(counted.read_text())
    chosen = np.unique(np.linspace(1, steps, kills or steps).astype(int)).tolist()
    for step in chosen:
        workspace = Workspace(folder / f"killed-{step}")
        shutil.copytree(pristine.root, workspace.root)
        status = forked(lambda w=workspace, n=step: killed(w, what, n, counted))
        assert status == signal.SIGKILL, (step, status)

        def look_and_run_again(workspace: Workspace = workspace) -> None:
            manifests_are_whole(workspace)
            command(workspace, what)
            manifests_are_whole(workspace)
            assert state(workspace) == state(finished)
            assert not list((workspace.root / "forgotten").glob("*plan.json*"))
            assert not list((workspace.root / "forgotten").glob(".plan*"))

        assert forked(look_and_run_again) == 0, f"after a kill before step {step}"
        shutil.rmtree(workspace.root)
    print(len(chosen), steps)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
