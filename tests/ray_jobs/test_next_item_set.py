"""Next-item sets: each user's listens as they were right before the last one, by plain Python."""

from datetime import timedelta

import numpy as np
import pytest

from feature_repo import schema
from feature_repo.artifacts import read_manifest
from feature_repo.errors import ArtifactError, InputError
from feature_repo.workspace import Workspace
from ray_jobs.next_item_set import NextItemOptions, next_item_set, read_next_items
from ray_jobs.sequences import SequenceOptions, sequences
from tests.event_logs import event, write_events
from tests.ray_jobs.sequence_world import TRACKS, UNHEARD, published_world

HELD = 6


def mixed_log():
    """Skips, late arrivals, repeats, listens at one moment, users of one listen."""
    random = np.random.default_rng(1)
    log = []
    for number in range(500):
        user = int(random.integers(1, 41))
        minute = float(random.integers(0, 300))  # many at one moment
        late = float(random.integers(1, 200)) if random.random() < 0.2 else None
        action = str(random.choice(schema.ACTIONS))
        log.append(event(number, user, int(random.integers(1, TRACKS + 1)), minute, action, late))
    return [*log, event(900, 77, 5, 3), event(901, 78, 5, 3, "skip")]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    log = mixed_log()
    return published_world(tmp_path_factory.mktemp("mixed"), log, length=HELD), log


def by_hand(log):
    """user -> listens before the last one that were known then, newest HELD, and the last."""
    users = {}
    listens = [one for one in log if one["action"] in schema.LISTEN_ACTIONS]
    for user in sorted({one["user_id"] for one in listens}):
        mine = [one for one in listens if one["user_id"] == user]
        mine.sort(key=lambda one: (one["event_timestamp"], one["event_id"]))
        last = mine[-1]
        known = [
            one
            for one in mine
            if max(one["event_timestamp"], one["ingested_at"] or one["event_timestamp"])
            < last["event_timestamp"]
        ]
        users[user] = [one["track_id"] for one in [*known[-HELD:], last]]
    return users


def test_sequences_end_before_the_moment_of_the_last_listen(world):
    workspace, log = world
    made = next_item_set(workspace, NextItemOptions(length=4))
    data = read_next_items(workspace.training_sets / made.id)
    expected = by_hand(log)
    assert data.user_ids_U.tolist() == list(expected)
    assert data.track_ids_I.tolist() == list(range(TRACKS + UNHEARD + 1))
    ends = np.cumsum(data.lengths_U)
    for place, (user, sequence) in enumerate(expected.items()):
        training = data.rows_P[ends[place] - data.lengths_U[place] : ends[place]].tolist()
        held_out = [row for row in (data.valid_U[place], data.test_U[place]) if row]
        assert training + held_out == sequence, user
    assert 78 not in expected  # who only skips has listened to nothing


def test_the_manifest_counts_what_is_left_out(world):
    workspace, log = world
    made = next_item_set(workspace, NextItemOptions(length=4))
    sequences_ = [one for one in by_hand(log).values() if len(one) >= 3]
    for part, cut in (("test", 1), ("valid", 2)):
        repeated = sum(one[-cut] in one[:-cut] for one in sequences_)
        assert made.info[f"repeated_{part}"] == repeated > 0
        assert made.rows[part] == len(sequences_) - repeated
    full = sum(len(one) == HELD + 1 for one in by_hand(log).values())
    assert made.info["cut_histories"] == full > 0
    assert made.rows["users"] == len(by_hand(log))
    assert made.info["history_length"] == HELD


def test_a_set_is_made_once_and_forgets_with_its_users(world):
    from ray_jobs.forget_files import rows_of
    from ray_jobs.forget_rows import Target

    workspace, _ = world
    made = next_item_set(workspace, NextItemOptions(length=4))
    assert next_item_set(workspace, NextItemOptions(length=4)).created_at == made.created_at
    assert next_item_set(workspace, NextItemOptions(length=5)).id != made.id
    users = workspace.training_sets / made.id / "users.parquet"
    assert rows_of(users, Target(user_id=77)).rows == 1
    read_manifest(users.parent, kind="next_item_set", made_by="sasrec")


def test_longer_than_the_view_names_the_command(world):
    workspace, _ = world
    with pytest.raises(InputError, match=r"run `crescendo sequences --length 50` and `crescendo p"):
        next_item_set(workspace, NextItemOptions(length=50))
    with pytest.raises(InputError, match="length must be at least 1, got 0"):
        NextItemOptions(length=0)


def test_a_grown_log_asks_for_sequences(tmp_path):
    workspace, log = published_world(tmp_path, mixed_log()), mixed_log()
    later = log[-1]["event_timestamp"] + timedelta(days=1)
    write_events(workspace, [*log, event(999, 5, 5, 0) | {"event_timestamp": later}])
    with pytest.raises(ArtifactError, match="run `crescendo sequences` and `crescendo publish`"):
        next_item_set(workspace, NextItemOptions(length=4))
    sequences(workspace, SequenceOptions(length=4))  # but not published: the view says 8 still
    assert next_item_set(workspace, NextItemOptions(length=4)).rows["users"] == 41


def test_an_empty_workspace_says_what_comes_first(tmp_path):
    with pytest.raises(InputError, match="run `crescendo ingest"):
        next_item_set(Workspace(tmp_path), NextItemOptions())
