"""tiktok-mm: TikTok users and short videos with 128-d audio and image vectors, without times.

The interactions come in three parts (`trn`, `val`, `tst`) and carry no time at all, so each part
gets one moment: a month apart, in that order, every event of a part at the same instant. That is
all that the data knows. Within a part nothing is before anything else, so a training row sees no
history, and a test row sees the two earlier parts as one block of simultaneous events.

Titles are `video <id>`; ids are the rows of the vector files.

`--path` is the folder with `interactions.csv.gz`, `audio_feat.npy` and `image_feat.npy`.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from feature_repo.errors import InputError
from ray_jobs.adapters.source_files import read_delimited, read_vectors
from ray_jobs.arrow_sql import query
from ray_jobs.contract import SourceTables
from ray_jobs.contract_checks import MALFORMED_ROW

PART_MOMENTS = {
    "trn": "2020-01-01T00:00:00Z",
    "val": "2020-02-01T00:00:00Z",
    "tst": "2020-03-01T00:00:00Z",
}


def read(path: Path) -> SourceTables:
    interactions = read_delimited(path / "interactions.csv.gz", ("user_id", "item_id", "split"))
    audio = read_vectors(path / "audio_feat.npy")
    image = read_vectors(path / "image_feat.npy")
    if len(audio) != len(image):
        raise InputError(
            f"{path}: audio_feat.npy has {len(audio)} rows, image_feat.npy {len(image)}; "
            f"expected one of each for every video; fetch both files again"
        )
    ids = np.arange(len(audio))
    tracks = pa.table(
        {
            "track_id": ids,
            "title": [f"video {video}" for video in ids],
            "audio_vector": _vectors(audio),
            "image_vector": _vectors(image),
        }
    )
    moments = " ".join(f"WHEN '{part}' THEN '{time}'" for part, time in PART_MOMENTS.items())
    events = query(
        f"""
        SELECT
            user_id,
            item_id AS track_id,
            CASE split {moments} ELSE split END AS event_timestamp,
            'play' AS action,
            {MALFORMED_ROW}
        FROM interactions
        """,
        interactions=interactions,
    )
    return SourceTables(tracks=tracks, events=events)


def _vectors(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])
