"""`crescendo push`: every format, rows that are no events, the same file twice, what it answers."""

import io
import json
import sqlite3
import sys
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.errors import ArtifactError, InputError
from feature_repo.event_journal import fold, since
from feature_repo.schema import EVENTS
from feature_repo.workspace import Workspace
from ray_jobs.push import PushOptions, push
from tests.feature_repo.live_store import (
    SQLITE,
    START,
    expected_rows,
    listen,
    live_store,
    online_rows,
)

LENGTH = 5
GOOD = [listen(n, user_id=7 + n % 2) for n in range(8)] + [listen(8, action="skip")]


@pytest.fixture
def opened(tmp_path):
    return live_store(tmp_path / "w", SQLITE, LENGTH)


def plain(event):
    return {**event.model_dump(), "event_timestamp": event.event_timestamp.isoformat()}


def json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(folder, suffix):
    path = folder / f"events{suffix}"
    if suffix == ".parquet":
        rows = [event.model_dump() | {"ingested_at": START} for event in GOOD]
        pq.write_table(pa.Table.from_pylist(rows, schema=EVENTS), path)
    elif suffix == ".csv":
        names = list(plain(GOOD[0]))
        lines = [",".join(names)]
        lines += [",".join("" if v is None else str(v) for v in plain(e).values()) for e in GOOD]
        path.write_text("\n".join([*lines, ""]))
    else:
        rows = [plain(event) | {"ingested_at": "2026-01-01T00:00:00Z"} for event in GOOD]
        path.write_text(json_lines(rows) + "\n")
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_every_format_brings_the_same_rows(opened, tmp_path, suffix):
    workspace, store = opened
    options = PushOptions(path=write(tmp_path, suffix), batch=4)
    answer = push(workspace, options)
    assert {name: answer[name] for name in ("events", "accepted", "pending", "rejected")} == {
        "events": 9,
        "accepted": 9,
        "pending": 0,
        "rejected": 0,
    }
    assert 0 < answer["visible_after_ms"]["p50"] <= answer["visible_after_ms"]["p95"]
    expected = expected_rows(GOOD, LENGTH)
    assert online_rows(store, [7, 8]) == expected
    assert push(workspace, options)["accepted"] == 9
    assert online_rows(store, [7, 8]) == expected
    assert fold(workspace) == 9
    arrived = since(workspace, START)["ingested_at"].to_pylist()
    assert min(arrived) > START + timedelta(days=1)  # the journal's moment, not the file's


def test_rows_that_are_no_events_are_counted_with_their_reasons(opened, monkeypatch):
    workspace, store = opened
    rows = [
        plain(GOOD[0]),
        plain(GOOD[1]) | {"event_timestamp": "2026-01-01T00:00:00"},
        plain(GOOD[2]) | {"user_id": "nobody"},
        plain(GOOD[3]) | {"event_timestamp": "2199-01-01T00:00:00Z"},
        plain(GOOD[4]) | {"loudness": 3},
    ]
    text = json_lines(rows) + "not json\n[1, 2]\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    answer = push(workspace, PushOptions())
    assert (answer["events"], answer["accepted"], answer["rejected"]) == (7, 1, 6)
    assert sum(answer["rejected_by_reason"].values()) == 6
    reasons = {example["row"]: example["reason"] for example in answer["rejected_examples"]}
    assert set(reasons) <= {2, 3, 4, 5, 6, 7}
    assert len(reasons) == 5
    found = " ".join(answer["rejected_by_reason"])
    for reason in ("timezone", "user_id: Input", "in_the_future", "loudness: Extra", "JSON"):
        assert reason in found
    assert online_rows(store, [7, 8]) == expected_rows(GOOD[:1], LENGTH)


def test_a_cell_too_many_is_a_reason(opened, tmp_path):
    path = write(tmp_path, ".csv")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2] + ",more"]))
    answer = push(opened[0], PushOptions(path=path))
    assert (answer["accepted"], answer["rejected"]) == (1, 1)


def test_listens_older_than_the_window_count_as_seen(opened, tmp_path):
    workspace, _ = opened
    path = tmp_path / "late.jsonl"
    for rows in (GOOD[:8:2], [listen(100 + n) for n in range(5)], [listen(50)]):
        path.write_text(json_lines(plain(event) for event in rows))
        answer = push(workspace, PushOptions(path=path))
        assert answer["visible_after_ms"]["p95"] < 5000


def test_what_is_pending_comes_with_the_next_push(tmp_path):
    """Another connection holds SQLite's write lock during the first push."""
    workspace, store = live_store(tmp_path / "w", {**SQLITE, "timeout_s": 0.05}, LENGTH)
    path = write(tmp_path, ".jsonl")
    other = sqlite3.connect(workspace.root / "online.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    answer = push(workspace, PushOptions(path=path))
    assert (answer["accepted"], answer["pending"], answer["behind"]) == (0, 9, True)
    assert online_rows(store, [7, 8]) == {}
    other.execute("COMMIT")
    other.close()
    path.write_text("")
    answer = push(workspace, PushOptions(path=path))
    assert (answer["events"], answer["behind"]) == (0, False)
    assert online_rows(store, [7, 8]) == expected_rows(GOOD, LENGTH)


def test_skips_alone_have_no_time_to_be_seen(opened, tmp_path):
    path = tmp_path / "skips.jsonl"
    path.write_text(json_lines([plain(listen(1, action="skip"))]))
    assert push(opened[0], PushOptions(path=path))["visible_after_ms"] == {"p50": None, "p95": None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"path": "events.txt"}, r"path is events\.txt; expected a file \.jsonl"),
        ({"path": "gone.csv"}, r"path gone\.csv is no file; correct --path"),
    ],
)
def test_wrong_options(options, message, tmp_path):
    if "path" in options:
        options = {"path": Path(options["path"])}
    with pytest.raises(InputError, match=message):
        PushOptions(**options)


def test_a_workspace_that_was_never_published_names_the_command(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json_lines([plain(GOOD[0])]))
    with pytest.raises((ArtifactError, InputError), match="crescendo publish"):
        push(Workspace(tmp_path / "w"), PushOptions(path=path))
