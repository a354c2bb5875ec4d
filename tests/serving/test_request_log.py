"""Log lines: JSON with the request's id, all of what went wrong, a share of what went well."""

import io
import json
import logging

import pytest
import structlog

from feature_repo.errors import InputError
from serving.request_limits import request_id
from serving.request_log import RequestLog, RequestLogOptions, json_logs


@pytest.fixture
def stream():
    """Where the log goes; logging is as before afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    held = io.StringIO()
    json_logs(held)
    yield held
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def answered(log, **changes):
    facts = {"release_id": "release-1", "candidates": 500, "total_s": 0.0042}
    log.answered("rank", **{**facts, **changes})


def test_a_line_holds_what_is_known_and_nothing_of_the_user(stream):
    token = request_id.set("abc-1")
    answered(RequestLog(RequestLogOptions(share=1)))
    request_id.reset(token)
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "answered",
        "level": "info",
        "request_id": "abc-1",
        "route": "rank",
        "release_id": "release-1",
        "candidates": 500,
        "total_ms": 4.2,
    }


def test_of_full_answers_a_share_is_logged_and_of_others_all(stream):
    log = RequestLog(RequestLogOptions(share=0, most_per_s=1000))
    for _ in range(50):
        answered(log)
    assert lines(stream) == []
    answered(log, degraded=["user_stale", "popularity"])
    log.rejected("recommend", "queue_full")
    log.refused("access", "this server wants a bearer token")
    degraded, rejected, refused = lines(stream)
    assert (degraded["level"], degraded["reasons"]) == ("warning", ["user_stale", "popularity"])
    assert (rejected["event"], rejected["reason"]) == ("rejected", "queue_full")
    assert (refused["event"], refused["reason"]) == ("refused", "access")
    assert refused["said"] == "this server wants a bearer token"


def test_the_share_is_kept(stream):
    log = RequestLog(RequestLogOptions(share=0.2, most_per_s=10_000))
    for _ in range(2000):
        answered(log)
    assert 280 < len(lines(stream)) < 520  # 400 expected, 6.7 standard deviations of 18


def test_under_overload_lines_are_bounded_and_the_rest_counted(stream, monkeypatch):
    now = 100.0
    monkeypatch.setattr("serving.request_log.time.monotonic", lambda: now)
    log = RequestLog(RequestLogOptions(most_per_s=3))
    for _ in range(10):
        log.rejected("rank", "deadline")
    assert len(lines(stream)) == 3
    now = 101.0
    log.rejected("rank", "deadline")
    log.rejected("rank", "deadline")
    *_, first, second = lines(stream)
    assert first["left_out"] == 7
    assert "left_out" not in second


def test_other_loggers_lines_are_json_with_the_id_as_well(stream):
    token = request_id.set("abc-2")
    try:
        raise OSError("no answer")
    except OSError:
        logging.getLogger("serving.user_reader").exception("rows of %d users", 3)
    request_id.reset(token)
    logging.getLogger("feast.registry").info("started")
    failed, started = lines(stream)
    assert (failed["event"], failed["level"]) == ("rows of 3 users", "error")
    assert (failed["request_id"], failed["logger"]) == ("abc-2", "serving.user_reader")
    assert "OSError: no answer" in failed["exception"]
    assert (started["event"], started.get("request_id")) == ("started", None)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"share": 1.1}, "share is 1.1"),
        ({"share": -0.1}, "share is -0.1"),
        ({"share": float("nan")}, "share is nan"),
        ({"most_per_s": 0}, "most_per_s is 0"),
    ],
)
def test_bad_options_are_refused(options, reason):
    with pytest.raises(InputError, match=reason):
        RequestLogOptions(**options)
