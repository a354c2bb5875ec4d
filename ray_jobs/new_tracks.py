"""The vectors of tracks that have no ID yet, streamed: memory holds a chunk, never the catalogue.

The parts of an embedding come in the order in which they were made, and a joint vector needs the
parts of every modality. So the prepared vectors of new tracks are first laid out in a scratch file,
by track id, and read back from there in chunks. Whole in memory are only ids and hashes: about 30
bytes a track of the catalogue.

Shape suffixes: N new tracks, M rows of one batch or chunk, D dims of the prepared modalities, side
by side.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from feature_repo.artifacts import Manifest, read_manifest
from feature_repo.errors import InputError
from feature_repo.schema import TRACK_ID
from feature_repo.workspace import Workspace
from models.preprocess import Preprocess
from models.rows import LARGEST
from ray_jobs.embed import KIND, STATE, up_to_date
from ray_jobs.encoders.pipeline import OK

BATCH_ROWS = 8_192
READ_BYTES = 1 << 20
"""Read from a file at once: without it, a whole column of a row group."""
CHUNK_VALUES = 1 << 25
"""Values of one chunk: 128 MB of float32."""


@dataclass(frozen=True, kw_only=True)
class ModalityRows:
    """Which tracks have a vector of one modality and no ID, and where the vectors are."""

    modality: str
    encoder_id: str
    preprocess: Preprocess
    width: int
    """Dims of the prepared vectors."""
    track_ids: np.ndarray
    parts: tuple[Path, ...]
    """The files that hold them, and others."""


@dataclass(frozen=True, kw_only=True)
class NewTracks:
    """The tracks of all modalities that have no ID; `track_ids` (N,) rising."""

    track_ids: np.ndarray
    modalities: dict[str, ModalityRows]

    def chunks(self, scratch: Path) -> Iterator["Chunk"]:
        """The tracks in order; writes `scratch`, 4 N D bytes, and removes it at the end."""
        columns, dims = {}, 0
        for name, rows in self.modalities.items():
            columns[name] = slice(dims, dims + rows.width)
            dims += rows.width
        size = max(1, CHUNK_VALUES // dims)
        # Not a memory map: on a full disk that would end in a signal instead of an error.
        with scratch.open("w+b") as file:
            file.truncate(4 * len(self.track_ids) * dims)
            for name, rows in self.modalities.items():
                for track_ids, vectors_MD in _batches(rows):
                    places = np.searchsorted(self.track_ids, track_ids).tolist()
                    for place, vector_D in zip(places, vectors_MD, strict=True):
                        file.seek(4 * (place * dims + columns[name].start))
                        file.write(vector_D.tobytes())
            file.seek(0)
            for start in range(0, len(self.track_ids), size):
                track_ids = self.track_ids[start : start + size]
                values = np.fromfile(file, np.float32, len(track_ids) * dims)
                yield Chunk(
                    track_ids=track_ids,
                    x_MD=torch.from_numpy(values.reshape(-1, dims)),
                    columns=columns,
                    present={
                        name: np.isin(track_ids, rows.track_ids)
                        for name, rows in self.modalities.items()
                    },
                )
        scratch.unlink()


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Prepared vectors (M, D) of some new tracks, zeros where one lacks a modality."""

    track_ids: np.ndarray
    x_MD: Tensor
    columns: dict[str, slice]
    present: dict[str, np.ndarray]
    """By modality, which of the tracks have it."""

    def of(self, modalities: Sequence[str]) -> tuple[np.ndarray, Tensor]:
        """Ids and vectors of the tracks that have one of these modalities at least."""
        there_M = np.logical_or.reduce([self.present[name] for name in modalities])
        parts = [self.x_MD[:, self.columns[name]] for name in modalities]
        return self.track_ids[there_M], torch.cat(parts, 1)[torch.from_numpy(there_M)]


def find_new_tracks(
    workspace: Workspace,
    preprocess: Mapping[str, Preprocess],
    encoder_ids: Mapping[str, str],
    known: np.ndarray,
) -> NewTracks:
    """Tracks with a vector of one of the modalities whose id is not among `known`.

    Refuses embeddings that are missing, changed, not up to date or of another width.
    """
    modalities = {
        name: _find(workspace, name, encoder_ids[name], fitted, known)
        for name, fitted in preprocess.items()
    }
    track_ids = np.unique(np.concatenate([rows.track_ids for rows in modalities.values()]))
    return NewTracks(track_ids=track_ids, modalities=modalities)


def _find(
    workspace: Workspace, modality: str, encoder_id: str, preprocess: Preprocess, known: np.ndarray
) -> ModalityRows:
    folder = workspace.embeddings(modality, encoder_id)
    made_by = f"embed --modality {modality} --encoder ENCODER"
    manifest = read_manifest(folder, kind=KIND, made_by=made_by)
    paths = [folder / name for name in sorted(manifest.files)]
    states = [pq.read_table(path, schema=STATE, columns=STATE.names) for path in paths]
    table = pa.concat_tables([STATE.empty_table(), *states])
    wanted = pc.and_(up_to_date(workspace, manifest, table), pc.equal(table["status"], OK))
    new = wanted.to_numpy(zero_copy_only=False) & ~np.isin(table[TRACK_ID].to_numpy(), known)
    ends = np.cumsum([len(state) for state in states])
    there = [mask.any() for mask in np.split(new, ends[:-1])] if len(states) else []
    return ModalityRows(
        modality=modality,
        encoder_id=encoder_id,
        preprocess=preprocess,
        width=prepared_width(preprocess, manifest),
        track_ids=np.sort(table[TRACK_ID].to_numpy()[new]),
        parts=tuple(path for path, holds in zip(paths, there, strict=True) if holds),
    )


def prepared_width(preprocess: Preprocess, embedding: Manifest) -> int:
    """Dims of an embedding's vectors once prepared; InputError if they do not fit the step."""
    try:
        return preprocess.apply(torch.zeros(1, embedding.info["dim"])).shape[1]
    except ValueError as error:
        raise InputError(
            f"{embedding.info['modality']} vectors of {embedding.id} do not fit the generation's "
            f"preprocessing: {error}; run `crescendo quantize` to make one of these vectors"
        ) from error


def _batches(rows: ModalityRows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Track ids and prepared vectors of the new tracks, in the order of the files."""
    for path in rows.parts:
        file = pq.ParquetFile(path, buffer_size=READ_BYTES)
        for batch in file.iter_batches(BATCH_ROWS, columns=[TRACK_ID, "vector"]):
            wanted = np.isin(batch[TRACK_ID].to_numpy(), rows.track_ids)
            if not wanted.any():
                continue
            batch = batch.filter(pa.array(wanted))
            track_ids = batch[TRACK_ID].to_numpy()
            vectors = batch["vector"].flatten().to_numpy(zero_copy_only=False)
            x_MD = vectors.reshape(len(track_ids), -1)
            bad_M = ~(np.abs(x_MD) <= LARGEST).all(1)  # NaN too
            if bad_M.any():
                raise InputError(
                    f"the {rows.modality} vectors of {int(bad_M.sum())} tracks, such as "
                    f"{track_ids[bad_M][0]}, hold values that are not finite or beyond "
                    f"{LARGEST:g}; mend the source, then run "
                    f"`crescendo embed --modality {rows.modality} --encoder ENCODER`"
                )
            yield track_ids, rows.preprocess.apply(torch.tensor(x_MD)).numpy()
