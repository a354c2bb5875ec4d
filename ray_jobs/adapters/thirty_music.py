"""30music-subset: plays of Last.fm listeners with exact times, sessions and played ratios.

Tracks, artists and tags have no names in it: a track's title is `track <id>`, its artist `artist
<id>`, its tags `tag <id>`. Tag 0 fills up the five places and is dropped. Where rows of one track
describe it differently, the commonest description counts.

Actions: `skip` where the source says skipped (in this data: a ratio of 0.90 at most), else
`complete` from a ratio of 0.95 on, else `play`. Ratios are cut at 1, and 99 of 100 unskipped
plays have exactly 1; 0.95 keeps those that a player ends within a fade-out, and moving it
anywhere between 0.91 and 0.99 would change 304 of 64,598 events.

`--path` is the folder with `events.csv.gz`.
"""

from pathlib import Path

from ray_jobs.adapters.source_files import read_delimited
from ray_jobs.arrow_sql import query, text_from_epoch
from ray_jobs.contract import SourceTables
from ray_jobs.contract_checks import MALFORMED_ROW

COMPLETE_RATIO = 0.95
COLUMNS = (
    "user_id",
    "session_id",
    "track_id",
    "artist_id",
    "ts",
    "play_ratio",
    "skipped",
    "tag_idx",
)


def read(path: Path) -> SourceTables:
    plays = read_delimited(path / "events.csv.gz", COLUMNS)
    tracks = query(
        """
        WITH described AS (
            SELECT track_id, artist_id, tag_idx, count(*) AS rows
            FROM plays
            WHERE track_id IS NOT NULL
            GROUP BY ALL
        )
        SELECT
            track_id,
            'track ' || track_id AS title,
            'artist ' || artist_id AS artist,
            list_transform(
                list_filter(string_split(tag_idx, ' '), lambda tag: tag NOT IN ('', '0')),
                lambda tag: 'tag ' || tag
            ) AS tags
        FROM described
        QUALIFY row_number() OVER (
            PARTITION BY track_id ORDER BY rows DESC, artist_id, tag_idx
        ) = 1
        """,
        plays=plays,
    )
    events = query(
        f"""
        SELECT
            user_id,
            track_id,
            session_id,
            {text_from_epoch("ts", "s")} AS event_timestamp,
            CASE
                WHEN skipped = '1' THEN 'skip'
                WHEN try_cast(play_ratio AS DOUBLE) >= {COMPLETE_RATIO} THEN 'complete'
                ELSE 'play'
            END AS action,
            play_ratio AS played_ratio,
            {MALFORMED_ROW}
        FROM plays
        """,
        plays=plays,
    )
    return SourceTables(tracks=tracks, events=events)
