"""A generation's IDs beside the vectors that they stand for, family by family.

Shape suffixes: N tracks, D dims, L levels.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from feature_repo.artifacts import Manifest
from feature_repo.errors import ArtifactError
from feature_repo.workspace import Workspace
from models.preprocess import Preprocess
from models.quantizers import Quantizer
from ray_jobs.codebook_store import read_codebook
from ray_jobs.embed import read_embeddings
from ray_jobs.family_vectors import Modality, family_inputs
from ray_jobs.generation_table import IDS_FILE
from ray_jobs.published_ids import published_ids


@dataclass(frozen=True, kw_only=True)
class FamilyIds:
    """One family's IDs, and the preprocessed vectors of their tracks."""

    name: str
    book: Quantizer
    track_id_N: np.ndarray
    x_ND: Tensor
    codes_NL: Tensor
    without_vector: int
    """Tracks with an ID of the family whose embedding is gone."""


def family_ids(workspace: Workspace, generation: Manifest) -> Iterator[FamilyIds]:
    """Every family in turn, the joint one last."""
    books: dict[str, Quantizer] = {}
    modalities: dict[str, Modality] = {}
    for family, codebook_id in generation.parents["codebooks"].items():
        books[family], preprocess, manifest = read_codebook(workspace, codebook_id)
        for modality, fitted in preprocess.items():
            if modality not in modalities:
                encoder_id = manifest.parents["embeddings"][modality]
                modalities[modality] = _read(workspace, modality, encoder_id, fitted)
    path = workspace.generations / generation.id / IDS_FILE
    inputs = family_inputs(modalities)
    for family, book in books.items():
        track_id_N, x_ND = inputs.pop(family)
        known_N, codes_NL = published_ids(path, family)
        held_N = np.isin(track_id_N, known_N)
        if not held_N.any():
            raise ArtifactError(
                f"generation {generation.id} has no {family} ID of any track that is embedded; "
                "run `crescendo quantize`"
            )
        # Both are by track id, ascending.
        row_N = np.searchsorted(known_N, track_id_N[held_N])
        yield FamilyIds(
            name=family,
            book=book,
            track_id_N=track_id_N[held_N],
            x_ND=x_ND if held_N.all() else x_ND[torch.from_numpy(held_N)],
            codes_NL=codes_NL[torch.from_numpy(row_N)],
            without_vector=len(known_N) - len(row_N),
        )


def _read(workspace: Workspace, modality: str, encoder_id: str, fitted: Preprocess) -> Modality:
    track_ids, vectors, _ = read_embeddings(workspace, modality, encoder_id)
    return Modality(
        track_ids=track_ids,
        vectors_ND=fitted.apply(torch.tensor(vectors)),
        preprocess=fitted,
        encoder_id=encoder_id,
    )
