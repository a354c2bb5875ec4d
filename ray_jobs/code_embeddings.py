"""The code embeddings of a generation, from which a recommender that learns IDs can start.

    embeddings = read_code_embeddings(workspace, generation_id)
    embeddings["text"][level, code]                       # what this code adds to the latent vector

They are the latent books of `rq_vae` and `mm_rq_vae` (`codebook_l` in `codebook.safetensors`): the
sum over levels at a track's codes is what its latent vector was quantized to.

Shape suffixes: L levels, K codes, Z latent dims.
"""

import torch
from torch import Tensor

from feature_repo.artifacts import read_manifest
from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from models.rq_vae import RqVaeBook
from ray_jobs.codebook_store import read_codebook

MADE_BY = "quantize --method mm_rq_vae"


def read_code_embeddings(workspace: Workspace, generation_id: str) -> dict[str, Tensor]:
    """By family (L, K, Z) float32. A level that `collisions=extra_level` added has none.

    ArtifactError where an artifact is missing or changed; InputError where the generation has books
    of vectors as they are, which are no code embeddings.
    """
    folder = workspace.generations / generation_id
    generation = read_manifest(folder, kind="generation", made_by=MADE_BY)
    found = {}
    for family, codebook_id in generation.parents["codebooks"].items():
        book, _, _ = read_codebook(workspace, codebook_id)
        if not isinstance(book, RqVaeBook):
            raise InputError(
                f"generation {generation_id} was made by {book.method}, whose {family} codes have "
                f"no embeddings; run `crescendo {MADE_BY}`"
            )
        found[family] = torch.stack(book.latent.residuals)
    if not found:
        raise InputError(f"generation {generation_id} has no codebooks; run `crescendo {MADE_BY}`")
    return found
