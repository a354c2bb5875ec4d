"""What MME-SID's item side begins with: raw embeddings, codes and code embeddings by item row.

Codes are read through the feature store's view of the generation, raw embeddings from the very
encoders that the generation's codebooks were fitted on, code embeddings from those codebooks. The
driver writes them to one file, which every worker reads.

Shapes: I rows of items with the padding, F families, L levels, K codes, Z code width, D dims.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_repo import schema
from feature_repo.artifacts import Manifest, read_manifest
from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from models.batch import MISSING_CODE, find_rows
from models.mme_sid_items import MmeSidConfig
from ray_jobs.code_embeddings import read_code_embeddings
from ray_jobs.embed import read_embeddings
from ray_jobs.mme_sid_options import TrainMmeSidOptions

if TYPE_CHECKING:
    from torch import Tensor

TABLES_FILE = "tables.safetensors"
RAW, BOOKS, CODES, COUNTS = "raw.", "code_embeddings.", "codes", "counts"
"""Names in the file; the first two before a family."""


def chosen_families(generation: Manifest, options: TrainMmeSidOptions) -> tuple[str, ...]:
    """The modalities that the model reads. InputError for one that the generation lacks."""
    known = tuple(name for name in generation.info["families"] if name != schema.JOINT)
    for name in options.modalities:
        if name not in known:
            raise InputError(
                f"modalities: generation {generation.id} has {', '.join(known)}, got {name!r}; "
                f"run `crescendo quantize --modalities {','.join(options.modalities)}`"
            )
    return options.modalities or known


def write_tables(
    workspace: Workspace,
    generation: Manifest,
    families: tuple[str, ...],
    options: TrainMmeSidOptions,
    track_ids_I: np.ndarray,
    counts_I: np.ndarray,
    folder: Path,
) -> tuple[MmeSidConfig, dict[str, Any]]:
    """Writes TABLES_FILE into `folder`; the model's sizes, and what each family was made of.

    `track_ids_I` rising, row 0 the padding. InputError where the generation has no code embeddings
    to begin with, or its view is not published.
    """
    import torch
    from safetensors.torch import save_file

    from feature_repo.item_table import read_codes_offline
    from feature_repo.store import open_store

    levels, codes, width = generation.info["levels"], generation.info["codes"], options.code_width
    tensors: dict[str, Tensor] = {COUNTS: torch.from_numpy(counts_I)}
    if options.code_start == "quantizer":
        books = read_code_embeddings(workspace, generation.id)
        for family in families:
            tensors[f"{BOOKS}{family}"] = books[family]
        # A level that only tells colliding tracks apart has no embeddings: it is left out.
        levels, codes, width = books[families[0]].shape
    known_N, codes_NFL = read_codes_offline(
        open_store(workspace), generation.id, families, generation.info["levels"]
    )
    codes_IFL = np.full((len(track_ids_I), len(families), levels), MISSING_CODE, dtype=np.int64)
    found_N, there_N = _rows_of(track_ids_I, known_N)
    codes_IFL[found_N] = codes_NFL[there_N][:, :, :levels]
    tensors[CODES] = torch.from_numpy(codes_IFL)
    dims, facts = [], {}
    for family in families:
        codebook_id = generation.parents["codebooks"][family]
        codebook = read_manifest(
            workspace.codebooks / codebook_id, kind="codebook", made_by="quantize", verify=False
        )
        encoder_id = codebook.parents["embeddings"][family]
        embedded_N, vectors_ND, _ = read_embeddings(workspace, family, encoder_id)
        table_ID = np.zeros((len(track_ids_I), vectors_ND.shape[1]), dtype=np.float32)
        found_N, there_N = _rows_of(track_ids_I, embedded_N)
        table_ID[found_N] = vectors_ND[there_N]
        tensors[f"{RAW}{family}"] = torch.from_numpy(table_ID)
        dims.append(table_ID.shape[1])
        facts[family] = {"encoder": encoder_id, "codebook": codebook_id, "tracks": len(found_N)}
    try:
        config = MmeSidConfig(
            families=families,
            dims=tuple(dims),
            levels=levels,
            codes=codes,
            code_width=width,
            hidden=options.hidden,
            temperature=options.temperature,
            consistency=options.consistency,
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    save_file(tensors, folder / TABLES_FILE)
    return config, facts


def read_tables(folder: Path, config: MmeSidConfig) -> dict[str, Any]:
    """Keyword arguments of `MmeSid` from the file that `write_tables` wrote."""
    from safetensors.torch import load_file

    tensors = load_file(folder / TABLES_FILE)
    books = {family: tensors.get(f"{BOOKS}{family}") for family in config.families}
    return {
        "raw": {family: tensors[f"{RAW}{family}"] for family in config.families},
        "codes_IFL": tensors[CODES],
        "code_embeddings": None if None in books.values() else books,
        "counts_I": tensors[COUNTS],
    }


def _rows_of(track_ids_I: np.ndarray, ids_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Item rows of the ids that are among the items, and which ids those are."""
    rows_N, known_N = find_rows(track_ids_I[1:], ids_N)
    return rows_N[known_N] + 1, known_N
