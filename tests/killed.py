"""Runs a command of the workspace over and over, killed one step later each time.

    python -m tests.killed COMMAND FOLDER

A step is one of kill_steps.py. For n = 1, 2, ... a copy of the workspace is made, and a fork runs
the command and sends itself SIGKILL before step n. Then everything that is visible has to be
whole, what was published has to be there, and the same command has to end as if nothing had
happened. The last line says how many kills that were.
"""

import shutil
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pyarrow.parquet as pq
import torch

from feature_repo.artifacts import newest, read_manifest
from feature_repo.codebook_reader import read_codebook
from feature_repo.workspace import Workspace
from ray_jobs.assign import assign
from ray_jobs.quantize import quantize
from ray_jobs.quantize_options import QuantizeOptions
from tests.embedded import clustered, write_catalogue
from tests.kill_steps import forked, kill_before

DIMS = {"text": 5}
FITTED, ALL = 40, 55


def options(seed: int = 0) -> QuantizeOptions:
    return QuantizeOptions(modalities=("text",), levels=2, codes=6, iterations=3, seed=seed)


COMMANDS: dict[str, Callable[[Workspace], object]] = {
    "quantize": lambda workspace: quantize(workspace, options(seed=1)),
    "assign": assign,
}


def prepare(workspace: Workspace, command: str) -> None:
    write_catalogue(workspace, clustered(FITTED, DIMS))
    quantize(workspace, options())
    if command == "assign":
        write_catalogue(workspace, clustered(ALL, DIMS))


def published(workspace: Workspace) -> dict[str, list[dict[str, object]]]:
    """Every generation that is to be seen, checked, and its codebooks with it: rows by id."""
    newest(workspace.generations, kind="generation", made_by="quantize")
    found = {}
    for folder in workspace.generations.glob("gen-*"):
        manifest = read_manifest(folder, kind="generation", made_by="quantize")
        for codebook_id in manifest.parents["codebooks"].values():
            read_codebook(workspace.codebooks / codebook_id)
        table = pq.read_table(folder / "ids.parquet")
        assert manifest.rows["tracks"] == len(table)
        found[manifest.id] = table.to_pylist()
    return found


def hidden(workspace: Workspace) -> list[str]:
    folders = (workspace.codebooks, workspace.generations)
    return [str(path) for folder in folders for path in folder.glob(".*")]


def main(command: str, folder: Path) -> None:
    torch.set_num_threads(1)
    pristine = Workspace(folder / "pristine")
    run = COMMANDS[command]
    assert forked(lambda: prepare(pristine, command)) == 0
    finished = Workspace(folder / "finished")
    shutil.copytree(pristine.root, finished.root)
    assert forked(lambda: run(finished)) == 0
    before, after = published(pristine), published(finished)
    left_behind = 0
    for step in count(1):
        workspace = Workspace(folder / f"killed-{step}")
        shutil.copytree(pristine.root, workspace.root)

        def killed(workspace: Workspace = workspace, step: int = step) -> None:
            kill_before(step, workspace.root)
            run(workspace)

        status = forked(killed)
        if status == 0:
            break
        assert status == signal.SIGKILL, status
        left_behind += bool(hidden(workspace))

        def look_and_run_again(workspace: Workspace = workspace) -> None:
            seen = published(workspace)
            for generation_id, rows in before.items():
                assert seen[generation_id] in (rows, after[generation_id]), generation_id
            assert seen.keys() <= after.keys()
            run(workspace)
            assert published(workspace) == after
            assert hidden(workspace) == []

        assert forked(look_and_run_again) == 0, f"after a kill before step {step}"
        shutil.rmtree(workspace.root)
    print(step - 1, left_behind)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
