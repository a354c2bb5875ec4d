"""What the ranker reads of a user, and the sample of it that is kept."""

import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from feature_repo import schema
from feature_repo.errors import InputError
from feature_repo.read_log import FOLDER, READ_AT, sampled, served_reads
from feature_repo.store_settings import ASOF, PACKED_SQLITE, STORE_SETTINGS
from feature_repo.workspace import Workspace

LISTENS = [f"{schema.USER_SEQUENCE}:{schema.SEQUENCE_TRACK_IDS}"]
COUNTS = ("user_plays_7d", "user_skips_28d")
FEATURES = [
    *LISTENS,
    f"{schema.USER_SEQUENCE}:{schema.SEQUENCE_TIMESTAMPS}",
    *(f"{schema.USER_STATS}:{name}" for name in COUNTS),
]


def listens(user: int) -> list[int]:
    return ([10 * user, user] if user <= 5 else [10 * user]) if user < 10 else []


def listened_us(user: int) -> list[int]:
    return [place + user * 10**6 for place in range(len(listens(user)))]


SEQUENCES = {
    user: {
        schema.SEQUENCE_TRACK_IDS: listens(user),
        schema.SEQUENCE_TIMESTAMPS: listened_us(user),
        schema.SEQUENCE_ACTIONS: [1] * len(listens(user)),
        schema.SEQUENCE_EVENT_IDS: [2 * user + place for place in range(len(listens(user)))],
    }
    for user in range(1, 10)
}
STATS = {
    user: {name: 100 * user + place for place, name in enumerate(schema.stats_columns("user"))}
    for user in range(3, 12)
}


@pytest.fixture
def store_of(tmp_path):
    """`store_of(type)`: a workspace and its store; users 1 to 9 listened to 10 times id, those up
    to 5 then to id, and users 3 to 11 have counts.
    """

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
        sequence = definitions.user_sequence_view(tmp_path / "features")
        stats = definitions.stats_view(tmp_path / "features", definitions.user)
        apply(store, [definitions.user, sequence, stats])
        for view, rows in ((sequence, SEQUENCES), (stats, STATS)):
            stamps = pa.array([user * 10**6 + 1 for user in rows]).cast(schema.TIMESTAMP)
            columns = {name: [row[name] for row in rows.values()] for name in rows[3]}
            table = pa.table({"user_id": list(rows), "event_timestamp": stamps, **columns})
            store.write_to_online_store(view.name, table.to_pandas())
        return workspace, store

    return make


def user_rows(workspace, store, share=0.0, features=FEATURES):
    from serving.user_rows import UserRows

    return UserRows(workspace, store, features, share)


@pytest.mark.parametrize("online", ["sqlite", PACKED_SQLITE])
def test_several_users_get_their_own_rows_in_order(store_of, online):
    asked = [7, 3, 99, 10, 1, 3]
    found = user_rows(*store_of(online)).read(asked)
    assert [row.track_ids_L.tolist() for row in found] == [listens(user) for user in asked]
    assert [row.listened_us_L.tolist() for row in found] == [listened_us(user) for user in asked]
    nothing = dict.fromkeys(COUNTS, 0)
    expected = [{name: STATS.get(user, nothing)[name] for name in COUNTS} for user in asked]
    assert [row.counts for row in found] == expected
    assert {row.track_ids_L.dtype for row in found} == {np.dtype(np.int64)}
    assert {row.listened_us_L.dtype for row in found} == {np.dtype(np.int64)}


@pytest.mark.parametrize("online", ["sqlite", PACKED_SQLITE])
def test_what_a_release_does_not_read_is_empty(store_of, online):
    row, stranger = user_rows(*store_of(online), features=LISTENS).read([4, 99])
    assert row.track_ids_L.tolist() == listens(4)
    assert row.listened_us_L.shape == stranger.track_ids_L.shape == (0,)
    assert row.counts == stranger.counts == {}


def test_the_reads_of_sampled_users_are_kept_as_they_were_served(store_of):
    workspace, store = store_of(PACKED_SQLITE)
    rows = user_rows(workspace, store, 0.5)
    before_us = time.time_ns() // 1000
    users = range(1, 31)
    for together in (users[:1], users[1:20], users[20:]):
        rows.read(together)
    rows.read_log.close()
    after_us = time.time_ns() // 1000
    (part,) = served_reads(workspace, schema.USER_SEQUENCE).glob("*.parquet")
    table = pq.read_table(part)
    kept = [user for user in users if sampled(np.array([user]), 0.5)[0]]
    assert table["user_id"].to_pylist() == kept
    assert {user for user in kept if user < 10}
    assert {user for user in kept if user > 9}
    for name, values in (
        (schema.SEQUENCE_TRACK_IDS, listens),
        (schema.SEQUENCE_TIMESTAMPS, listened_us),
    ):
        expected = [values(user) if user < 10 else None for user in kept]
        assert table[name].to_pylist() == expected
    stamps = table["event_timestamp"].cast(pa.int64()).to_pylist()
    assert stamps == [user * 10**6 + 1 if user < 10 else None for user in kept]
    read_at = table[READ_AT].cast(pa.int64()).to_pylist()
    assert read_at == sorted(read_at)
    assert before_us <= read_at[0] <= read_at[-1] <= after_us


def test_counts_are_not_among_the_kept_reads(store_of):
    workspace, store = store_of(PACKED_SQLITE)
    rows = user_rows(workspace, store, 1.0)
    assert rows.read([3])[0].counts[COUNTS[0]] > 0
    rows.read_log.close()
    (part,) = (workspace.root / FOLDER).glob("*/*.parquet")
    assert part.parent.name == schema.USER_SEQUENCE
    assert not {*pq.read_schema(part).names} & {*COUNTS}


def test_a_store_that_cannot_be_logged_is_refused(store_of):
    workspace, store = store_of("sqlite")
    with pytest.raises(InputError, match=r"SqliteOnlineStore.*PackedSqliteOnlineStore"):
        user_rows(workspace, store, 0.5)
