"""Embeddings -> codebooks -> a generation: the semantic IDs of the whole catalogue.

    crescendo quantize --method psrq --levels 3 --codes 128 --prefix-weight auto

Fits one codebook a family by one of the methods of `models.quantizers`. Families are the modalities
and `joint` on their concatenation, which `mm_rq_vae` has not: it fits the modalities together.
Writes `codebooks/<codebook_id>/` (`ray_jobs.codebook_store`) and
`generations/<generation_id>/ids.parquet`. A generation that is there keeps every published row: a
run that finds the same books again only adds the tracks that it lacks.

Shape suffixes: N rows, S rows that a fit sees, M rows of one part, D dims, L levels.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from feature_repo import schema
from feature_repo.artifacts import Manifest, content_id, write_artifact
from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from models.mm_rq_vae import MmRqVaeOptions
from models.psrq import PsrqOptions, level_seed
from models.quantizers import Fitted, fit_quantizer
from models.sid_quality import quality
from ray_jobs.align import OldFamily, read_old
from ray_jobs.assign import complete
from ray_jobs.codebook_store import write_codebook
from ray_jobs.family_codes import FamilyCodes, family_codes
from ray_jobs.family_vectors import Modality, family_inputs, read_modality
from ray_jobs.generation_table import IDS_FILE, ids_table
from ray_jobs.mm_quantize import Family, fit_modalities
from ray_jobs.progress import log, step
from ray_jobs.quantize_options import QuantizeOptions


def quantize(workspace: Workspace, options: QuantizeOptions) -> dict[str, Any]:
    """Fits every family and assigns a generation. Returns ids, and the quality per family."""
    device = resolve_device(options.device)
    old: dict[str, OldFamily] = {}
    if options.align_to is not None:
        old = read_old(workspace, options.align_to, asdict(options))
    modalities: dict[str, Modality] = {
        # The old books are of the old space, which the fit's own mean would shift.
        name: read_modality(
            workspace, name, old[name].preprocess[name] if old else options.preprocess
        )
        for name in options.modalities
    }
    families = family_inputs(modalities)
    if options.method == "mm_rq_vae":
        families.pop(schema.JOINT, None)
    samples = _samples(families, options)
    _check_rows(samples, options)
    codebook_ids: dict[str, str] = {}
    published: dict[str, FamilyCodes] = {}
    measured: dict[str, Any] = {}
    fits = _fit_together(workspace, samples, options, old, device)
    for family, (track_ids, x_ND) in families.items():
        with step(f"quantize {family}", tracks=len(track_ids), dims=x_ND.shape[1]):
            x_SD, before = samples[family][1], old[family] if old else None
            fitted = fits.get(family) or fit_quantizer(
                x_SD, options.quantizer(), start=before.book if before else None, device=device
            )
            ids = family_codes(fitted, track_ids, x_ND, x_SD, options, old=before, device=device)
        published[family] = ids
        measured[family] = quality(x_ND, ids.codes_NL, ids.book)
        members = list(modalities) if family == schema.JOINT else [family]
        codebook_ids[family] = write_codebook(
            workspace,
            family,
            ids.book,
            preprocess={name: modalities[name].preprocess for name in members},
            encoder_ids={name: modalities[name].encoder_id for name in members},
            options=asdict(options),
            info={"quality": measured[family], **ids.info},
        )
        log.info(f"family {family}", codebook=codebook_ids[family], **_headline(measured[family]))
    generation_id = content_id("gen", codebook_ids, options.collisions)
    catalogue = np.unique(np.concatenate([track_ids for track_ids, _ in families.values()]))
    resolved = {family: ids.resolved for family, ids in published.items() if ids.resolved}
    manifest = Manifest(
        kind="generation",
        id=generation_id,
        parents={"codebooks": codebook_ids},
        options=asdict(options),
        rows={"tracks": len(catalogue)},
        info={
            "families": list(families),
            "levels": options.id_levels,
            "codes": options.codes,
            "quality": measured,
            "balance": options.balance,
            "collisions": {"mode": options.collisions, "families": resolved},
        },
    )
    answer: dict[str, Any] = {}
    if old:
        answer["alignment"] = {
            "to": options.align_to,
            "families": {family: ids.churn for family, ids in published.items()},
        }
        manifest.info |= answer
    tracks = complete(workspace, generation_id)
    if tracks is None:
        with write_artifact(workspace.generations / generation_id, manifest) as partial:
            codes = {
                family: (families[family][0], ids.codes_NL) for family, ids in published.items()
            }
            pq.write_table(ids_table(catalogue, codes), partial / IDS_FILE)
        tracks = len(catalogue)
    return {
        "generation_id": generation_id,
        "codebook_ids": codebook_ids,
        "tracks": tracks,
        "families": {
            family: _headline(measures) | resolved.get(family, {})
            for family, measures in measured.items()
        },
        **answer,
    }


def resolve_device(device: str) -> torch.device:
    """`auto` is cuda if there is one. InputError for cuda where torch sees none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device=cuda, but torch sees no CUDA device; give --device cpu or auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def _samples(families: dict[str, Family], options: QuantizeOptions) -> dict[str, Family]:
    """What a fit sees of each family: all of it if that is no more than `sample_rows`.

    MM-RQ-VAE sees the same tracks of all modalities.
    """
    if options.sample_rows is None:
        return families
    of_all = None
    if options.method == "mm_rq_vae":
        everyone = np.unique(np.concatenate([track_ids for track_ids, _ in families.values()]))
        of_all = everyone[_drawn(len(everyone), options).numpy()]
    samples = {}
    for family, (track_ids, x_ND) in families.items():
        rows_S = _drawn(len(track_ids), options)
        if of_all is not None:
            rows_S = torch.from_numpy(np.isin(track_ids, of_all)).nonzero()[:, 0]
        whole = len(rows_S) == len(track_ids)
        samples[family] = (track_ids[rows_S.numpy()], x_ND if whole else x_ND[rows_S])
    return samples


