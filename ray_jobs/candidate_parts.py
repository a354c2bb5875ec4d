"""The work folder of `score-users`: what is scored already, whoever was killed meanwhile.

    with work_folder(workspace, model_id) as folder:
        done = scored_hashes(folder)
        for users in write_parts(folder, blocks): ...
        drop_others(folder, current_hashes)
        publish_source(workspace, folder, manifest)

`candidates/<model_id>/part-*.parquet`, of `user_scoring.CANDIDATES`. A row is of a history, by its
hash. The parts begin as hard links to those of the published source, and end as its new ones; the
folder goes then, so that candidates lie on the disk once. A killed run leaves it to the next one.

Shapes: N rows.
"""

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import schema
from feature_repo.artifacts import MANIFEST, Manifest, read_manifest, write_artifact
from feature_repo.durable_files import replacing
from feature_repo.errors import ArtifactError
from feature_repo.scratch import only_writer
from feature_repo.workspace import Workspace
from ray_jobs.progress import log
from ray_jobs.user_histories import HISTORY_HASH
from ray_jobs.user_scoring import CANDIDATES

PART_EVERY_S = 10.0
"""At most one part file in this time: a kill loses little, and a long run leaves few files."""


@contextmanager
def work_folder(workspace: Workspace, model_id: str) -> Iterator[Path]:
    """With what was scored before. InputError while another run scores with the same model."""
    folder = workspace.root / "candidates" / model_id
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with only_writer(folder):
        for partial in folder.glob(".part-*"):
            partial.unlink()
        if is_new:
            _link_published(workspace.feature_source(schema.candidates_view_name(model_id)), folder)
        yield folder
        shutil.rmtree(folder)


def scored_hashes(folder: Path) -> np.ndarray:
    """History hashes (N,) of the rows that are there, rising."""
    parts = [pq.read_table(part, columns=[HISTORY_HASH]) for part in _parts(folder)]
    return np.unique(pa.concat_tables([_NO_HASH, *parts])[HISTORY_HASH].to_numpy())


def write_parts(folder: Path, blocks: Iterable[pa.Table]) -> Iterator[int]:
    """Writes blocks of CANDIDATES as they arrive; yields each one's number of users."""
    number = max((int(part.stem.removeprefix("part-")) for part in _parts(folder)), default=0)
    held: list[pa.Table] = []
    written_at = time.monotonic()
    try:
        for block in blocks:
            held.append(block.cast(CANDIDATES))
            yield block.num_rows
            if time.monotonic() - written_at >= PART_EVERY_S:
                number += 1
                _write_part(folder / f"part-{number:05d}.parquet", pa.concat_tables(held))
                held, written_at = [], time.monotonic()
    finally:  # also when a later block fails: what was scored need not be scored again
        if held:
            _write_part(folder / f"part-{number + 1:05d}.parquet", pa.concat_tables(held))


def drop_others(folder: Path, hashes: np.ndarray) -> None:
    """Keeps one row of each of these histories: others are of histories that went on, or of users
    that are gone."""
    left = np.unique(hashes)
    for part in reversed(_parts(folder)):
        hash_N = pq.read_table(part, columns=[HISTORY_HASH])[HISTORY_HASH].to_numpy()
        first_N = np.zeros(len(hash_N), dtype=bool)
        first_N[np.unique(hash_N, return_index=True)[1]] = True
        keep_N = first_N & np.isin(hash_N, left)
        left = np.setdiff1d(left, hash_N[keep_N], assume_unique=True)
        if keep_N.all():
            continue
        kept = pq.read_table(part, schema=CANDIDATES).filter(pa.array(keep_N))
        _write_part(part, kept) if kept.num_rows else part.unlink()


def publish_source(workspace: Workspace, folder: Path, manifest: Manifest) -> None:
    """The parts as the source of the Feast view that `manifest.id` names: links, no copies."""
    with write_artifact(workspace.feature_source(manifest.id), manifest) as partial:
        for part in _parts(folder):
            os.link(part, partial / part.name)  # nobody writes into a part


def _link_published(source: Path, folder: Path) -> None:
    if not (source / MANIFEST).exists():
        return
    try:
        manifest = read_manifest(source, kind="feature_source", made_by="score-users")
    except ArtifactError as error:
        log.warning("earlier candidates are not used: all users are scored", reason=str(error))
        return
    for name in manifest.files:
        os.link(source / name, folder / name)


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))


def _write_part(path: Path, rows: pa.Table) -> None:
    with replacing(path) as stream:
        pq.write_table(rows, stream)


_NO_HASH = pa.schema([CANDIDATES.field(HISTORY_HASH)]).empty_table()
