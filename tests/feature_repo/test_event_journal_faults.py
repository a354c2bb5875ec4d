"""The journal loses nothing that was answered: folds beside writers, kills, a full disk."""

import multiprocessing
import resource
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from feature_repo.event_journal import append, fold, journal_folder
from feature_repo.workspace import Workspace
from tests.event_logs import write_events
from tests.feature_repo.live_log import SOURCE_EVENTS, live, log


@pytest.fixture
def workspace(tmp_path):
    workspace = Workspace(tmp_path / "w")
    write_events(workspace, SOURCE_EVENTS)
    return workspace


def _write_many(root, writer, count):
    for n in range(count):
        append(Workspace(root), live(1000 * writer + n, user_id=writer))


def test_folds_beside_live_writers_lose_nothing(workspace):
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=_write_many, args=(workspace.root, writer, 60))
        for writer in (1, 2, 3)
    ]
    for writer in writers:
        writer.start()
    added = 0
    while any(writer.is_alive() for writer in writers):
        added += fold(workspace)
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    added += fold(workspace)
    assert added == 180
    expected = {1, 2} | {1000 * writer + n for writer in (1, 2, 3) for n in range(60)}
    assert set(log(workspace)) == expected


def test_threads_of_one_process_write_one_file(workspace):
    threads = [
        threading.Thread(target=_write_many, args=(workspace.root, writer, 10))
        for writer in range(1, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(journal_folder(workspace).glob("*.jsonl"))) == 1
    assert fold(workspace) == 80


@pytest.fixture
def run_code(workspace):
    """`run_code(code)`: a process that runs `code`, its output read by the test."""
    started = []

    def start(code):
        head = f"""
            from pathlib import Path
            from feature_repo.event_journal import append
            from feature_repo.workspace import Workspace
            from tests.feature_repo.live_log import live
            workspace = Workspace(Path({str(workspace.root)!r}))
        """
        script = textwrap.dedent(head) + textwrap.dedent(code)
        run = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, bufsize=1
        )
        started.append(run)
        return run

    yield start
    for run in started:
        run.kill()
        run.wait()
        run.stdout.close()


def test_what_was_answered_before_a_kill_is_there(workspace, run_code):
    run = run_code(
        """
        for n in range(10, 10_000):
            append(workspace, live(n))
            print(n, flush=True)
        """
    )
    answered = [int(run.stdout.readline()) for _ in range(50)]
    run.send_signal(signal.SIGKILL)
    answered += [int(line) for line in run.stdout.read().splitlines() if line]
    fold(workspace)
    found = set(log(workspace)) - {1, 2}
    assert set(answered) <= found
    assert len(found - set(answered)) <= 1


def test_a_full_disk_is_an_error_and_nothing_follows_the_torn_line(workspace, run_code):
    """The file may not grow beyond 1,000 bytes: the fifth or sixth line is cut."""
    run = run_code(
        """
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
        n, refused = 10, []
        while not refused:
            try:
                append(workspace, live(n))
            except OSError as error:
                refused.append(n)
            n += 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        append(workspace, live(n))
        print(n, refused[0])
        """
    )
    last, refused = (int(word) for word in run.communicate()[0].split())
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert len(list(journal_folder(workspace).glob("*.jsonl"))) == 2
    assert fold(workspace) == last - 10
    assert set(log(workspace)) == ({1, 2} | set(range(10, last + 1))) - {refused}


@pytest.mark.slow
def test_a_kill_before_every_step_loses_nothing(tmp_path):
    """At least one kill came between an answer and its fold, or this shows nothing."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.feature_repo.killed_journal", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    kills, behind = (int(word) for word in run.stdout.splitlines()[-1].split())
    assert kills > 30
    assert behind > 5
