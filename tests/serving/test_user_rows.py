"""What the ranker reads of a user, and the sample of it that is kept."""

import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from feature_repo import schema
from feature_repo.errors import InputError
from feature_repo.read_log import READ_AT, sampled, served_reads
from feature_repo.store_settings import ASOF, PACKED_SQLITE, STORE_SETTINGS
from feature_repo.workspace import Workspace

FEATURES = [f"{schema.USER_SEQUENCE}:{schema.SEQUENCE_TRACK_IDS}"]


@pytest.fixture
def store_of(tmp_path):
    """`store_of(type)`: a workspace and its store, whose users 1 to 9 listened to 10 times id."""

    def make(online):
        from feature_repo import feature_definitions as definitions
        from feature_repo.store import apply, open_store

        workspace = Workspace(tmp_path)
        settings = STORE_SETTINGS | {
            "online_store": {"type": online, "path": "online.db"},
            "offline_store": {"type": ASOF},
        }
        (tmp_path / "feature_store.yaml").write_text(yaml.safe_dump(settings))
        store = open_store(workspace, publishing=True)
        view = definitions.user_sequence_view(tmp_path / "features")
        apply(store, [definitions.user, view])
        users = np.arange(1, 10)
        lists = {
            schema.SEQUENCE_TRACK_IDS: users * 10,
            schema.SEQUENCE_TIMESTAMPS: users * 10**6,
            schema.SEQUENCE_ACTIONS: np.ones(9, dtype=int),
            schema.SEQUENCE_EVENT_IDS: users,
        }
        columns = {name: [[int(value)] for value in values] for name, values in lists.items()}
        stamps = pa.array(users * 10**6 + 1).cast(schema.TIMESTAMP)
        table = pa.table({"user_id": users, "event_timestamp": stamps, **columns})
        store.write_to_online_store(view.name, table.to_pandas())
        return workspace, store

    return make


def user_rows(workspace, store, share):
    from serving.user_rows import UserRows

    return UserRows(workspace, store, FEATURES, share)


@pytest.mark.parametrize("online", ["sqlite", PACKED_SQLITE])
def test_listens_are_track_ids_and_none_where_nothing_is_known(store_of, online):
    rows = user_rows(*store_of(online), 0.0)
    assert rows.listens(3).tolist() == [30]
    assert rows.listens(3).dtype == np.int64
    assert rows.listens(99) is None
    assert rows.read_log is None


def test_the_reads_of_sampled_users_are_kept_as_they_were_served(store_of):
    workspace, store = store_of(PACKED_SQLITE)
    rows = user_rows(workspace, store, 0.5)
    before_us = time.time_ns() // 1000
    users = range(1, 31)
    for user in users:
        rows.listens(user)
    rows.read_log.close()
    after_us = time.time_ns() // 1000
    (part,) = served_reads(workspace, schema.USER_SEQUENCE).glob("*.parquet")
    table = pq.read_table(part)
    kept = [user for user in users if sampled(np.array([user]), 0.5)[0]]
    assert table["user_id"].to_pylist() == kept
    assert {user for user in kept if user < 10}
    assert {user for user in kept if user > 9}
    expected = [[user * 10] if user < 10 else None for user in kept]
    assert table[schema.SEQUENCE_TRACK_IDS].to_pylist() == expected
    stamps = table["event_timestamp"].cast(pa.int64()).to_pylist()
    assert stamps == [user * 10**6 + 1 if user < 10 else None for user in kept]
    read_at = table[READ_AT].cast(pa.int64()).to_pylist()
    assert read_at == sorted(read_at)
    assert before_us <= read_at[0] <= read_at[-1] <= after_us


def test_a_store_that_cannot_be_logged_is_refused(store_of):
    workspace, store = store_of("sqlite")
    with pytest.raises(InputError, match=r"SqliteOnlineStore.*PackedSqliteOnlineStore"):
        user_rows(workspace, store, 0.5)
