"""Tables with a column mapping, and tables that are in the contract already."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.errors import InputError
from ray_jobs.ingest import IngestOptions, ingest


def test_demo_world_takes_contract_files_as_they_are(tmp_path, workspace, ingested):
    pq.write_table(
        pa.table(
            {
                "track_id": [4, 9],
                "title": ["Air", "Gigue"],
                "audio_uri": ["audio/4.flac", "s3://tunes/9.flac"],
                "hidden": [1, 2],
            }
        ),
        tmp_path / "tracks.parquet",
    )
    moments = pa.array([1_700_000_000_000_000] * 2, pa.timestamp("us", tz="UTC"))
    log = {"event_id": [20, 10], "user_id": [1, 1], "track_id": [9, 4], "action": ["skip", "play"]}
    events = pa.table(log).append_column("event_timestamp", moments)
    events = events.append_column("ingested_at", pa.array([moments[0], None], moments.type))
    pq.write_table(events, tmp_path / "events.parquet")
    assert ingested("demo-world", tmp_path)["rejected"] == 0
    tracks = pq.read_table(workspace.tracks)
    assert "hidden" not in tracks.column_names
    assert tracks["audio_uri"].to_pylist() == [
        str(tmp_path / "audio" / "4.flac"),
        "s3://tunes/9.flac",
    ]
    written = pq.read_table(workspace.events)
    assert written["event_id"].to_pylist() == [10, 20]
    assert written["ingested_at"].to_pylist() == [None, moments[0].as_py()]


SONGS = {"song": ["s-1", "s-2", "s-3"], "name": ["Uno", "Dos", "Tres"]}
PLAYS = """listener,song,ts,what
ana,s-1,1700000000000,
"b,o",s-2,1700000001500,thumbs_up
ana,s-3,1700000001500,next
ana,s-1,yesterday,next
ana,s-1,1700000002000,hum
"""


def table_mapping(folder: Path, **changes: Any) -> Path:
    """A parquet catalogue, a CSV log, and their mapping with `changes` to its events."""
    vectors = pa.array([[1.0, 0.0], None, [0.5, 0.5]], pa.list_(pa.float64()))
    songs = pa.table({**SONGS, "styles": ["pop|rock", "", None], "year": [1999, None, 2001]})
    (folder / "songs").mkdir(exist_ok=True)
    pq.write_table(songs.append_column("emb", vectors), folder / "songs" / "a.parquet")
    (folder / "plays.csv").write_text(PLAYS)
    mapping = {
        "tracks": {
            "path": "songs",
            "columns": {
                "track_id": "song",
                "title": "name",
                "tags": "styles",
                "released_at": "year",
                "audio_vector": "emb",
            },
        },
        "events": {
            "path": "plays.csv",
            "columns": {
                "user_id": "listener",
                "track_id": "song",
                "event_timestamp": "ts",
                "action": "what",
            },
            "timestamp_unit": "ms",
            "actions": {"thumbs_up": "favourite", "next": "skip"},
            "default_action": "play",
            **changes,
        },
    }
    path = folder / "mapping.json"
    path.write_text(json.dumps(mapping))
    return path


def test_table_reads_parquet_and_csv_by_a_mapping(tmp_path, workspace, ingested, by_title):
    mapping = table_mapping(tmp_path)
    result = ingested("table", tmp_path, mapping=mapping, max_rejected_share=0.5)
    assert result["rejected_by_reason"]["events"] == {
        "unknown_action": 1,
        "unparseable_event_timestamp": 1,
    }
    events = pq.read_table(workspace.events).to_pandas()
    assert events["action"].tolist()[0] == "play"
    assert set(events["action"]) == {"play", "favourite", "skip"}
    assert events["event_timestamp"].iloc[-1] == pd.Timestamp("2023-11-14T22:13:21.5Z")
    tracks = by_title()
    assert (tracks["Uno"]["tags"], tracks["Dos"]["tags"], tracks["Tres"]["tags"]) == (
        ["pop", "rock"],
        [],
        None,
    )
    assert tracks["Uno"]["released_at"].year == 1999
    assert tracks["Dos"]["released_at"] is None
    assert tracks["Tres"]["audio_vector"] == [0.5, 0.5]
    users = pq.read_table(workspace.id_maps / "users.parquet")["source_id"].to_pylist()
    assert users == ["ana", "b,o"]


def test_a_log_in_parquet_may_have_numbers_or_timestamps(tmp_path, workspace, ingested):
    moment = 1_700_000_000.25
    columns = {"user_id": "u", "track_id": "song", "event_timestamp": "at"}
    for at in (
        pa.array([moment]),
        pa.array([int(moment * 1000)]).cast(pa.timestamp("ms")),
        pa.array([str(moment)]),
    ):
        mapping = table_mapping(
            tmp_path, path="log.parquet", columns=columns, timestamp_unit="s", default_action="play"
        )
        pq.write_table(pa.table({"u": [5], "song": ["s-2"], "at": at}), tmp_path / "log.parquet")
        assert ingested("table", tmp_path, mapping=mapping)["rejected"] == 0
        event = pq.read_table(workspace.events).to_pylist()[0]
        assert (event["user_id"], event["event_timestamp"].timestamp()) == (5, moment)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timestamp_unit": "sec"}, r"events\.timestamp_unit: .*'s', 'ms', 'us' or 'iso'.*'sec'"),
        ({"actions": {"next": "hop"}}, r"events\.actions\.next: .*'favourite'.*'hop'"),
        ({"columns": {"user_id": "listener"}}, r"lacks \['track_id', 'event_timestamp'\]"),
        ({"columns": {"usr": "listener"}}, r"\['usr'\] are not contract columns; those are"),
        ({"colums": {}}, r"events\.colums: Extra inputs"),
        (
            {
                "columns": {"user_id": "u", "track_id": "song", "event_timestamp": "ts"},
                "default_action": None,
            },
            r"needs columns\.action or default_action",
        ),
        (
            {"columns": {"user_id": "user", "track_id": "song", "event_timestamp": "ts"}},
            r"plays\.csv lacks the columns user; found listener, song, ts, what",
        ),
        ({"path": "heard.csv"}, r"heard\.csv does not exist; expected .* listener, song, ts, what"),
    ],
)
def test_a_wrong_mapping_says_what_is_wrong(tmp_path, workspace, changes, message):
    mapping = table_mapping(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        ingest(workspace, IngestOptions(source="table", path=tmp_path, mapping=mapping))
    assert not workspace.tracks.exists()
