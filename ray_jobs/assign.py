"""Semantic IDs for tracks that came after a generation was made, from its frozen codebooks.

    crescendo assign [--generation GENERATION]

Appends to `generations/<generation_id>/ids.parquet`. A published ID never moves: rows that are
there stay value for value, whatever their embedding says now. Watches whether the new tracks are
still like those of the fit (`ray_jobs.drift`): figures and warnings go into the answer, the log
and the generation's manifest, info["drift"].
"""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from feature_repo import schema
from feature_repo.artifacts import (
    MANIFEST,
    Manifest,
    newest,
    read_manifest,
    recover,
    write_artifact,
    write_json,
)
from feature_repo.errors import ArtifactError, InputError
from feature_repo.scratch import only_writer
from feature_repo.workspace import Workspace
from models.collisions import resolve
from models.preprocess import Preprocess
from models.quantizers import Quantizer
from ray_jobs.codebook_store import read_codebook
from ray_jobs.drift import Cohort, DriftLimits, judge
from ray_jobs.generation_table import IDS_FILE, ids_table
from ray_jobs.new_tracks import Chunk, NewTracks, find_new_tracks
from ray_jobs.progress import log, step
from ray_jobs.published_ids import copy_ids, published_ids


@dataclass(kw_only=True)
class Family:
    """One family's frozen book, and what its new tracks have shown so far."""

    name: str
    book: Quantizer
    preprocess: dict[str, Preprocess]
    encoder_ids: dict[str, str]
    profile: dict[str, Any]
    collisions: str | None
    taken_PL: Tensor
    """IDs that are given already, where collisions are resolved."""
    cohort: Cohort | None = None


def assign(
    workspace: Workspace, generation_id: str | None = None, limits: DriftLimits | None = None
) -> dict[str, Any]:
    """Returns `generation_id`, how many tracks were `assigned` and how many `unchanged`.

    Of each family `drift`, the figures of its new tracks, and the `warnings` that they gave.
    Collisions are resolved as in the generation's fit, chunk by chunk.
    """
    if generation_id is None:
        generation_id = newest(workspace.generations, kind="generation", made_by="quantize").id
    folder = workspace.generations / generation_id
    recover(folder)
    read_manifest(folder, kind="generation", made_by="quantize", verify=False)
    with only_writer(folder):
        manifest = read_manifest(folder, kind="generation", made_by="quantize")
        if not manifest.parents["codebooks"]:
            raise InputError(
                f"generation {generation_id} is a control of a study and has no codebooks; run "
                "`crescendo assign --generation` with a generation that `quantize` made"
            )
        known = pq.read_table(folder / IDS_FILE, columns=[schema.TRACK_ID])[schema.TRACK_ID]
        families = [
            _read_family(workspace, manifest, name, codebook_id)
            for name, codebook_id in manifest.parents["codebooks"].items()
        ]
        preprocess = {key: one for family in families for key, one in family.preprocess.items()}
        encoder_ids = {key: one for family in families for key, one in family.encoder_ids.items()}
        new = find_new_tracks(workspace, preprocess, encoder_ids, known.to_numpy())
        for family in families:
            _check_dims(family, new)
        if len(new.track_ids):
            with step("assign", tracks=len(new.track_ids)):
                _append(folder, manifest, families, new, limits or DriftLimits())
        drift = manifest.info.get("drift", {}) if len(new.track_ids) else {}
    return {
        "generation_id": generation_id,
        "assigned": len(new.track_ids),
        "unchanged": len(known),
        "drift": {
            name: figures["batch"]
            for name, figures in drift.get("families", {}).items()
            if "batch" in figures
        },
        "warnings": drift.get("warnings", []),
    }


def complete(workspace: Workspace, generation_id: str) -> int | None:
    """For `quantize`, whose fit found a generation's books again: how many tracks it has then.

    Published rows stay, also of tracks that were assigned later or are gone from the catalogue;
    tracks without a row are assigned. The generation becomes the newest, being the last that was
    asked for. None where there is no whole generation of this id: it is to be written.
    """
    folder = workspace.generations / generation_id
    recover(folder)
    if not folder.exists():
        return None
    try:
        read_manifest(folder, kind="generation", made_by="quantize")
    except ArtifactError as error:  # which names `crescendo quantize` as what mends it
        log.warning("generation is written anew", why=str(error))
        return None
    found = assign(workspace, generation_id)
    if newest(workspace.generations, kind="generation", made_by="quantize").id != generation_id:
        with only_writer(folder):
            manifest = read_manifest(folder, kind="generation", made_by="quantize")
            manifest.created_at = datetime.now(UTC).isoformat()
            write_json(folder / MANIFEST, asdict(manifest))
    return int(found["assigned"]) + int(found["unchanged"])


