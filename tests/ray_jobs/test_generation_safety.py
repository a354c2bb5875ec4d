"""Kill a command at any step: what was published is whole, the next run ends as if nothing was."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.killed import COMMANDS


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
