"""A catalogue with vectors and its embeddings, written without Ray, for tests of what comes after.

The same files as `crescendo embed --encoder vectors` leaves, by the same functions.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from feature_repo.schema import TRACKS
from feature_repo.workspace import Workspace
from ray_jobs.embed_folder import EmbeddingFolder, row_schema, write_manifest, write_part
from ray_jobs.embed_options import EmbedOptions
from ray_jobs.encoders.inputs import INPUT_HASH, Inputs
from ray_jobs.encoders.pipeline import EncoderActor
from ray_jobs.encoders.vectors import VectorsEncoder

PART_ROWS = 37


def clustered(
    count: int, dims: Mapping[str, int], *, seed: int = 0, clusters: int = 5, shift: float = 0.0
) -> dict[str, np.ndarray]:
    """Rows of every modality around common centres. The first rows do not depend on `count`."""
    centres = np.random.default_rng(seed).normal(size=(clusters, sum(dims.values()))) * 2
    rows = [
        centres[n % clusters] + np.random.default_rng((seed, n)).normal(size=centres.shape[1])
        for n in range(count)
    ]
    x = (np.array(rows).reshape(count, -1) + shift).astype("f4")
    ends = np.cumsum(list(dims.values()))
    return {
        name: x[:, end - width : end] for (name, width), end in zip(dims.items(), ends, strict=True)
    }


def write_track_table(workspace: Workspace, count: int, columns: Mapping[str, pa.Array]) -> None:
    """The tracks table of tracks 1, 2, ..., `count`: ids, titles and these columns, others null."""
    ids = pa.array(np.arange(1, count + 1))
    titles = pa.array([f"track {n}" for n in range(1, count + 1)])
    table = pa.table({"track_id": ids, "title": titles} | dict(columns))
    for field in TRACKS:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(count, field.type))
    workspace.tracks.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, workspace.tracks / "part-0.parquet")


def write_catalogue(
    workspace: Workspace,
    vectors: Mapping[str, np.ndarray],
    *,
    without: Mapping[str, set[int]] | None = None,
) -> None:
    """Tracks 1, 2, ... with these vectors, none where `without` says so; embeds what is new."""
    count = len(next(iter(vectors.values())))
    ids = np.arange(1, count + 1)
    columns = {}
    for name, rows in vectors.items():
        lacking = (without or {}).get(name, set())
        values = [None if n in lacking else row for n, row in zip(ids, rows, strict=True)]
        columns[f"{name}_vector"] = pa.array(values, type=pa.list_(pa.float32(), rows.shape[1]))
    write_track_table(workspace, count, columns)
    for name in vectors:
        embed_missing(workspace, name)


def embed_missing(workspace: Workspace, modality: str) -> None:
    """New and changed tracks go into parts of their own, in an order that is not that of ids."""
    tracks = pyarrow.dataset.dataset(workspace.tracks, format="parquet")
    encoder = VectorsEncoder(modality, tracks.schema)
    path = workspace.embeddings(modality, encoder.encoder_id)
    path.mkdir(parents=True, exist_ok=True)
    folder = EmbeddingFolder(path, Inputs.read(tracks, encoder.columns, workspace.root))
    folder.look(retry_errors=False)
    todo = np.random.default_rng(0).permutation(folder.todo)
    table = tracks.to_table(columns=["track_id", *encoder.columns])
    for start in range(0, len(todo), PART_ROWS):
        rows = np.searchsorted(folder.inputs.track_ids, todo[start : start + PART_ROWS])
        block = EncoderActor(encoder)(table.take(rows))
        hashes = pa.array(folder.inputs.of(block["track_id"].to_numpy()))
        part = path / f"part-{len(folder.parts()) + 1:05d}.parquet"
        write_part(part, block.append_column(INPUT_HASH, hashes).cast(row_schema(encoder.dim)))
    write_manifest(folder, encoder, EmbedOptions(modality=modality, encoder="vectors"))
