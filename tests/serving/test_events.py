"""`POST /v1/events`: in the next ranking, refused as a whole or one by one, from many at once."""

import asyncio
import json
import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime

import pytest
import yaml
from fastapi import FastAPI
from fastapi.testclient import TestClient

from feature_repo import schema
from feature_repo.event_journal import fold, journal_folder
from feature_repo.live_events import LiveEvents, Receipt
from feature_repo.store import open_store
from feature_repo.workspace import Workspace
from ray_jobs.publish import publish
from serving import events as events_route
from serving.deployment import load_app
from serving.events import (
    MAX_EVENTS,
    MAX_TOGETHER,
    Together,
    events_router,
    refusing_router,
)
from serving.pressure import PressureOptions
from serving.releases import make_release
from tests.feature_repo.live_store import SQLITE, expected_rows, listen, live_store, online_rows

LENGTH = 5
PATIENT = PressureOptions(deadline_ms=60_000, read_budget_ms=30_000)
"""On a busy machine nothing is given up: a degraded answer has no scores to compare."""


@pytest.fixture
def opened(tmp_path):
    return live_store(tmp_path / "w", SQLITE, LENGTH)


@pytest.fixture
def counted():
    return Counter()


@pytest.fixture
def client(opened, counted):
    app = FastAPI()

    def count(status, events):
        counted[status] += events

    with closing(LiveEvents(*opened)) as live:
        app.include_router(events_router(live, count))
        with TestClient(app) as client:  # one event loop for all requests, as in a server
            yield client


def body(*events):
    return {"events": [json.loads(event.model_dump_json()) for event in events]}


def test_events_are_answered_one_by_one(client, opened, counted):
    events = [listen(1), listen(2, user_id=8, action="skip"), listen(3)]
    wrong = listen(4, event_timestamp=datetime(2199, 1, 1, tzinfo=UTC))
    response = client.post("/v1/events", json=body(*events, wrong))
    assert response.status_code == 200
    answer = response.json()
    assert (answer["accepted"], answer["pending"], answer["rejected"]) == (3, 0, 1)
    assert +counted == {"accepted": 3, "rejected": 1}
    assert [receipt["event_id"] for receipt in answer["events"]] == [1, 2, 3, 4]
    assert answer["events"][3] == {
        "event_id": 4,
        "status": "rejected",
        "reason": "event_timestamp_in_the_future",
    }
    assert online_rows(opened[1], [7, 8]) == expected_rows(events, LENGTH)


def test_the_same_request_twice_changes_nothing(client, opened):
    workspace, store = opened
    for _ in range(2):
        assert client.post("/v1/events", json=body(listen(1), listen(2))).json()["accepted"] == 2
    assert online_rows(store, [7]) == expected_rows([listen(1), listen(2)], LENGTH)
    assert fold(workspace) == 2


def test_many_at_once_are_all_there(client, opened):
    events = [listen(n, user_id=7 + n % 3) for n in range(120)]
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda e: client.post("/v1/events", json=body(e)), events))
    assert [answer.json()["accepted"] for answer in answers] == [1] * 120
    assert online_rows(opened[1], [7, 8, 9]) == expected_rows(events, LENGTH)
    assert fold(opened[0]) == 120


class Slow:
    """Takes a group when it is told to; an event id below 0 is an error of the journal."""

    def __init__(self):
        self.groups, self.go = [], threading.Semaphore(0)

    def take(self, events):
        self.groups.append([event.event_id for event in events])
        self.go.acquire()
        if any(event.event_id < 0 for event in events):
            raise OSError("disk")
        return [Receipt(event_id=event.event_id, status="accepted") for event in events]


def test_requests_that_come_meanwhile_go_together():
    async def run():
        slow = Slow()
        together = Together(slow)
        first = asyncio.create_task(together.take([listen(1)]))
        await asyncio.sleep(0)  # its group is under way
        rest = [asyncio.create_task(together.take([listen(n), listen(n + 1)])) for n in (2, 4, 6)]
        await asyncio.sleep(0)
        rest[1].cancel()  # a client that is gone: its events are taken all the same
        slow.go.release(2)
        receipts = await asyncio.gather(first, *rest, return_exceptions=True)
        assert slow.groups == [[1], [2, 3, 4, 5, 6, 7]]
        assert [[r.event_id for r in own] for own in (receipts[0], receipts[1], receipts[3])] == [
            [1],
            [2, 3],
            [6, 7],
        ]
        assert isinstance(receipts[2], asyncio.CancelledError)
        slow.go.release()
        assert [r.event_id for r in await together.take([listen(8)])] == [8]

    asyncio.run(run())


def test_after_a_group_the_next_one_waits_for_company(monkeypatch):
    """And who sends one request after the other does not wait: it would take hours here."""

    async def run():
        slow = Slow()
        together = Together(slow)
        slow.go.release(9)
        monkeypatch.setattr(events_route, "PACE_S", 3600.0)
        for number in (1, 2):
            await together.take([listen(number)])
        monkeypatch.setattr(events_route, "PACE_S", 0.5)
        first = asyncio.create_task(together.take([listen(3)]))
        await asyncio.sleep(0)  # its group is under way
        await asyncio.gather(first, together.take([listen(4)]), together.take([listen(5)]))
        late = [asyncio.create_task(together.take([listen(n)])) for n in (6, 7)]
        await asyncio.sleep(0)
        late.append(asyncio.create_task(together.take([listen(8)])))
        await asyncio.gather(*late)
        assert slow.groups == [[1], [2], [3], [4, 5], [6, 7, 8]]

    asyncio.run(run())


