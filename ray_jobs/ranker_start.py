"""What a new ranker begins with beside random weights: number statistics, code tables.

The driver makes the tensors, by name among the ranker's weights; workers load them over a new
ranker's, before the first step.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from feature_repo.artifacts import Manifest, read_manifest
from feature_repo.codebook_reader import NumpyCodebook, read_codebook
from feature_repo.errors import InputError
from feature_repo.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from models.ranker_config import RankerConfig

CODE_STARTS = ("random", "centroids")
STEMS = {"pq": "subspace", "rq_vae": "codebook", "mm_rq_vae": "codebook"}
"""Names of a book's levels in its file; `residual` where not listed."""


def start_tensors(
    workspace: Workspace, data: Manifest, config: "RankerConfig", code_start: str, seed: int
) -> "dict[str, Tensor]":
    """The tensors that differ from random ones, for a ranker on the training set `data`.

    InputError where centroids are asked of a generation or for a ranker that has none.
    """
    from safetensors.torch import load_file

    from ray_jobs.training_set import NUMBERS_FILE

    tensors = {}
    if config.numbers:
        statistics = load_file(workspace.training_sets / data.id / NUMBERS_FILE)
        tensors = {f"numbers.{name}": tensor for name, tensor in statistics.items()}
    if code_start == "centroids":
        tensors |= _code_tables(workspace, data.parents["generation"], config, seed)
    return tensors


def _code_tables(
    workspace: Workspace, generation_id: str, config: "RankerConfig", seed: int
) -> "dict[str, Tensor]":
    from models.code_start import code_table_families, start_tables

    families = set(code_table_families(config).values())
    if not families:
        raise InputError(
            f"code_start must be random for {config.model}, which has no code tables, "
            "got 'centroids'"
        )
    folder = workspace.generations / generation_id
    generation = read_manifest(folder, kind="generation", made_by="quantize")
    books = {}
    for family in families:
        codebook_id = generation.parents["codebooks"].get(family)
        if codebook_id is None:
            raise InputError(
                f"generation {generation_id} names no codebook of family {family}, so that its "
                "codes have no centroids; run `crescendo quantize`, or train with "
                "--code-start random"
            )
        books[family] = _levels(read_codebook(workspace.codebooks / codebook_id))
    return start_tables(config, books, seed=seed)


def _levels(book: NumpyCodebook) -> "Sequence[np.ndarray]":
    """What each code of each level adds to the reconstruction, (K, D) a level.

    RQ-VAE's codes add to its latent vector.
    """
    from models.code_start import slices_in_place

    stem = STEMS.get(book.method, "residual")
    levels = [book.tensors[f"{stem}_{level}"] for level in range(book.levels)]
    return slices_in_place(levels) if book.method == "pq" else levels