def _read_family(workspace: Workspace, manifest: Manifest, name: str, codebook_id: str) -> Family:
    book, preprocess, of_book = read_codebook(workspace, codebook_id)
    if "fitting" not in of_book.info:
        raise ArtifactError(
            f"codebook {codebook_id} does not say what its fitting set cost; "
            "run `crescendo quantize` to make one that does"
        )
    collisions = manifest.options.get("collisions")
    taken_PL = torch.zeros(0, book.levels, dtype=torch.int64)
    if collisions is not None:
        taken_PL = published_ids(workspace.generations / manifest.id / IDS_FILE, name)[1]
    return Family(
        name=name,
        book=book,
        preprocess=preprocess,
        encoder_ids=of_book.parents["embeddings"],
        profile=of_book.info["fitting"],
        collisions=collisions,
        taken_PL=taken_PL,
    )


def _check_dims(family: Family, new: NewTracks) -> None:
    dims = sum(new.modalities[name].width for name in family.preprocess)
    if dims != family.book.dims:
        raise InputError(
            f"the {family.name} codebook takes {family.book.dims} dims, its vectors have {dims}; "
            "run `crescendo quantize` to make a generation of these vectors"
        )


def _append(
    folder: Path, manifest: Manifest, families: list[Family], new: NewTracks, limits: DriftLimits
) -> None:
    """Writes the generation again, its rows as they are and the new ones behind."""
    published = pq.ParquetFile(folder / IDS_FILE)
    schema_of_ids = published.schema_arrow
    with write_artifact(folder, manifest) as partial:
        with pq.ParquetWriter(partial / IDS_FILE, schema_of_ids) as writer:
            copy_ids(published, writer)
            for chunk in new.chunks(partial / "vectors.f32"):
                codes = {family.name: _encode(family, chunk) for family in families}
                writer.write_table(ids_table(chunk.track_ids, codes).cast(schema_of_ids))
        manifest.rows = {"tracks": published.metadata.num_rows + len(new.track_ids)}
        manifest.info["drift"] = _drift(manifest.info.get("drift"), families, limits)


def _encode(family: Family, chunk: Chunk) -> tuple[np.ndarray, Tensor]:
    """Ids and codes of the chunk's tracks that have a vector of the family."""
    track_ids, x_MD = chunk.of(list(family.preprocess))
    if not len(track_ids):
        return track_ids, torch.zeros(0, family.book.levels, dtype=torch.int64)
    codes_ML = family.book.encode(x_MD)
    seen = Cohort.measure(family.profile, family.book, x_MD, codes_ML)
    family.cohort = seen if family.cohort is None else family.cohort + seen
    if family.collisions is not None:
        resolved = resolve(
            codes_ML,
            family.collisions,
            codes=family.book.sizes[-1],
            distances=lambda index: family.book.last_distances(x_MD[index], codes_ML[index]),
            taken_PL=family.taken_PL,
        )
        codes_ML = resolved.codes_NL
        family.taken_PL = torch.cat([family.taken_PL, codes_ML])
    return track_ids, codes_ML


def _drift(
    earlier: dict[str, Any] | None, families: list[Family], limits: DriftLimits
) -> dict[str, Any]:
    """Figures of this run's tracks and of all since the fit, by family; and the warnings."""
    stored: dict[str, Any] = dict(earlier["families"]) if earlier else {}
    warnings: list[str] = []
    for family in families:
        if family.cohort is None:
            stored.get(family.name, {}).pop("batch", None)
            continue
        before, total = stored.get(family.name), family.cohort
        if before is not None:
            total = Cohort.from_json(before["sums"]) + total
        figures: dict[str, Any] = {}
        for name, cohort in (("batch", family.cohort), ("since_fit", total)):
            figures[name], found = judge(family.profile, cohort, limits)
            lines = [f"{family.name}: {line}" for line in found]
            warnings += [line for line in lines if line not in warnings]
        stored[family.name] = {**figures, "sums": total.to_json()}
    for line in warnings:
        log.warning("drift", what=line, fix="crescendo quantize --align-to GENERATION")
    return {"families": stored, "warnings": warnings, "limits": asdict(limits)}
