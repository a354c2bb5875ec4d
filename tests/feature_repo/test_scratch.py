"""Scratch folders end with their run; a live one is never touched."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from feature_repo.errors import InputError
from feature_repo.scratch import only_writer, scratch_folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def other_run(tmp_path):
    """`other_run(code)`: a process that runs `code`, says so, and waits to be killed."""
    started = []

    def start(code):
        script = f"""
            from pathlib import Path
            from feature_repo.scratch import only_writer, scratch_folder
            folder = Path({str(tmp_path)!r})
            with {code} as made:
                if made: (made / "half-written").write_text("data")
                print("ready", flush=True)
                input()
        """
        run = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(run)
        assert run.stdout.readline() == "ready\n"
        return run

    yield start
    for run in started:
        run.kill()
        run.communicate()


def test_a_folder_goes_with_its_run_unless_it_is_renamed(tmp_path):
    with scratch_folder(tmp_path / "deep", ".fit-") as made:
        (made / "data").write_text("x")
        assert made.stat().st_mode & 0o777 == 0o755
    assert names(tmp_path / "deep") == []
    with scratch_folder(tmp_path / "deep", ".fit-") as made:
        (made / "data").write_text("x")
        os.rename(made, tmp_path / "deep" / "kept")
    assert names(tmp_path / "deep") == ["kept"]
    with pytest.raises(RuntimeError), scratch_folder(tmp_path / "deep", ".fit-"):
        raise RuntimeError
    assert names(tmp_path / "deep") == ["kept"]


def test_a_killed_run_is_swept_and_a_live_one_is_not(tmp_path, other_run):
    live = other_run("scratch_folder(folder, '.fit-')")
    dead = other_run("scratch_folder(folder, '.fit-')")
    (tmp_path / ".fit-file").write_text("no folder, not ours")
    (tmp_path / ".fitting").mkdir()
    assert len(names(tmp_path)) == 4
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    with scratch_folder(tmp_path, ".fit-") as made:
        left = set(names(tmp_path)) - {".fit-file", ".fitting", made.name}
        assert len(left) == 1
        assert (tmp_path / left.pop() / "half-written").read_text() == "data"
    live.communicate("end\n")
    assert live.returncode == 0
    assert names(tmp_path) == [".fit-file", ".fitting"]


def test_two_writers_of_one_folder_are_refused(tmp_path, other_run):
    (tmp_path / "thing").mkdir()
    run = other_run("only_writer(folder / 'thing')")
    with (
        pytest.raises(InputError, match=r"another run is writing .*thing; wait until it ends"),
        only_writer(tmp_path / "thing"),
    ):
        pass
    run.send_signal(signal.SIGKILL)
    run.wait()
    with (
        only_writer(tmp_path / "thing"),
        pytest.raises(InputError),
        only_writer(tmp_path / "thing"),
    ):
        pass
