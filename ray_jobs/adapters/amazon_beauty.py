"""amazon-beauty: Amazon reviews of beauty products, each user's products in order, without times.

The source knows the order alone: `sequences.txt` holds a line a user, `user item item ...`, oldest
first. The times are SYNTHETIC: a user's n-th item from the end lies n - 1 days before
2014-07-01T00:00Z, so everybody's last listen happens at one moment, the one before it a day
earlier. That keeps each user's order, which is all that a leave-last-out split needs, and says
nothing else: do not read seasons, gaps or who came first from it. Labels split by time would put
every user's last item into the test part.

A review is taken as a `play`. Titles are `product <id>`; ids are the source's own. Row n of
`sasrec_item_embeddings.npy` is product n; row 0 is padding and left out. It becomes
`collaborative_vector`, so that `embed --modality collaborative --encoder vectors` takes it. How it
was trained is not known: it may have seen the items that a leave-last-out split holds out.

`--path` is the folder with both files.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from feature_repo.errors import InputError
from ray_jobs.adapters.source_files import read_vectors, reading
from ray_jobs.contract import SourceTables

LAST_LISTEN = np.datetime64("2014-07-01T00:00:00", "us")
DAY = np.timedelta64(1, "D")
EXPECTED = "a text file with a line `user item item ...` of whole numbers for each user"


def read(path: Path) -> SourceTables:
    vectors = read_vectors(path / "sasrec_item_embeddings.npy")
    users, lengths, items = _sequences(path / "sequences.txt")
    if len(items) and not 1 <= items.min() <= items.max() < len(vectors):
        raise InputError(
            f"{path}: sequences.txt names the items {items.min()} to {items.max()}, "
            f"sasrec_item_embeddings.npy has rows for 1 to {len(vectors) - 1}; fetch both again"
        )
    ids = np.arange(1, len(vectors))
    tracks = pa.table(
        {
            "track_id": ids,
            "title": [f"product {item}" for item in ids],
            "collaborative_vector": pa.FixedSizeListArray.from_arrays(
                vectors[1:].ravel(), vectors.shape[1]
            ),
        }
    )
    # Places from the end of each user: 0 is the last item.
    from_end = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(items)) - 1
    moments = LAST_LISTEN - from_end * DAY
    events = pa.table(
        {
            "user_id": np.repeat(users, lengths),
            "track_id": items,
            "event_timestamp": pa.array(moments).cast(pa.timestamp("us", tz="UTC")),
            "action": pa.repeat("play", len(items)),
        }
    )
    return SourceTables(tracks=tracks, events=events)


def _sequences(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users, how many items each has, and their items after each other."""
    with reading(path, EXPECTED):
        lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
        lengths = np.array([len(line) - 1 for line in lines], np.int64)
        numbers = np.array([number for line in lines for number in line], np.int64)
    starts = np.cumsum(lengths + 1) - lengths - 1
    return numbers[starts], lengths, np.delete(numbers, starts)
