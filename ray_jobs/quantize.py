"""Embeddings -> codebooks -> a generation: the semantic IDs of the whole catalogue.

    crescendo quantize --method psrq --levels 3 --codes 128 --prefix-weight auto

Fits one codebook a family (each modality, and `joint` on their concatenation). Writes
`codebooks/<codebook_id>/codebook.safetensors` (books, and the preprocessing under
`<modality>.<tensor>`) and `generations/<generation_id>/ids.parquet`.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from feature_repo import schema
from feature_repo.artifacts import Manifest, content_id, write_artifact
from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from models.preprocess import Preprocess, joint
from models.psrq import Codebook, PsrqOptions, fit
from models.sid_quality import quality
from ray_jobs.embed import read_embeddings
from ray_jobs.generation_table import IDS_FILE, ids_table
from ray_jobs.progress import log, step

METHODS = ("psrq", "rq", "vq")
CODEBOOK_FILE = "codebook.safetensors"


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    method: str = "psrq"
    """`psrq`; `rq` is psrq with prefix weight 0; `vq` is its first level alone."""
    modalities: tuple[str, ...] = ("text", "audio")
    levels: int = 3
    codes: int = 128
    prefix_weight: float | Literal["auto"] = "auto"
    """Weight of the prefix in the clustering: a number, or `auto` from the data."""
    iterations: int = 25
    """Most centroid updates of one level."""
    preprocess: str = "l2"
    """What is done to each modality's vectors first: none, l2, standard or whiten."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"method must be one of {METHODS}, got {self.method!r}")
        if not self.modalities:
            raise InputError("modalities must name at least one modality, got none")
        try:
            self.psrq()
        except ValueError as error:
            raise InputError(str(error)) from error

    def psrq(self) -> PsrqOptions:
        """The quantizer's options: RQ and VQ are special cases of PSRQ."""
        return PsrqOptions(
            levels=1 if self.method == "vq" else self.levels,
            codes=self.codes,
            prefix_weight=0.0 if self.method == "rq" else self.prefix_weight,
            iterations=self.iterations,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class Modality:
    """One modality's vectors of the tracks that have them, preprocessed."""

    track_ids: np.ndarray
    vectors_ND: Tensor
    preprocess: Preprocess
    encoder_id: str


def quantize(workspace: Workspace, options: QuantizeOptions) -> dict[str, Any]:
    """Fits every family and assigns a generation. Returns ids, and the quality per family."""
    modalities = {name: _read(workspace, name, options) for name in options.modalities}
    families = family_inputs(modalities)
    codebook_ids: dict[str, str] = {}
    codes: dict[str, tuple[np.ndarray, Tensor]] = {}
    measured: dict[str, Any] = {}
    for family, (track_ids, vectors_ND) in families.items():
        with step(f"quantize {family}", tracks=len(track_ids), dims=vectors_ND.shape[1]):
            codebook, codes_NL, _ = fit(vectors_ND, options.psrq())
        codes[family] = (track_ids, codes_NL)
        measured[family] = quality(vectors_ND, codes_NL, codebook)
        codebook_ids[family] = _write_codebook(
            workspace, family, codebook, modalities, options, {"quality": measured[family]}
        )
        log.info(f"family {family}", codebook=codebook_ids[family], **_headline(measured[family]))
    generation_id = content_id("gen", codebook_ids)
    catalogue = np.unique(np.concatenate([ids for ids, _ in codes.values()]))
    manifest = Manifest(
        kind="generation",
        id=generation_id,
        parents={"codebooks": codebook_ids},
        options=asdict(options),
        rows={"tracks": len(catalogue)},
        info={
            "families": list(families),
            "levels": options.psrq().levels,
            "codes": options.codes,
            "quality": measured,
        },
    )
    with write_artifact(workspace.generations / generation_id, manifest) as partial:
        pq.write_table(ids_table(catalogue, codes), partial / IDS_FILE)
    return {
        "generation_id": generation_id,
        "codebook_ids": codebook_ids,
        "tracks": len(catalogue),
        "families": {family: _headline(measures) for family, measures in measured.items()},
    }


def _read(workspace: Workspace, modality: str, options: QuantizeOptions) -> Modality:
    track_ids, vectors, encoder_id = read_embeddings(workspace, modality, None)
    x_ND = torch.tensor(vectors)
    preprocess = Preprocess.fit(x_ND, options.preprocess)
    return Modality(
        track_ids=track_ids,
        vectors_ND=preprocess.apply(x_ND),
        preprocess=preprocess,
        encoder_id=encoder_id,
    )


def family_inputs(modalities: dict[str, Modality]) -> dict[str, tuple[np.ndarray, Tensor]]:
    """Tracks and vectors of every family; the joint family last, if there is more than one.

    A track that lacks a modality has no ID in its family, and zeros for it in the joint vector:
    after centring, that is the modality's mean.
    """
    families = {name: (m.track_ids, m.vectors_ND) for name, m in modalities.items()}
    if len(modalities) > 1:
        everyone = np.unique(np.concatenate([m.track_ids for m in modalities.values()]))
        aligned = {}
        for name, modality in modalities.items():
            rows = torch.from_numpy(np.searchsorted(everyone, modality.track_ids))
            aligned[name] = torch.zeros(len(everyone), modality.vectors_ND.shape[1])
            aligned[name][rows] = modality.vectors_ND
        families[schema.JOINT] = (everyone, joint(aligned))
    return families


def _write_codebook(
    workspace: Workspace,
    family: str,
    codebook: Codebook,
    modalities: dict[str, Modality],
    options: QuantizeOptions,
    info: dict[str, Any],
) -> str:
    members = list(modalities) if family == schema.JOINT else [family]
    tensors = {name: tensor.contiguous() for name, tensor in codebook.tensors().items()}
    for name in members:
        for key, tensor in modalities[name].preprocess.tensors().items():
            tensors[f"{name}.{key}"] = tensor.contiguous()
    settings = {"prefix_weight": codebook.prefix_weight, "method": codebook.method}
    encoder_ids = {name: modalities[name].encoder_id for name in members}
    codebook_id = content_id("codebook", save(tensors), settings, encoder_ids)
    manifest = Manifest(
        kind="codebook",
        id=codebook_id,
        parents={"embeddings": encoder_ids},
        options=asdict(options),
        info=settings | {"family": family, "preprocess": options.preprocess} | info,
    )
    with write_artifact(workspace.codebooks / codebook_id, manifest) as partial:
        save_file(tensors, partial / CODEBOOK_FILE)
    return codebook_id


def _headline(measures: dict[str, Any]) -> dict[str, Any]:
    return {
        "collision_rate": measures["full"]["collision_rate"],
        "distinct_codes": measures["full"]["distinct"],
        "relative_mse": measures["levels"][-1]["relative_mse"],
    }
