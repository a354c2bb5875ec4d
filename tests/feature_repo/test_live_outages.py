"""An outage of the online store: what is pending comes online when it answers, and not before."""

import json
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from feature_repo.behind import Behind
from feature_repo.event_journal import fold, journal_folder
from feature_repo.live_events import LiveEvents
from feature_repo.store import open_store
from tests.feature_repo.live_store import (
    SQLITE,
    START,
    expected_rows,
    listen,
    live_store,
    microseconds,
    online_rows,
    redis_settings,
    statuses,
)

LENGTH = 5


@pytest.fixture
def outage(tmp_path, request):
    """`outage(kind)`: workspace, store, begin and end of an outage of its online store."""

    def prepare(kind):
        if kind == "redis":
            server = request.getfixturevalue("restartable_redis")
            settings = redis_settings(server.connection_string)
            return *live_store(tmp_path / "w", settings, LENGTH), server.kill, server.start
        workspace, store = live_store(tmp_path / "w", {**SQLITE, "timeout_s": 0.05}, LENGTH)
        other = sqlite3.connect(workspace.root / "online.db", isolation_level=None)
        request.addfinalizer(other.close)
        begin, end = (partial(other.execute, sql) for sql in ("BEGIN IMMEDIATE", "COMMIT"))
        return workspace, store, begin, end

    return prepare


KINDS = ["sqlite", pytest.param("redis", marks=pytest.mark.redis)]


def notes(workspace):
    return list((journal_folder(workspace) / "behind").glob("*.json"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_pending_comes_online_when_the_store_answers(outage, kind):
    workspace, store, begin, end = outage(kind)
    live = LiveEvents(workspace, store)
    assert statuses(live.take([listen(1)])) == ["accepted"]
    before = datetime.now(UTC)
    begin()
    assert statuses(live.take([listen(2), listen(3, action="skip")])) == ["pending", "pending"]
    assert statuses(live.take([listen(4)])) == ["pending"]
    assert statuses(live.take([listen(5, action="skip")])) == ["accepted"]
    (note,) = notes(workspace)
    assert microseconds(before) <= json.loads(note.read_text())["since_us"]
    assert not live.online.catch_up()
    end()
    assert live.online.catch_up()
    expected = [listen(n) for n in (1, 2, 4)]
    assert online_rows(store, [7]) == expected_rows(expected, LENGTH)
    assert notes(workspace) == []
    assert statuses(live.take([listen(6)])) == ["accepted"]
    assert online_rows(store, [7]) == expected_rows([*expected, listen(6)], LENGTH)
    live.close()


def test_what_comes_while_the_rest_is_brought_online_goes_last(tmp_path):
    """The journal may have been read before it was in there."""
    behind, brought = Behind(tmp_path / "behind"), []
    first, later = START, START + timedelta(seconds=1)
    assert not behind.add_if_any([{"event_id": 0}], first)
    behind.add([{"event_id": 1}], first)

    def bring_since(moment):
        brought.append(moment)
        assert behind.add_if_any([{"event_id": 2}], later)
        return True

    def store_is_away(events):
        brought.append(list(events))
        return False

    assert not behind.end(bring_since, store_is_away)
    assert brought == [first, [{"event_id": 2}]]
    assert len(list((tmp_path / "behind").iterdir())) == 1
    assert behind.end(lambda moment: True, lambda events: events == [])
    assert list((tmp_path / "behind").iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_retries_need_no_further_event(outage, kind):
    workspace, store, begin, end = outage(kind)
    live = LiveEvents(workspace, store)
    begin()
    assert statuses(live.take([listen(1)])) == ["pending"]
    end()
    live.online._retries.join(timeout=60)
    assert online_rows(store, [7]) == expected_rows([listen(1)], LENGTH)
    assert notes(workspace) == []


def test_a_later_process_brings_what_a_killed_one_left_pending(outage):
    workspace, store, begin, end = outage("sqlite")
    script = f"""
        from pathlib import Path
        from feature_repo.live_events import LiveEvents
        from feature_repo.store import open_store
        from feature_repo.workspace import Workspace
        from tests.feature_repo.live_store import listen
        import os, signal
        workspace = Workspace(Path({str(workspace.root)!r}))
        live = LiveEvents(workspace, open_store(workspace))
        (receipt,) = live.take([listen(1)])
        assert receipt.status == "pending", receipt
        os.kill(os.getpid(), signal.SIGKILL)
    """
    lines = "\n".join(line.strip() for line in script.splitlines())
    begin()
    died = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True)
    assert died.returncode == -9, died.stderr
    assert online_rows(store, [7]) == {}
    fold(workspace)  # a nightly fold in between changes nothing
    end()
    assert len(notes(workspace)) == 1
    later = LiveEvents(workspace, open_store(workspace))
    assert later.online.catch_up()
    assert online_rows(store, [7]) == expected_rows([listen(1)], LENGTH)
    assert notes(workspace) == []
    later.close()


def test_the_note_of_a_process_that_lives_is_left_to_it(outage):
    workspace, store, begin, end = outage("sqlite")
    live = LiveEvents(workspace, store)
    begin()
    live.take([listen(1)])
    other = LiveEvents(workspace, open_store(workspace))
    assert len(notes(workspace)) == 1
    assert other.online.catch_up()  # it owes nothing
    assert len(notes(workspace)) == 1
    end()
    assert live.online.catch_up()
    other.close()
    live.close()
