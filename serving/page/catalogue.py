"""What the page shows of a track: title, artist, tags and whether its audio can be played.

    catalogue = Catalogue.load(workspace)
    catalogue.search("o'neill kate", 20)
    catalogue.audio_file(7)

Reads `tables/tracks`. A workspace that holds IDs alone has an empty catalogue: its tracks are
shown by their number.

Shape suffixes: I tracks of the table, N tracks asked for.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel

from feature_repo import schema
from feature_repo.artifacts import parquet_files
from feature_repo.workspace import Workspace
from models.batch import find_rows

COLUMNS = ("track_id", "title", "artist", "tags", "audio_uri")
AUDIO_TYPES = {
    ".flac": "audio/flac",
    ".m4a": "audio/mp4",
    ".mp3": "audio/mpeg",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".wav": "audio/wav",
}
"""Media types by file suffix. Nothing else is sent: a workspace also holds settings and tables."""


class Track(BaseModel):
    track_id: int
    title: str | None = None
    """None: the catalogue table does not hold the track."""
    artist: str | None = None
    tags: list[str] = []
    playable: bool = False
    """True: `GET /v1/browse/tracks/{track_id}/audio` has a file."""


class Catalogue:
    """The contract's tracks in memory, by track id."""

    def __init__(self, table: pa.Table, root: Path) -> None:
        """`table` has `COLUMNS`; audio files count only under `root`."""
        table = table.sort_by(schema.TRACK_ID).combine_chunks()
        self._track_ids_I = table[schema.TRACK_ID].to_numpy()
        self._columns = {name: table[name].combine_chunks() for name in COLUMNS[1:]}
        self._tag_counts = _tag_counts(self._columns["tags"])
        self._root = os.path.realpath(root)
        nothing, newline = (pa.scalar(text, pa.large_string()) for text in ("", "\n"))
        texts = [
            pc.fill_null(self._columns[name].cast(pa.large_string()), nothing)
            for name in ("title", "artist")
        ]
        self._searched_I = folded(pc.binary_join_element_wise(*texts, newline))

    @classmethod
    def load(cls, workspace: Workspace) -> "Catalogue":
        """Reads the workspace's contract table."""
        files = parquet_files(workspace.tracks)
        wanted = pa.schema([schema.TRACKS.field(name) for name in COLUMNS])
        if not files:
            return cls(wanted.empty_table(), workspace.root)
        return cls(pq.read_table(files, columns=list(COLUMNS)).cast(wanted), workspace.root)

    def __len__(self) -> int:
        return len(self._track_ids_I)

    def search(self, text: str, count: int) -> list[Track]:
        """Tracks whose title and artist hold every word; those that begin with the text first."""
        (wanted,) = folded(pa.array([text], pa.large_string())).to_pylist()
        rows, found = np.arange(len(self)), self._searched_I
        for word in wanted.split():
            matches = pc.match_substring(found, word)
            rows, found = rows[matches.to_numpy(zero_copy_only=False)], found.filter(matches)
        begins = pc.starts_with(found, wanted.strip()).to_numpy(zero_copy_only=False)
        order = np.argsort(~begins, kind="stable")
        return self.tracks(self._track_ids_I[rows[order[:count]]].tolist())

    def tracks(self, track_ids: Sequence[int]) -> list[Track]:
        """What is known of each, in their order."""
        rows_N = self._rows(track_ids)
        taken = pa.array(np.maximum(rows_N, 0))
        if not len(self):
            return [Track(track_id=track_id) for track_id in track_ids]
        columns = {name: self._columns[name].take(taken).to_pylist() for name in COLUMNS[1:]}
        return [
            Track(
                track_id=track_id,
                title=columns["title"][n],
                artist=columns["artist"][n],
                tags=[tag for tag in columns["tags"][n] or () if tag],
                playable=self._file(columns["audio_uri"][n]) is not None,
            )
            if rows_N[n] >= 0
            else Track(track_id=track_id)
            for n, track_id in enumerate(track_ids)
        ]

    def tags(self, track_ids: np.ndarray, count: int) -> list[str]:
        """The tags that tell these tracks from the others, by n log(share here / share of all).

        n tracks here have the tag. One that every track has says nothing, and one that a single
        track has says little.
        """
        rows_N = self._rows(track_ids)
        rows_N = rows_N[rows_N >= 0]
        here = _tag_counts(self._columns["tags"].take(pa.array(rows_N)))
        tells = {
            tag: n * math.log(n / len(rows_N) * len(self) / self._tag_counts[tag])
            for tag, n in here.items()
        }
        return sorted(tells, key=lambda tag: (-tells[tag], -here[tag], tag))[:count]

    def audio_file(self, track_id: int) -> tuple[Path, str] | None:
        """The track's audio file and its media type; None where there is none to send."""
        (row,) = self._rows([track_id])
        return None if row < 0 else self._file(self._columns["audio_uri"][int(row)].as_py())

    def _rows(self, track_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows (N,) of the table, -1 where it does not hold the track."""
        if not len(self):
            return np.full(len(track_ids), -1)
        rows_N, known_N = find_rows(self._track_ids_I, np.array(track_ids, dtype=np.int64))
        return np.where(known_N, rows_N, -1)

    def _file(self, uri: str | None) -> tuple[Path, str] | None:
        """The catalogue is data from elsewhere, so what it names is sent only if it is audio and
        lies, links followed, in the workspace."""
        if uri and uri.startswith("file:///"):
            uri = unquote(uri.removeprefix("file://"))
        if not uri or "://" in uri or "\0" in uri:
            return None
        path = Path(os.path.realpath(os.path.join(self._root, uri)))
        media_type = AUDIO_TYPES.get(path.suffix.lower())
        if media_type is None or not path.is_relative_to(self._root) or not os.path.isfile(path):
            return None
        return path, media_type


def _tag_counts(lists: pa.Array) -> dict[str, int]:
    counted = lists.flatten().drop_null().value_counts()
    values, counts = counted.field("values"), counted.field("counts")
    return dict(zip(values.to_pylist(), counts.to_pylist(), strict=True))


def folded(texts: pa.Array) -> pa.Array:
    """Without case, accents and other marks on letters."""
    decomposed = pc.utf8_normalize(texts, form="NFKD")
    return pc.utf8_lower(pc.replace_substring_regex(decomposed, r"\p{Mn}+", ""))
