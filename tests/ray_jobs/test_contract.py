"""The data contract: each violation has its reason, no row is lost, a failure changes nothing."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_repo.artifacts import read_manifest
from feature_repo.errors import InputError
from feature_repo.schema import EVENTS, TRACKS
from feature_repo.workspace import Workspace
from ray_jobs.contract import ROWS_PER_GROUP, SourceTables
from tests.ray_jobs.source_rows import NOON, assert_nothing_lost, events, tracks, write


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def test_good_rows_have_exactly_the_contract_schema_and_order(workspace):
    vectors = pa.array([[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0]], pa.list_(pa.float64()))
    catalogue = tracks().append_column("image_vector", vectors).take([3, 1, 0, 2])
    result = write(workspace, catalogue, events())
    assert (result["tracks"], result["events"], result["users"], result["rejected"]) == (4, 8, 3, 0)
    assert_nothing_lost(workspace, result)
    written = pq.read_table(workspace.tracks)
    assert written.schema.remove(len(TRACKS)).equals(TRACKS)
    assert written.schema.field("image_vector").type == pa.list_(pa.float32(), 2)
    assert written["track_id"].to_pylist() == [1, 2, 3, 4]
    assert written["image_vector"].to_pylist() == [[1, 2], None, [3, 4], [5, 6]]
    log = pq.read_table(workspace.events)
    assert log.schema.equals(EVENTS)
    assert log["event_id"].to_pylist() == list(range(100, 108))
    assert set(log["event_timestamp"].to_pylist()) == {NOON}
    manifest = read_manifest(workspace.tracks.parent, kind="tables", made_by="ingest")
    assert manifest.options["source"] == "test"
    assert manifest.rows == {"tracks": 4, "events": 8, "users": 3, "rejected": 0}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"track_id": {1: None}}, "null_track_id"),
        ({"track_id": {1: 3}}, "duplicate_track_id"),
        ({"title": {1: None}}, "null_title"),
        ({"title": {1: " \u3000"}}, "empty_title"),
        ({"duration_s": {1: -1.0}}, "duration_s_out_of_range"),
        ({"duration_s": {1: float("inf")}}, "duration_s_out_of_range"),
        ({"released_at": {0: "1994-02-30", 1: None}}, "unparseable_released_at"),
        ({"audio_vector": {0: [1.0, 2.0], 1: [1.0], 2: [0.0, 1.0]}}, "audio_vector_wrong_length"),
        ({"audio_vector": {0: [1.0, 2.0], 1: [float("nan"), 0.0]}}, "audio_vector_not_finite"),
        ({"audio_vector": {0: [1.0, 2.0], 1: [None, 0.0]}}, "audio_vector_not_finite"),
        ({"audio_vector": {0: [1.0, 2.0], 1: [1e300, 0.0]}}, "audio_vector_not_finite"),
        ({"malformed_row": {1: "2;;;"}}, "malformed_row"),
    ],
)
def test_each_violation_of_a_track_has_its_reason(workspace, change, reason):
    result = write(workspace, tracks(**change), events(0))
    assert result["rejected_by_reason"]["tracks"] == {reason: 1}
    assert_nothing_lost(workspace, result)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"user_id": {1: None}}, "null_user_id"),
        ({"track_id": {1: None}}, "null_track_id"),
        ({"track_id": {1: 99}}, "unknown_track"),
        ({"track_id": {1: 4}}, "rejected_track"),
        ({"event_timestamp": {1: None}}, "null_event_timestamp"),
        ({"event_timestamp": {1: "2019-13-45"}}, "unparseable_event_timestamp"),
        ({"event_timestamp": {1: "1970-01-20T00:00:00Z"}}, "event_timestamp_out_of_range"),
        ({"event_timestamp": {1: "infinity"}}, "event_timestamp_out_of_range"),
        ({"action": {1: None}}, "null_action"),
        ({"action": {1: "thumbs_up"}}, "unknown_action"),
        ({"played_ratio": {1: 1.01}}, "played_ratio_out_of_range"),
        ({"played_ratio": {1: -0.01}}, "played_ratio_out_of_range"),
        ({"played_ratio": {1: float("nan")}}, "played_ratio_out_of_range"),
        ({"event_id": {1: 100}}, "duplicate_event_id"),
        ({"malformed_row": {1: "a,b,c,d"}}, "malformed_row"),
        ({"ingested_at": {0: NOON.isoformat(), 1: "soon"}}, "unparseable_ingested_at"),
    ],
)
def test_each_violation_of_an_event_has_its_reason(workspace, change, reason):
    result = write(workspace, tracks(title={3: ""}), events(**change))
    assert result["rejected_by_reason"]["events"] == {reason: 1}
    assert_nothing_lost(workspace, result)
    rejected = pq.read_table(workspace.rejected / "events.parquet").to_pylist()[0]

    def not_json(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    row = json.loads(rejected["row"], parse_constant=not_json)
    name, values = next(iter(change.items()))
    assert rejected["reason"] == reason
    assert str(row[name]) == str(values[1])


def test_times_with_offsets_and_of_other_units_are_the_same_moment(workspace):
    texts = ["2024-03-01 12:00", "2024-03-01T14:00:00+02:00", "2024-03-01T12:00:00.000Z"]
    for column in (
        pa.array(texts),
        pa.array([NOON] * 3, pa.timestamp("ns", tz="Asia/Tokyo")),
        pa.array([NOON.replace(tzinfo=None)] * 3, pa.timestamp("ms")),
    ):
        log = events(3).set_column(3, "event_timestamp", column)
        assert write(workspace, tracks(), log)["rejected"] == 0
        assert set(pq.read_table(workspace.events)["event_timestamp"].to_pylist()) == {NOON}


def test_numbers_are_never_taken_for_times_nor_text_for_lists(workspace):
    log = events(2).set_column(3, "event_timestamp", pa.array([1, 2]))
    with pytest.raises(InputError, match="event_timestamp has type int64"):
        write(workspace, tracks(), log)
    with pytest.raises(InputError, match="audio_vector has type string"):
        write(workspace, tracks(audio_vector={0: "1 2"}), events())
    with pytest.raises(InputError, match="tags has type string"):
        write(workspace, tracks(tags={0: "a|b"}), events())
    with pytest.raises(InputError, match=r"events lack the columns \['user_id'"):
        SourceTables(tracks=tracks(), events=pa.table({"track_id": [1]}))


def test_a_file_can_be_streamed_in_pieces(workspace):
    count = ROWS_PER_GROUP + 5
    write(workspace, tracks(count), events())
    (part,) = workspace.tracks.glob("*.parquet")
    groups = pq.ParquetFile(part).metadata
    rows = [groups.row_group(n).num_rows for n in range(groups.num_row_groups)]
    assert rows == [ROWS_PER_GROUP, 5]


def test_too_many_rejected_rows_are_fatal_and_leave_the_earlier_tables(workspace):
    write(workspace, tracks(), events())
    before = snapshot(workspace)
    bad = events(action={0: "hum", 1: "hum", 2: "whistle"}, user_id={3: None})
    with pytest.raises(InputError) as error:
        write(workspace, tracks(), bad, share=0.49)
    message = str(error.value)
    assert "4 of 8 events" in message
    assert "50.0%" in message
    assert "unknown_action 3, null_user_id 1" in message
    assert '"action":"hum"' in message
    report = workspace.reports / "rejected_rows" / "events.parquet"
    assert str(report) in message
    assert pq.read_table(report)["reason"].to_pylist().count("unknown_action") == 3
    assert snapshot(workspace) == before
    assert write(workspace, tracks(), bad, share=0.5)["rejected"] == 4
    expected = frozenset({"unknown_action"})
    assert write(workspace, tracks(), bad, share=0.2, expected_rejections=expected)["rejected"] == 4
    with pytest.raises(InputError, match="null_user_id 1; for example"):
        write(workspace, tracks(), bad, share=0.19, expected_rejections=expected)


def test_a_catalogue_needs_tracks_but_no_events(workspace):
    assert write(workspace, tracks(), events(0))["events"] == 0
    assert pq.read_table(workspace.events).schema.equals(EVENTS)
    with pytest.raises(InputError, match=r"0 of 0 tracks .* none is left: there were no rows"):
        write(workspace, tracks().slice(0, 0), events(0))
    with pytest.raises(InputError, match=r"8 of 8 events .* none is left: unknown_track 8"):
        write(workspace, tracks().slice(3), events())


def snapshot(workspace: Workspace) -> dict[str, bytes]:
    tables = workspace.tracks.parent
    return {str(path): path.read_bytes() for path in tables.rglob("*") if path.is_file()}


@pytest.mark.parametrize("failing_write", [1, 2, 3, 4])
def test_a_failure_while_writing_leaves_the_earlier_tables(workspace, monkeypatch, failing_write):
    write(workspace, tracks(), events())
    before = snapshot(workspace)
    write_table, calls = pq.write_table, []

    def fails(*arguments: Any, **more: Any) -> None:
        calls.append(arguments)
        if len(calls) == failing_write:
            raise OSError("no space left on device")
        write_table(*arguments, **more)

    monkeypatch.setattr(pq, "write_table", fails)
    with pytest.raises(OSError, match="no space"):
        write(workspace, tracks(3), events(5))
    assert snapshot(workspace) == before
    assert [path.name for path in workspace.root.iterdir()] == ["tables"]


some_id = st.one_of(st.none(), st.integers(0, 6))
some_event = st.fixed_dictionaries(
    {
        "event_id": st.one_of(st.none(), st.integers(0, 20)),
        "user_id": st.one_of(st.none(), st.sampled_from(["a", "é", " ", "7"])),
        "track_id": some_id,
        "event_timestamp": st.sampled_from([None, "x", "2024-01-01", "2024-01-01T05:00+01:00"]),
        "action": st.sampled_from([None, "play", "skip", "hum"]),
        "played_ratio": st.one_of(st.none(), st.floats(-1, 2), st.just(float("nan"))),
    }
)
some_track = st.fixed_dictionaries(
    {"track_id": some_id, "title": st.sampled_from([None, "", "Tune", "歌"])}
)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(some_track, min_size=1), st.lists(some_event), st.randoms(use_true_random=False))
def test_rows_in_are_rows_out_and_rows_rejected(workspace, track_rows, event_rows, random):
    schema = pa.schema(
        [
            ("event_id", pa.int64()),
            ("user_id", pa.string()),
            ("track_id", pa.int64()),
            ("event_timestamp", pa.string()),
            ("action", pa.string()),
            ("played_ratio", pa.float64()),
        ]
    )
    catalogue = pa.Table.from_pylist(
        track_rows, schema=pa.schema([("track_id", pa.int64()), ("title", pa.string())])
    )
    try:
        result = write(workspace, catalogue, pa.Table.from_pylist(event_rows, schema=schema))
    except InputError:  # no track was left, or none of the events
        good = [row for row in track_rows if row["track_id"] is not None and row["title"]]
        assert event_rows or not good
        return
    assert_nothing_lost(workspace, result)
    log = pq.read_table(workspace.events)
    assert len(set(log["event_id"].to_pylist())) == len(log)
    assert set(log["track_id"].to_pylist()) <= set(
        pq.read_table(workspace.tracks)["track_id"].to_pylist()
    )
    random.shuffle(event_rows)
    write(workspace, catalogue, pa.Table.from_pylist(event_rows, schema=schema))
    assert pq.read_table(workspace.events).equals(log)
