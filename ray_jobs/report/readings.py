"""What the report reads from the workspace: tables, live release, generation, study.

A missing piece is None. A damaged one raises ArtifactError, which the page shows in its place.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq

from feature_repo import schema
from feature_repo.artifacts import MANIFEST, Manifest, file_sha256, newest, read_manifest
from feature_repo.errors import ArtifactError
from feature_repo.workspace import Workspace
from ray_jobs.arrow_sql import literal
from ray_jobs.contract_ids import TABLES
from ray_jobs.generation_table import IDS_FILE
from ray_jobs.study_answers import MODELS_STUDY, answer_file


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Counts of the contract tables; the last three only an ingest records."""

    tracks: int | None
    events: int
    users: int
    source: str | None = None
    rejected_by_reason: dict[str, dict[str, int]] | None = None
    """Per table, rows by reason."""
    expected_rejections: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Release:
    release_id: str
    model_id: str
    generation_id: str
    feature_service: str
    created_at: str


@dataclass(frozen=True, kw_only=True)
class Family:
    """One ID family of a generation."""

    name: str
    tracks: int
    counts_LK: tuple[tuple[int, ...], ...]
    """Tracks per code, most used first, of each level; unused codes are zeros."""
    quality: dict[str, Any] | None
    """What `models.sid_quality.quality` measured when the codebook was fitted."""
    prefix_weight: float | None
    encoders: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Generation:
    generation_id: str
    created_at: str
    codes: int
    families: tuple[Family, ...]
    notes: tuple[str, ...]
    """Codebooks that could not be read."""
    alignment: dict[str, Any] | None
    """What `quantize --align-to` recorded, for a refit of an earlier generation."""


def checked_file(folder: Path, manifest: Manifest, name: str, made_by: str) -> Path:
    """A file of an artifact, if it is the one that was written.

    The report reads few of an artifact's files, so it does not hash the others (model weights).
    """
    path = folder / name
    fix = f"run `crescendo {made_by}` to make it again"
    if name not in manifest.files or not path.is_file():
        raise ArtifactError(f"{manifest.kind} {manifest.id} lacks its file {name}; {fix}")
    if file_sha256(path) != manifest.files[name]:
        raise ArtifactError(f"{manifest.kind} {manifest.id}: {name} was changed; {fix}")
    return path


def read_json(path: Path, made_by: str) -> dict[str, Any] | None:
    """A JSON object, None if there is no such file."""
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not JSON ({error}); run `crescendo {made_by}`") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} holds no JSON object; run `crescendo {made_by}`")
    return value


def read_study(workspace: Workspace) -> dict[str, Any] | None:
    """The newest study's result, as `ray_jobs.study.study` returned it."""
    study = read_json(workspace.reports / answer_file(MODELS_STUDY), "study")
    missing = {"baseline", "models", "differences"} - set(study or ())
    if study is not None and missing:
        raise ArtifactError(f"reports/study.json lacks {sorted(missing)}; run `crescendo study`")
    return study


def read_tables(workspace: Workspace) -> Tables:
    """Counts from the manifest, or counted where the tables have none."""
    folder = workspace.tracks.parent
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder, kind=TABLES, made_by="ingest", verify=False)
        return Tables(
            tracks=manifest.rows["tracks"],
            events=manifest.rows["events"],
            users=manifest.rows["users"],
            source=manifest.options.get("source"),
            rejected_by_reason=manifest.info.get("rejected_by_reason"),
            expected_rejections=tuple(manifest.info.get("expected_rejections", ())),
        )
    events = users = 0
    if workspace.events.exists():
        with duckdb.connect() as connection:
            files = literal(f"{workspace.events}/*.parquet")
            events, users = connection.sql(
                f"SELECT count(*), count(DISTINCT {schema.USER_ID}) FROM read_parquet({files})"
            ).fetchall()[0]
    tracks = None
    if workspace.tracks.exists():
        tracks = sum(pq.read_metadata(path).num_rows for path in workspace.tracks.glob("*.parquet"))
    return Tables(tracks=tracks, events=events, users=users)


def read_live_release(workspace: Workspace) -> Release | None:
    """The release that `releases/CURRENT` names."""
    current = workspace.releases / "CURRENT"
    if not current.exists():
        return None
    release_id = current.read_text().strip()
    found = read_json(workspace.releases / f"{release_id}.json", "release")
    if found is None:
        raise ArtifactError(
            f"releases/CURRENT names {release_id}, which is missing; run `crescendo release`"
        )
    try:
        return Release(**{name: str(found[name]) for name in Release.__dataclass_fields__})
    except KeyError as error:
        raise ArtifactError(
            f"release {release_id} lacks {error}; run `crescendo release` to make it again"
        ) from error


def read_generation(workspace: Workspace, generation_id: str | None) -> Generation | None:
    """That generation, the newest when not given."""
    if generation_id is None:
        if not any(workspace.generations.glob(f"*/{MANIFEST}")):
            return None
        generation_id = newest(workspace.generations, kind="generation", made_by="quantize").id
    folder = workspace.generations / generation_id
    manifest = read_manifest(folder, kind="generation", made_by="quantize", verify=False)
    path = checked_file(folder, manifest, IDS_FILE, "quantize")
    notes: list[str] = []
    families = tuple(
        _read_family(workspace, manifest, name, path, notes) for name in manifest.info["families"]
    )
    return Generation(
        generation_id=generation_id,
        created_at=manifest.created_at,
        codes=manifest.info["codes"],
        families=families,
        notes=tuple(notes),
        alignment=manifest.info.get("alignment"),
    )


def _read_family(
    workspace: Workspace, manifest: Manifest, name: str, ids_path: Path, notes: list[str]
) -> Family:
    column = schema.sid_column(name)
    ids = pq.read_table(ids_path, columns=[column])[column].combine_chunks()
    levels, codes = manifest.info["levels"], manifest.info["codes"]
    # A track without this modality has an empty list, which adds nothing to the flat codes.
    codes_NL = ids.flatten().to_numpy().reshape(-1, levels)
    counts = [np.bincount(codes_NL[:, level], minlength=codes) for level in range(levels)]
    prefix_weight, encoders = None, ()
    codebook_id = manifest.parents.get("codebooks", {}).get(name)
    if codebook_id is not None:
        try:
            book = read_manifest(
                workspace.codebooks / codebook_id, kind="codebook", made_by="quantize", verify=False
            )
            prefix_weight = book.info.get("settings", {}).get("prefix_weight")
            encoders = tuple(book.parents.get("embeddings", {}).values())
        except ArtifactError as error:
            notes.append(str(error))
    return Family(
        name=name,
        tracks=len(codes_NL),
        counts_LK=tuple(tuple(sorted(level.tolist(), reverse=True)) for level in counts),
        quality=manifest.info.get("quality", {}).get(name),
        prefix_weight=prefix_weight,
        encoders=encoders,
    )
