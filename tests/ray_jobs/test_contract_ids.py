"""Ids: integers stay, strings keep their numbers, event ids do not follow the order of rows."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.errors import ArtifactError
from feature_repo.workspace import Workspace
from tests.ray_jobs.source_rows import events, tracks, write


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


@pytest.mark.parametrize(
    ("source_ids", "kept"),
    [
        (["1", "2", "3"], True),
        ([1.0, 2.0, 3.0], True),
        (["9223372036854775807", "-5", "0"], True),
        (["9223372036854775808", "1", "2"], False),
        (["01", "2", "3"], False),
        (["björk", "坂本", "3"], False),
    ],
)
def test_ids_that_spell_integers_stay_as_they_are(workspace, source_ids, kept):
    catalogue = tracks(3).set_column(0, "track_id", pa.array(source_ids))
    log = events(3).set_column(2, "track_id", pa.array(source_ids))
    assert write(workspace, catalogue, log)["rejected"] == 0
    ids = set(pq.read_table(workspace.tracks)["track_id"].to_pylist())
    assert ids == set(pq.read_table(workspace.events)["track_id"].to_pylist())
    assert ids == ({int(value) for value in source_ids} if kept else {1, 2, 3})
    assert (workspace.id_maps / "tracks.parquet").exists() is not kept


def test_an_event_names_its_track_as_text_where_the_catalogue_has_integers(workspace):
    log = events(3).set_column(2, "track_id", pa.array(["1", "x", "3"]))
    result = write(workspace, tracks(), log)
    assert result["rejected_by_reason"]["events"] == {"unknown_track": 1}
    assert sorted(pq.read_table(workspace.events)["track_id"].to_pylist()) == [1, 3]


def id_map(workspace: Workspace, name: str) -> dict[str, int]:
    table = pq.read_table(workspace.id_maps / f"{name}.parquet")
    return dict(zip(table["source_id"].to_pylist(), table["id"].to_pylist(), strict=True))


def test_string_ids_keep_their_numbers_when_the_source_grows(workspace):
    def ingest(users: list[str], source: str = "test") -> dict[str, int]:
        log = events(3).set_column(1, "user_id", pa.array(users))
        write(workspace, tracks(), log, source=source)
        return id_map(workspace, "users")

    assert ingest(["zoë", "bo", "bo"]) == {"bo": 1, "zoë": 2}
    assert ingest(["анна", "zoë", "al"]) == {"bo": 1, "zoë": 2, "al": 3, "анна": 4}
    named = pq.read_table(workspace.events)["user_id"].to_pylist()
    assert sorted(named) == [2, 3, 4]
    path = workspace.id_maps / "users.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(ArtifactError, match="users are lost"):
        ingest(["bo", "bo", "bo"])
    assert ingest(["bo", "bo", "bo"], source="another") == {"bo": 1}


@pytest.mark.parametrize("ids", ["none", "some", "text"])
def test_shuffled_rows_give_identical_tables(workspace, ids):
    rng = np.random.default_rng(0)
    log = events(200, played_ratio={3: None, 4: 0.9}).drop_columns("event_id")
    log = pa.concat_tables([log, log.slice(0, 50)])
    if ids == "some":
        known = [int(row) if row % 5 == 0 else None for row in range(len(log))]
        log = log.append_column("event_id", pa.array(known, pa.int64()))
    if ids == "text":
        log = log.append_column("event_id", pa.array([f"e{row}" for row in range(len(log))]))
    tables = []
    for order in (np.arange(len(log)), rng.permutation(len(log)), rng.permutation(len(log))):
        write(workspace, tracks(), log.take(order))
        tables.append(pq.read_table(workspace.events))
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])
    written = tables[0]["event_id"].to_pylist()
    assert len(set(written)) == len(log)
    assert written == sorted(written)
    # Within the one moment, the order says nothing about the user, by whom the rows came sorted.
    by_user = log.sort_by("user_id")
    write(workspace, tracks(), by_user)
    users = pq.read_table(workspace.events)["user_id"].to_numpy()
    assert abs(np.corrcoef(np.arange(len(users)), users)[0, 1]) < 0.2


def test_large_event_ids_are_told_apart_beside_missing_ones(workspace):
    large = {0: 2**53, 1: 2**53 + 1, 2: None}
    result = write(workspace, tracks(), events(3, event_id=large))
    assert result["rejected"] == 0
    written = pq.read_table(workspace.events)["event_id"].to_pylist()
    assert sorted(written) == [2**53, 2**53 + 1, 2**53 + 2]
