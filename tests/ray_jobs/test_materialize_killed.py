"""kill -9 before every step of a materialization: the next run ends as if it had not been."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import require_redis

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--every", "8"], id="sqlite"),
        pytest.param(["--redis", "--every", "11"], id="redis", marks=pytest.mark.redis),
    ],
)
def test_killed_at_many_steps(tmp_path, arguments):
    if "--redis" in arguments:
        require_redis()
    ended = subprocess.run(
        [sys.executable, "-m", "tests.killed_materialize", str(tmp_path), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert int(ended.stdout.splitlines()[-1]) >= 6
