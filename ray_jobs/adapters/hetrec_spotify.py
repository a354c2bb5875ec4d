"""hetrec-spotify: Last.fm listeners of HetRec 2011, artists described by tags and by Spotify.

Items are artists: a track's title is the artist's name, its tags are the crowd's, and its
`audio_vector` holds the 12 Spotify columns of sound (means over the artist's tracks), each z-scored
over the artists that have them. Others have no vector. `popularity` and `n_tracks` stay out: they
say how known an artist was in 2020, long after the events, and would pass for audio.

An event is a listener's first tag on an artist, as `play`. Its time is known to the month: almost
every one is midnight of the first day of a month in Madrid, where the data was gathered, which in
UTC is the evening of the last day of the month before. So the month is taken in Madrid's time and
written as its first moment in UTC; the few exact times are floored to their month as well.
Interactions without a time (half of them, that were never tagged) are expected rejections.

The crowd's tags are those of the whole log: a rare artist's come from the very listeners whose
events are ranked, so text tells a little of the future here.

`--path` is the folder with `items.csv.gz` and `interactions.csv.gz`.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_jobs.adapters.source_files import read_delimited
from ray_jobs.arrow_sql import query, text_from_epoch
from ray_jobs.contract import SourceTables
from ray_jobs.contract_checks import MALFORMED_ROW

TIME_ZONE = "Europe/Madrid"
ITEM_COLUMNS = ("item_id", "name", "tags", "has_audio")
AUDIO_COLUMNS = (
    "acousticness",
    "danceability",
    "duration_ms",
    "energy",
    "instrumentalness",
    "liveness",
    "loudness",
    "speechiness",
    "tempo",
    "valence",
    "key",
    "mode",
)
INTERACTION_COLUMNS = ("user_id", "item_id", "first_tag_ts_ms")


def read(path: Path) -> SourceTables:
    items = read_delimited(path / "items.csv.gz", (*ITEM_COLUMNS, *AUDIO_COLUMNS))
    interactions = read_delimited(path / "interactions.csv.gz", INTERACTION_COLUMNS)
    tracks = pa.table(
        {
            "track_id": items["item_id"],
            "title": items["name"],
            "tags": pc.split_pattern(items["tags"], "|"),
            "audio_vector": _audio_vectors(items),
            MALFORMED_ROW: items[MALFORMED_ROW],
        }
    )
    events = query(
        f"""
        WITH timed AS (
            SELECT *, CAST({text_from_epoch("first_tag_ts_ms", "ms")} AS VARCHAR) AS moment
            FROM interactions
        )
        SELECT
            user_id,
            item_id AS track_id,
            coalesce(
                CAST(
                    date_trunc('month', try_cast(moment AS TIMESTAMPTZ) AT TIME ZONE '{TIME_ZONE}')
                    AT TIME ZONE 'UTC' AS VARCHAR
                ),
                moment
            ) AS event_timestamp,
            'play' AS action,
            {MALFORMED_ROW}
        FROM timed
        """,
        interactions=interactions,
    )
    return SourceTables(
        tracks=tracks, events=events, expected_rejections=frozenset({"null_event_timestamp"})
    )


def _audio_vectors(items: pa.Table) -> pa.Array:
    """z-scores over the artists with audio; a cell that is no number stays NaN and is rejected."""
    numbers = ", ".join(f"try_cast({name} AS DOUBLE) AS {name}" for name in AUDIO_COLUMNS)
    table = query(f"SELECT {numbers} FROM items", items=items)
    values = np.column_stack([table[name].to_numpy() for name in AUDIO_COLUMNS])
    has_audio = pc.equal(items["has_audio"], "1").fill_null(False).to_numpy()
    if has_audio.any():
        spread = np.nanstd(values[has_audio], axis=0)
        values = (values - np.nanmean(values[has_audio], axis=0)) / np.where(spread, spread, 1.0)
    flat = pa.array(values.astype(np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, len(AUDIO_COLUMNS), mask=pa.array(~has_audio))
