"""Whom `forget` means, and that late deliveries do not bring anybody back."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from feature_repo.errors import InputError
from feature_repo.tombstones import forget_events, read_tombstones
from feature_repo.workspace import Workspace
from ray_jobs.contract_ids import known_ids, numbered
from ray_jobs.forget import ForgetOptions, forget
from ray_jobs.forget_deliveries import without_forgotten
from ray_jobs.forget_ids import resolve_user
from tests.ray_jobs.forget_checks import (
    ADA,
)
from tests.ray_jobs.forget_world import (
    all_events,
    ingest,
    source_events,
)


def test_tombstones_hide_late_deliveries_and_name_nobody(ada_forgotten):
    world, log = ada_forgotten.after, all_events(ada_forgotten.before)
    stones = read_tombstones(world)
    ids = np.array([event["event_id"] for event in log])
    users = np.array([event["user_id"] for event in log])
    us = np.array([int(event["event_timestamp"].timestamp() * 1e6) for event in log])
    assert (stones.hidden(users, ids, us) == (users == ADA)).all()
    # The same person may come back, as somebody new.
    assert not stones.hidden(np.array([ADA]), np.array([1]), np.array([2**60])).any()
    assert stones.covers("ada")
    assert stones.covers(ADA)
    assert not stones.covers("1")
    for path in (world.root / "forgotten").iterdir():
        if path.is_file():
            assert b"ada" not in path.read_bytes()
            assert hashlib.blake2b(b"int:1", digest_size=16).digest() not in path.read_bytes()
    assert (world.root / "forgotten" / "key").stat().st_mode & 0o777 == 0o600


def test_the_number_is_given_to_nobody_else(world):
    forget(world, ForgetOptions(user="dora"))  # the largest number
    forget(world, ForgetOptions(user="bob"))
    ids, _ = numbered(
        pa.chunked_array([["ada", "eve", "cleo"]]), known_ids(world, "table")["users"]
    )
    assert ids.to_pylist() == [1, 5, 3]


def test_again_finds_nothing_and_unknown_users_are_refused(ada_forgotten):
    world = ada_forgotten.after
    again = forget(world, ForgetOptions(user="ada"))
    assert again["rows"] == 0
    assert again["already_forgotten"]
    assert forget(world, ForgetOptions(user="id:1"))["rows"] == 0
    with pytest.raises(InputError, match=r"user is 'nobody'.*an id of the source in"):
        forget(world, ForgetOptions(user="nobody"))


def test_a_name_that_is_also_another_users_number_is_refused(tmp_path):
    workspace = Workspace(tmp_path)
    events = source_events(20)
    names = ["2" if name == "ada" else name for name in events["user_id"].to_pylist()]
    ingest(workspace, events.set_column(1, "user_id", pa.array(names)))
    assert resolve_user(workspace, "id:2").source_id == "bob"
    with pytest.raises(InputError, match=r"user '2' is the source's id of number 1, and the numb"):
        forget(workspace, ForgetOptions(user="2"))
    forget(workspace, ForgetOptions(user="id:1"))
    with pytest.raises(InputError, match="user is 'bobby'"):
        forget(workspace, ForgetOptions(user="bobby"))


def test_exactly_one_of_user_and_events_is_asked_for():
    for options in ({}, {"user": "ada", "event_ids": (1,)}):
        with pytest.raises(InputError, match="either a user or events"):
            ForgetOptions(**options)


def test_an_ingest_of_the_same_source_does_not_bring_a_user_back(ada_forgotten):
    source = source_events()
    kept = without_forgotten(ada_forgotten.after, source)
    expected = [row for row in source.to_pylist() if row["user_id"] != "ada"]
    assert kept.to_pylist() == expected
    assert without_forgotten(ada_forgotten.before, source) is source
    later = pa.table(
        {
            "user_id": ["ada", "ada", "bob", None],
            "event_id": [None, 1, 2, 3],
            "event_timestamp": ["2099-01-01T00:00:00Z", "no time", None, None],
        }
    )
    assert without_forgotten(ada_forgotten.after, later)["event_id"].to_pylist() == [None, 2, 3]


def test_an_ingest_does_not_bring_single_events_back(tmp_path):
    workspace = Workspace(tmp_path)
    forget_events(workspace, [7, 9])
    source = pa.table(
        {"user_id": [1, 1, 2], "event_id": [7, 8, 9], "event_timestamp": ["2026-01-01"] * 3}
    )
    assert without_forgotten(workspace, source)["event_id"].to_pylist() == [8]
