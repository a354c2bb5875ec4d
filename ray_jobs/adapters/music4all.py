"""music4all: the folder layout of Music4All, of which you need your own copy.

    id_information.csv     id, artist, song, album_name
    id_metadata.csv        id, release (year), duration_ms, and columns that are not used
    id_genres.csv          id, genres ("rock,pop")
    id_tags.csv            id, tags ("rock,seen live")
    id_lang.csv            id, lang; optional
    listening_history.csv  user, song, timestamp ("2019-02-20 12:28", taken as UTC)
    lyrics/<id>.txt        optional, for any of the ids
    audios/<id>.mp3        optional, likewise; another extension of audio files will do

The files are tab-separated in spite of their name; other delimiters are detected. Genres, tags
and `language <code>` become one list of tags. A release year becomes the first of January, and is
null where it is no year. Every listen is a `play`: the history says nothing more.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import structlog

from ray_jobs.adapters.source_files import read_delimited, reading
from ray_jobs.arrow_sql import query
from ray_jobs.contract import SourceTables
from ray_jobs.contract_checks import MALFORMED_ROW
from ray_jobs.progress import track

log = structlog.get_logger()

AUDIO_EXTENSIONS = (".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav")
READERS = 16

TRACKS_SQL = f"""
    WITH metadata AS (SELECT id, min(release) AS release, min(duration_ms) AS duration_ms
                      FROM metadata_rows GROUP BY id),
        genres AS (SELECT id, min(genres) AS genres FROM genre_rows GROUP BY id),
        tags AS (SELECT id, min(tags) AS tags FROM tag_rows GROUP BY id),
        languages AS (SELECT id, min(lang) AS lang FROM language_rows GROUP BY id),
        described AS (
            SELECT information.*, release, duration_ms, lyrics, audio_uri,
                list_transform(string_split(genres, ','), lambda tag: trim(tag)) AS genre_list,
                list_transform(string_split(tags, ','), lambda tag: trim(tag)) AS tag_list,
                'language ' || lang AS language
            FROM information
            LEFT JOIN metadata USING (id)
            LEFT JOIN genres USING (id)
            LEFT JOIN tags USING (id)
            LEFT JOIN languages USING (id)
            LEFT JOIN lyrics USING (id)
            LEFT JOIN audio USING (id)
        )
    SELECT
        id AS track_id,
        song AS title,
        artist,
        list_filter(
            list_concat(
                genre_list,
                list_filter(tag_list, lambda tag: NOT coalesce(tag IN genre_list, false)),
                [language]
            ),
            lambda tag: tag <> ''
        ) AS tags,
        lyrics,
        audio_uri,
        CASE WHEN try_cast(release AS DOUBLE) BETWEEN 1000 AND 2999
            THEN CAST(CAST(try_cast(release AS DOUBLE) AS INTEGER) AS VARCHAR) || '-01-01'
        END AS released_at,
        try_cast(duration_ms AS DOUBLE) / 1000 AS duration_s,
        {MALFORMED_ROW}
    FROM described
    ORDER BY place
"""


def read(path: Path) -> SourceTables:
    columns = ("id", "artist", "song")
    information = read_delimited(path / "id_information.csv", columns)
    information = information.select([*columns, MALFORMED_ROW])
    history = read_delimited(path / "listening_history.csv", ("user", "song", "timestamp"))
    tracks = query(
        TRACKS_SQL,
        information=information.append_column("place", pa.array(range(len(information)))),
        metadata_rows=_describing(path / "id_metadata.csv", ("id", "release", "duration_ms")),
        genre_rows=_describing(path / "id_genres.csv", ("id", "genres")),
        tag_rows=_describing(path / "id_tags.csv", ("id", "tags")),
        language_rows=_describing(path / "id_lang.csv", ("id", "lang"), optional=True),
        lyrics=_lyrics(path / "lyrics"),
        audio=_audio(path / "audios"),
    )
    events = query(
        f"""
        SELECT
            "user" AS user_id,
            song AS track_id,
            "timestamp" AS event_timestamp,
            'play' AS action,
            {MALFORMED_ROW}
        FROM history
        """,
        history=history,
    )
    return SourceTables(tracks=tracks, events=events)


def _describing(path: Path, columns: tuple[str, ...], optional: bool = False) -> pa.Table:
    """A file that adds to the tracks; its broken lines cost a track what they said, no more."""
    if optional and not path.exists():
        return pa.table({name: pa.array([], pa.string()) for name in columns})
    rows = read_delimited(path, columns)
    malformed = rows[MALFORMED_ROW].drop_null()
    if len(malformed):
        log.warning(
            "lines that could not be read",
            file=str(path),
            lines=len(malformed),
            example=malformed[0].as_py(),
        )
    return rows


def _lyrics(folder: Path) -> pa.Table:
    paths = [path for path in _files(folder) if path.suffix == ".txt"]
    with reading(folder.parent, f"lyrics in {folder.name}/"), ThreadPoolExecutor(READERS) as pool:
        texts = list(track(pool.map(_text, paths), "read lyrics", len(paths), "files"))
    return _by_id(paths, texts, "lyrics")


def _text(path: Path) -> str | None:
    """A lyrics file; bytes that are not UTF-8 are replaced, and an empty file is no lyrics."""
    return path.read_text(encoding="utf-8-sig", errors="replace").strip() or None


def _audio(folder: Path) -> pa.Table:
    """The audio files by track; of several for one track the first by name."""
    files = {path.stem: path for path in reversed(_files(folder)) if _is_audio(path)}
    return _by_id(
        list(files.values()), [str(path.resolve()) for path in files.values()], "audio_uri"
    )


def _is_audio(path: Path) -> bool:
    return path.suffix.lower() in AUDIO_EXTENSIONS


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _by_id(paths: list[Path], values: list[str | None] | list[str], column: str) -> pa.Table:
    ids = pa.array([path.stem for path in paths], pa.string())
    return pa.table({"id": ids, column: pa.array(values, pa.string())})