def test_an_error_reaches_the_requests_of_its_group_and_no_other():
    async def run():
        slow = Slow()
        together = Together(slow)
        slow.go.release(9)
        bad = listen(1).model_copy(update={"event_id": -1})
        first = asyncio.create_task(together.take([listen(1)]))
        await asyncio.sleep(0)
        group = [together.take([bad]), together.take([listen(2)])]
        answers = await asyncio.gather(first, *group, return_exceptions=True)
        assert [r.status for r in answers[0]] == ["accepted"]
        assert [str(error) for error in answers[1:]] == ["disk", "disk"]
        assert [r.status for r in await together.take([listen(3)])] == ["accepted"]
        assert slow.groups == [[1], [-1, 2], [3]]

    asyncio.run(run())


def test_a_group_has_an_upper_size():
    async def run():
        slow = Slow()
        together = Together(slow)
        slow.go.release(9)
        half = [listen(n) for n in range(MAX_TOGETHER // 2)]
        await asyncio.gather(*(together.take(part) for part in (half, half, half[:1], half)))
        assert [len(group) for group in slow.groups] == [MAX_TOGETHER, 1 + len(half)]

    asyncio.run(run())


@pytest.mark.parametrize(
    "sent",
    [
        {},
        {"events": []},
        {"events": [{}]},
        {**body(listen(1)), "dry_run": True},
        {"events": [body(listen(1))["events"][0] | {"mood": "good"}]},
        {"events": [body(listen(1))["events"][0] | {"event_id": "1"}]},
        {"events": [body(listen(1))["events"][0] | {"event_timestamp": "2026-01-01"}]},
        body(*[listen(n) for n in range(MAX_EVENTS + 1)]),
    ],
)
def test_a_request_of_the_wrong_form_is_refused_as_a_whole(client, opened, sent):
    good = body(listen(9))["events"] if isinstance(sent.get("events"), list) else []
    sent = {**sent, "events": good + sent["events"]} if sent.get("events") else sent
    assert client.post("/v1/events", json=sent).status_code == 422
    assert online_rows(opened[1], [7]) == {}
    assert fold(opened[0]) == 0


def test_a_journal_that_takes_nothing_is_said(client, opened, counted):
    """A file stands where the journal's folder has to be."""
    journal_folder(opened[0]).write_text("in the way")
    response = client.post("/v1/events", json=body(listen(1), listen(2)))
    assert response.status_code == 503
    assert "the event journal takes nothing" in response.json()["error"]
    assert +counted == {"refused": 2}
    journal_folder(opened[0]).unlink()
    assert client.post("/v1/events", json=body(listen(1))).json()["accepted"] == 1
    assert +counted == {"refused": 2, "accepted": 1}


def test_where_events_cannot_be_taken_the_route_says_so():
    app = FastAPI()
    app.include_router(refusing_router())
    response = TestClient(app).post("/v1/events", json=body(listen(1)))
    assert response.status_code == 503
    assert response.json() == {"error": "this server takes no live events"}
    assert response.headers["retry-after"] == "1"


def packed_copy(trained, folder):
    """A workspace of its own, published to a store that merges, with a live release."""
    workspace, result = trained
    shutil.copytree(workspace.root, folder)
    settings = yaml.safe_load((folder / "feature_store.yaml").read_text())
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(settings | {"online_store": SQLITE}))
    copy = Workspace(folder)
    publish(copy)
    make_release(copy, result["model_id"])
    return copy


def test_the_next_ranking_sees_the_event(trained, tmp_path):
    """The real application: a new user's first listen, and one more of a known user."""
    workspace = packed_copy(trained, tmp_path / "w")
    client = TestClient(load_app(workspace, pressure=PATIENT))

    def rank(user_id):
        request = {"user_id": user_id, "candidates": list(range(1, 31))}
        answer = client.post("/v1/rank", json=request).json()
        scores = {item["track_id"]: item["score"] for item in answer["results"]}
        return scores, answer["missing"]["user"]

    new_user, known_user, unknown_track = 555_001, 1, 999_999
    now = datetime.now(UTC)
    strangers, missing = rank(new_user)
    assert missing
    known, missing = rank(known_user)
    assert not missing
    events = [
        listen(2**62, user_id=new_user, track_id=2, action="complete", event_timestamp=now),
        listen(2**62 + 1, user_id=known_user, track_id=3, action="play", event_timestamp=now),
    ]
    answer = client.post("/v1/events", json=body(*events)).json()
    assert answer["accepted"] == 2, answer
    after, missing = rank(new_user)
    assert not missing
    assert after != strangers
    assert rank(known_user)[0] != known
    store = open_store(workspace)
    row = online_rows(store, [known_user])[known_user]
    assert row[schema.SEQUENCE_EVENT_IDS][-1] == 2**62 + 1
    # A track that no generation knows is kept in the row, and has no IDs.
    event = listen(2**62 + 2, user_id=known_user, track_id=unknown_track, event_timestamp=now)
    assert client.post("/v1/events", json=body(event)).json()["accepted"] == 1
    assert not rank(known_user)[1]
    row = online_rows(store, [known_user])[known_user]
    assert row[schema.SEQUENCE_TRACK_IDS][-1] == unknown_track