def _drawn(rows: int, options: QuantizeOptions) -> Tensor:
    """Numbers (S,), rising, of the rows that a fit sees."""
    # Not a stream that the fit draws from.
    generator = torch.Generator().manual_seed(level_seed(options.seed, options.levels + 1))
    return torch.randperm(rows, generator=generator)[: options.sample_rows].sort().values


def _check_rows(samples: dict[str, Family], options: QuantizeOptions) -> None:
    """Refuses what no fit can be made of, before anything is written."""
    for family, (track_ids, x_SD) in samples.items():
        rows = len(track_ids)
        if options.codes > rows:
            raise InputError(
                f"codes={options.codes} is more than the {rows:,} tracks that family {family} is "
                f"fitted on; run `crescendo quantize --codes {max(1, rows // 4)}`, or less"
            )
        if options.workers > rows:
            raise InputError(
                f"workers={options.workers} is more than the {rows:,} tracks that family {family} "
                "is fitted on; give fewer --workers"
            )
        if options.method == "pq" and options.levels > x_SD.shape[1]:
            raise InputError(
                f"levels={options.levels} is more than the {x_SD.shape[1]} dims of family {family}:"
                f" pq needs a dim for each; run `crescendo quantize --levels {x_SD.shape[1]}`"
            )


def _fit_together(
    workspace: Workspace,
    samples: dict[str, Family],
    options: QuantizeOptions,
    old: dict[str, OldFamily],
    device: torch.device,
) -> dict[str, Fitted]:
    """The fits that are made at once: of all families, or none.

    Those of an MM-RQ-VAE are one fit; others share a group of workers, which takes long to start.
    """
    quantizer, workers, folder = options.quantizer(), options.workers, workspace.codebooks
    if workers == 1 and not isinstance(quantizer, MmRqVaeOptions):
        return {}
    with step("fit", workers=workers):
        if isinstance(quantizer, MmRqVaeOptions):
            if workers == 1:
                return fit_modalities(samples, quantizer, device)
            from ray_jobs.mm_quantize_workers import fit_modalities_in_workers

            return fit_modalities_in_workers(
                samples, quantizer, workers=workers, device=options.device, folder=folder
            )
        from ray_jobs.quantize_workers import Job, fit_in_workers

        assert isinstance(quantizer, PsrqOptions)
        jobs = [
            Job(x_ND=x_SD, options=quantizer, start=old[family].book if old else None)
            for family, (_, x_SD) in samples.items()
        ]
        fits = fit_in_workers(jobs, workers=workers, device=options.device, folder=folder)
        return dict(zip(samples, fits, strict=True))


def _headline(measures: dict[str, Any]) -> dict[str, Any]:
    return {
        "collision_rate": measures["full"]["collision_rate"],
        "distinct_codes": measures["full"]["distinct"],
        "relative_mse": measures["levels"][-1]["relative_mse"],
    }
