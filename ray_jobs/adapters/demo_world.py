"""demo-world: tunes and simulated listeners, which the generator wrote in the contract's form.

`--path` is the folder with `tracks.parquet` and `events.parquet`; audio files named without a
leading `/` or a scheme lie under it. Any generator or export that writes these two can use this.
"""

from pathlib import Path

from ray_jobs.adapters.source_files import absolute_uris, read_parquet
from ray_jobs.contract import REQUIRED, SourceTables


def read(path: Path) -> SourceTables:
    tracks = read_parquet(path / "tracks.parquet", REQUIRED["tracks"])
    events = read_parquet(path / "events.parquet", REQUIRED["events"])
    if "audio_uri" in tracks.column_names:
        place = tracks.column_names.index("audio_uri")
        tracks = tracks.set_column(place, "audio_uri", absolute_uris(tracks["audio_uri"], path))
    return SourceTables(tracks=tracks, events=events)
