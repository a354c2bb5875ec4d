"""The vectors of a generation's tracks, as its joint codebook sees them, for nearest neighbours.

    source = vector_source(workspace, generation_id)
    track_ids_N, x_ND = source.read(catalogue)

Each modality is prepared as for the codebook and the modalities stand side by side, so that the
inner product of two rows is the mean of what the modalities say. A generation without a joint
family has the vectors of its only one.

Shape suffixes: N tracks, M rows of one batch, D dims.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from feature_repo import schema
from feature_repo.artifacts import read_manifest
from feature_repo.codebook_reader import NumpyCodebook, read_codebook
from feature_repo.errors import ArtifactError
from feature_repo.workspace import Workspace
from models.preprocess import Preprocess

BATCH_ROWS = 8_192
OK = "ok"
"""Status of an embedded track that has a vector."""


@dataclass(frozen=True, kw_only=True)
class VectorSource:
    """A codebook, and the embedding that each of its modalities is read from."""

    book: NumpyCodebook
    folders: dict[str, Path]

    def read(self, track_ids_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those of the tracks (rising) that have a vector, and the vectors: float32, unit norm.

        ArtifactError where an embedding is missing, was changed, or does not fit the codebook.
        """
        x_ND = np.zeros((len(track_ids_N), self.book.dims), dtype=np.float32)
        start = 0
        for modality, mode in self.book.modes.items():
            stem = f"{modality}."
            tensors = {
                name.removeprefix(stem): torch.tensor(tensor)
                for name, tensor in self.book.tensors.items()
                if name.startswith(stem)
            }
            try:
                fitted = Preprocess.from_tensors(mode, tensors)
                start += _fill(self.folders[modality], modality, fitted, track_ids_N, x_ND, start)
            except ValueError as error:  # a width, or a value, that the codebook cannot take
                if isinstance(error, ArtifactError):
                    raise
                raise ArtifactError(
                    f"{modality} vectors of {self.folders[modality].name} do not fit codebook "
                    f"{self.book.codebook_id}: {error}; run `crescendo quantize`"
                ) from error
        norm_N = np.linalg.norm(x_ND, axis=1)
        held_N = norm_N > 0
        x_ND[held_N] /= norm_N[held_N, None]
        if held_N.all():
            return track_ids_N, x_ND
        return track_ids_N[held_N], x_ND[held_N]


def vector_source(workspace: Workspace, generation_id: str) -> VectorSource | None:
    """None for a generation that was not made from vectors, such as a control of a study."""
    generation = read_manifest(
        workspace.generations / generation_id, kind="generation", made_by="quantize", verify=False
    )
    codebooks = generation.parents["codebooks"]
    if not codebooks:
        return None
    family = schema.JOINT if schema.JOINT in codebooks else next(iter(codebooks))
    folder = workspace.codebooks / codebooks[family]
    book = read_codebook(folder)
    of_book = read_manifest(folder, kind="codebook", made_by="quantize", verify=False)
    encoders = of_book.parents["embeddings"]
    return VectorSource(
        book=book,
        folders={name: workspace.embeddings(name, encoders[name]) for name in book.modes},
    )


def _fill(
    folder: Path,
    modality: str,
    fitted: Preprocess,
    track_ids_N: np.ndarray,
    x_ND: np.ndarray,
    start: int,
) -> int:
    """Writes one modality's prepared vectors into its columns of `x_ND`; returns their width."""
    made_by = f"embed --modality {modality} --encoder ENCODER"
    manifest = read_manifest(folder, kind="embedding", made_by=made_by)
    width = fitted.apply(torch.zeros(1, manifest.info["dim"])).shape[1]
    if start + width > x_ND.shape[1]:
        raise ValueError(f"{start + width} dims and more, the codebook takes {x_ND.shape[1]}")
    for name in sorted(manifest.files):
        file = pq.ParquetFile(folder / name)
        ids = file.read(columns=[schema.TRACK_ID])[schema.TRACK_ID].to_numpy()
        if not np.isin(ids, track_ids_N).any():
            continue  # most files, where a few new tracks are asked for
        columns = [schema.TRACK_ID, "status", "vector"]
        for batch in file.iter_batches(BATCH_ROWS, columns=columns):
            ids = batch[schema.TRACK_ID].to_numpy()
            status = batch["status"].to_numpy(zero_copy_only=False)
            wanted = np.isin(ids, track_ids_N) & (status == OK)
            batch = batch.filter(pa.array(wanted))
            vectors = batch["vector"].flatten().to_numpy(zero_copy_only=False)
            x_MD = fitted.apply(torch.tensor(vectors.reshape(-1, manifest.info["dim"])))
            rows_M = np.searchsorted(track_ids_N, ids[wanted])
            x_ND[rows_M, start : start + width] = x_MD.numpy()
    return width
