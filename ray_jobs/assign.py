"""Semantic IDs for tracks that came after a generation was made, from its frozen codebooks.

    crescendo assign [--generation GENERATION]

Appends to `generations/<generation_id>/ids.parquet`. A published ID never moves: rows that are
there stay byte for byte, whatever their embedding says now.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from torch import Tensor

from feature_repo import schema
from feature_repo.artifacts import newest, read_manifest, write_artifact
from feature_repo.workspace import Workspace
from models.preprocess import Preprocess
from models.psrq import Codebook
from models.psrq import assign as assign_codes
from ray_jobs.embed import read_embeddings
from ray_jobs.generation_table import IDS_FILE, ids_table
from ray_jobs.quantize import CODEBOOK_FILE, Modality, family_inputs


def assign(workspace: Workspace, generation_id: str | None = None) -> dict[str, Any]:
    """Returns `generation_id`, how many tracks were `assigned` and how many were `unchanged`."""
    if generation_id is None:
        generation_id = newest(workspace.generations, kind="generation", made_by="quantize").id
    folder = workspace.generations / generation_id
    manifest = read_manifest(folder, kind="generation", made_by="quantize")
    published = pq.read_table(folder / IDS_FILE)
    known = published[schema.TRACK_ID].to_numpy()

    tensors: dict[str, dict[str, Tensor]] = {}
    encoder_ids: dict[str, str] = {}
    for family, codebook_id in manifest.parents["codebooks"].items():
        codebook_folder = workspace.codebooks / codebook_id
        book = read_manifest(codebook_folder, kind="codebook", made_by="quantize")
        tensors[family] = load_file(codebook_folder / CODEBOOK_FILE)
        encoder_ids.update(book.parents["embeddings"])
    modalities = {
        name: _new_tracks(workspace, name, encoder_id, tensors[name], known, manifest.options)
        for name, encoder_id in encoder_ids.items()
    }
    codes: dict[str, tuple[np.ndarray, Tensor]] = {}
    for family, (track_ids, vectors_ND) in family_inputs(modalities).items():
        book = read_manifest(
            workspace.codebooks / manifest.parents["codebooks"][family],
            kind="codebook",
            made_by="quantize",
        )
        books = {name: tensor for name, tensor in tensors[family].items() if "." not in name}
        codebook = Codebook.from_tensors(books, prefix_weight=book.info["prefix_weight"])
        found_NL = torch.zeros(0, codebook.levels, dtype=torch.int64)
        if len(track_ids):
            found_NL = assign_codes(codebook, vectors_ND)
        codes[family] = (track_ids, found_NL)
    new = np.unique(np.concatenate([track_ids for track_ids, _ in codes.values()]))
    if len(new):
        manifest.rows = {"tracks": len(known) + len(new)}
        with write_artifact(folder, manifest) as partial:
            pq.write_table(pa.concat_tables([published, ids_table(new, codes)]), partial / IDS_FILE)
    return {"generation_id": generation_id, "assigned": len(new), "unchanged": len(known)}


def _new_tracks(
    workspace: Workspace,
    modality: str,
    encoder_id: str,
    tensors: dict[str, Tensor],
    known: np.ndarray,
    options: dict[str, Any],
) -> Modality:
    track_ids, vectors, _ = read_embeddings(workspace, modality, encoder_id)
    new = ~np.isin(track_ids, known)
    prefix = f"{modality}."
    preprocess = Preprocess.from_tensors(
        options["preprocess"],
        {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)},
    )
    x_ND = torch.tensor(vectors[new])
    return Modality(
        track_ids=track_ids[new],
        vectors_ND=preprocess.apply(x_ND) if new.any() else x_ND,
        preprocess=preprocess,
        encoder_id=encoder_id,
    )
