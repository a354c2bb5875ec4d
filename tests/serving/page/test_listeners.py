"""The users of the log: found by the digits their id begins with, the last active first."""

from datetime import UTC, datetime

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.workspace import Workspace
from serving.page.listeners import Listeners
from tests.event_logs import event, write_events


def test_users_of_a_log(tmp_path):
    workspace = Workspace(tmp_path)
    log = [event(1, 12, 1, 5), event(2, 3, 1, 9), event(3, 12, 2, 7), event(4, 1, 2, 0, "skip")]
    write_events(workspace, log)
    listeners = Listeners.load(workspace)
    assert [user.user_id for user in listeners.search("", 9)] == [3, 12, 1]
    assert [user.user_id for user in listeners.search("1", 9)] == [12, 1]
    (newest,) = listeners.search("", 1)
    assert newest.last_active == datetime(2026, 1, 1, 0, 9, tzinfo=UTC)


def test_no_log_is_no_users(tmp_path):
    listeners = Listeners.load(Workspace(tmp_path))
    assert listeners.search("", 9) == listeners.search("1", 9) == []


ids = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-150, 150))


@settings(max_examples=300, deadline=None)
@given(st.sets(ids, max_size=40), st.from_regex(r"-?[0-9]{0,19}", fullmatch=True), st.data())
def test_search_is_that_of_text(users, digits, data):
    if users and data.draw(st.booleans()):  # digits that some id does begin with
        text = str(data.draw(st.sampled_from(sorted(users))))
        digits = text[: data.draw(st.integers(0, len(text)))]
    user_ids = np.array(sorted(users), dtype=np.int64)
    last_us = np.random.default_rng(0).permutation(len(users)) * 10**6
    found = Listeners(user_ids, last_us).search(digits, 1000)
    whole = "" if digits == "-" else digits
    # Leading zeros begin no id but 0's own: `007` is searched as 7 is.
    whole = str(int(whole)) if whole.strip("-") else whole
    if digits.startswith("-") and whole == "0":
        whole = "0"
    newest = user_ids[np.argsort(-last_us)].tolist()
    assert [user.user_id for user in found] == [u for u in newest if str(u).startswith(whole)]
