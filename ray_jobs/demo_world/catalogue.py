"""The catalogue: contract rows of the rendered tracks, and the truth about what each one is.

60 % of the tracks were out before the log begins; the others come out evenly along it, up to its
end, so that any late part of the log has tracks which few have heard yet.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from feature_repo import schema
from ray_jobs.demo_world.render import Rendered, audio_path

LOG_END = datetime(2026, 7, 1, tzinfo=UTC)
LOG_DAYS = 120
LOG_START = LOG_END - timedelta(days=LOG_DAYS)
LATE_SHARE = 0.4
BACK_CATALOGUE_DAYS = 700
RELEASE_STREAM = 3

TRUTH = pa.schema(
    [
        pa.field("track_id", pa.int64(), nullable=False),
        pa.field("tune_key", pa.string()),
        pa.field("collection", pa.string()),
        pa.field("region", pa.string()),
        pa.field("tune_type", pa.string()),
        pa.field("metre", pa.string()),
        pa.field("tonic", pa.string()),
        pa.field("mode", pa.string()),
        pa.field("timbre", pa.string()),
        pa.field("octave_shift", pa.int64()),
        pa.field("bars_per_minute", pa.float64()),
        pa.field("notes_per_second", pa.float64()),
        pa.field("mean_pitch", pa.float64()),
        pa.field("duration_s", pa.float64()),
        pa.field("appeal", pa.float64()),
        pa.field("released_at", schema.TIMESTAMP),
    ]
)
"""What a track really is. `appeal` is a standard normal: how liked it is whatever the taste."""


def draw_releases(tracks: int, random: np.random.Generator) -> list[datetime]:
    """Release times: LATE_SHARE of the tracks evenly along the log, the rest before it."""
    late = round(LATE_SHARE * tracks)
    late_days = (np.arange(late) + random.uniform(size=late)) / max(late, 1) * LOG_DAYS
    early_days = -random.uniform(0, BACK_CATALOGUE_DAYS, size=tracks - late)
    days = random.permutation(np.concatenate((early_days, late_days)))
    return [LOG_START + timedelta(seconds=round(day * 86_400)) for day in days]


def truth_table(rendered: list[Rendered], *, seed: int) -> pa.Table:
    """One row a track: what can be heard in it, its appeal, its release."""
    random = np.random.default_rng([seed, RELEASE_STREAM])
    releases = draw_releases(len(rendered), random)
    appeals = random.standard_normal(len(rendered))
    rows = [
        {
            "track_id": track.track_id,
            "tune_key": track.tune.tune_key,
            "collection": track.tune.collection.name,
            "region": track.tune.region,
            "tune_type": track.tune.tune_type,
            "metre": track.metre,
            "tonic": track.tonic,
            "mode": track.mode,
            "timbre": track.arrangement.timbre,
            "octave_shift": track.arrangement.octave_shift,
            "bars_per_minute": track.arrangement.bars_per_minute,
            "notes_per_second": track.notes_per_second,
            "mean_pitch": track.mean_pitch,
            "duration_s": track.duration_s,
            "appeal": float(appeal),
            "released_at": released_at,
        }
        for track, appeal, released_at in zip(rendered, appeals, releases, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=TRUTH)


def tracks_table(rendered: list[Rendered], truth: pa.Table, audio_folder: Path) -> pa.Table:
    """The contract's tracks: what a catalogue would say, without timbre, tempo or register."""
    rows = [
        {
            "track_id": track.track_id,
            "title": track.tune.title,
            "artist": track.tune.artist,
            "tags": [
                track.tune.region,
                track.tune.collection.name,
                track.tune.tune_type,
                track.metre,
                f"{track.tonic} {track.mode}",
            ],
            "lyrics": track.lyrics,
            "audio_uri": str(audio_path(audio_folder, track.track_id)),
            "released_at": released_at,
            "duration_s": track.duration_s,
        }
        for track, released_at in zip(rendered, truth["released_at"].to_pylist(), strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=schema.TRACKS)
