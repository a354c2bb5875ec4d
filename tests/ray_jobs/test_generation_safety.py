"""Kill a command at any step: what was published is whole, the next run ends as if nothing was."""

import subprocess
import sys
from pathlib import Path

import pytest

from feature_repo.workspace import Workspace
from ray_jobs.quantize import quantize
from tests.killed import COMMANDS, options, prepare


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_kill_before_any_step_leaves_everything_whole(tmp_path, command):
    """See tests/killed.py: a fork of its own process is killed, not this one, which has threads."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.killed", command, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    kills, left_behind = map(int, ended.stdout.splitlines()[-1].split())
    # That the kills hit: most of them leave a hidden folder for the next run to clear away.
    assert kills > 15
    assert left_behind > kills / 2


def test_what_is_there_and_whole_is_not_written_again(tmp_path):
    workspace = Workspace(tmp_path)
    prepare(workspace, "quantize")

    def files() -> dict[Path, tuple[int, bytes]]:
        folders = (workspace.codebooks, workspace.generations)
        paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}

    before = files()
    quantize(workspace, options())
    assert before
    assert files() == before
