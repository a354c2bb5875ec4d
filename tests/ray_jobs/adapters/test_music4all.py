"""Music4All: a small folder generated in its layout, with what goes wrong in real ones."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from feature_repo.errors import InputError
from ray_jobs.ingest import IngestOptions, ingest

MUSIC4ALL = {
    "id_information.csv": '''
        id|artist|song|album_name
        aa01|Björk|Jóga|Homogenic
        bb02|坂本龍一|戦場のメリークリスマス|
        cc03|Кино|"Группа ""крови"""|Группа крови
        dd04|فيروز|"Heroes|ألبوم
        ee05|Weird|NA|null
        ff06|No title||Album
        gg07|Ragged
    ''',
    "id_metadata.csv": """
        id|spotify_id|popularity|release|danceability|energy|key|mode|valence|tempo|duration_ms
        aa01|s1|50|1997|0.1|0.2|1|0|0.3|90|305000
        bb02|s2|51|1983.0|0.1|0.2|1|0|0.3|90|
        cc03|s3|52|0|0.1|0.2|1|0|0.3|90|285500
    """,
    "id_genres.csv": """
        id|genres
        aa01|electronic,art pop
        cc03|rock
    """,
    "id_tags.csv": """
        id|tags
        aa01|art pop, iceland,,female vocalists
        bb02|piano
    """,
    "id_lang.csv": """
        id|lang
        aa01|is
    """,
    "listening_history.csv": """
        user|song|timestamp
        user_b|aa01|2019-02-20 12:28
        user_a|bb02|2019-02-20 12:28
        user_a|cc03|2019-02-21 00:00
        user_a|zz99|2019-02-21 00:05
        user_a|aa01|2019-02-30 00:10
        user_b|dd04|2019-02-22 09:00
        user_b|ff06|2019-02-22 09:05
        user_b|ee05
    """,
}


def write_music4all(folder: Path, delimiter: str = "\t") -> Path:
    for name, text in MUSIC4ALL.items():
        lines = [line.strip().replace("|", delimiter) for line in text.strip().splitlines()]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for kind in ("lyrics", "audios"):
        (folder / kind).mkdir()
    (folder / "lyrics" / "aa01.txt").write_text("Tilfinningar\nNeyðarástand\n", encoding="utf-8")
    (folder / "lyrics" / "bb02.txt").write_text("\n")
    (folder / "lyrics" / "cc03.txt").write_bytes(b"caf\xe9")
    (folder / "audios" / "aa01.mp3").write_bytes(b"")
    (folder / "audios" / "bb02.FLAC").write_bytes(b"")
    (folder / "audios" / "bb02.txt").write_bytes(b"")
    return folder


def test_music4all_layout(tmp_path, workspace, ingested, by_title):
    path = write_music4all(tmp_path)
    result = ingested("music4all", path, max_rejected_share=0.6)
    assert result["rejected_by_reason"] == {
        "tracks": {"malformed_row": 1, "null_title": 1},
        "events": {
            "malformed_row": 1,
            "rejected_track": 1,
            "unknown_track": 1,
            "unparseable_event_timestamp": 1,
        },
    }
    assert (result["tracks"], result["events"], result["users"]) == (5, 4, 2)
    tracks = by_title()
    assert set(tracks) == {"Jóga", "戦場のメリークリスマス", 'Группа "крови"', '"Heroes', "NA"}
    joga, merry, blood = tracks["Jóga"], tracks["戦場のメリークリスマス"], tracks['Группа "крови"']
    assert joga["artist"] == "Björk"
    assert joga["tags"] == ["electronic", "art pop", "iceland", "female vocalists", "language is"]
    assert joga["lyrics"] == "Tilfinningar\nNeyðarástand"
    assert joga["duration_s"] == 305.0
    assert joga["released_at"].isoformat() == "1997-01-01T00:00:00+00:00"
    assert joga["audio_uri"] == str(tmp_path / "audios" / "aa01.mp3")
    assert merry["audio_uri"] == str(tmp_path / "audios" / "bb02.FLAC")
    assert (merry["lyrics"], merry["duration_s"], merry["released_at"].year) == (None, None, 1983)
    assert (blood["released_at"], blood["audio_uri"]) == (None, None)
    assert blood["lyrics"] == "caf\ufffd"
    users = pq.read_table(workspace.id_maps / "users.parquet").to_pydict()
    assert users == {"source_id": ["user_a", "user_b"], "id": [1, 2]}
    rejected = pq.read_table(workspace.rejected / "events.parquet").to_pylist()
    rows = {row["reason"]: json.loads(row["row"]) for row in rejected}
    assert rows["unparseable_event_timestamp"]["event_timestamp"] == "2019-02-30 00:10"
    assert rows["malformed_row"]["malformed_row"] == "user_b\tee05"


def test_music4all_with_commas_and_without_the_optional_parts(
    tmp_path, workspace, ingested, by_title
):
    for kind in (";", ","):
        path = tmp_path / f"with{ord(kind)}"
        path.mkdir()
        write_music4all(path, kind)
        (path / "id_lang.csv").unlink()
        for name in ("id_genres.csv", "id_tags.csv"):
            (path / name).write_text(f"id{kind}{name[3:-4]}\naa01{kind}pop\n")
        (path / "id_information.csv").write_text(f"id{kind}artist{kind}song\naa01{kind}B{kind}J\n")
        result = ingested("music4all", path, max_rejected_share=1.0)
        assert (result["tracks"], result["events"]) == (1, 1)
        assert by_title()["J"]["tags"] == ["pop"]
    (path / "id_tags.csv").unlink()
    with pytest.raises(InputError, match=r"id_tags\.csv does not exist; expected .* id, tags"):
        ingest(workspace, IngestOptions(source="music4all", path=path))
