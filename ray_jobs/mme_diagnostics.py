"""Embedding collapse and forgetting of a trained MME-SID model, or of a generation.

    crescendo collapse --model-id MODEL          crescendo forgetting --model-id MODEL
    crescendo collapse --generation GENERATION   crescendo forgetting --generation GENERATION

`collapse` takes the spectrum of every table (`models/collapse.py`); `forgetting` Kendall's tau of
every listener between the original embeddings and a learned space (`models/forgetting.py`), over
the histories of the test targets, read from the feature store. Each writes a page and a JSON file
under `reports/` and prints a table.

A model has its families' raw embeddings, projected ones, semantic-ID embeddings, what the language
model reads and what it scores with; a generation the vectors that it was fitted on and the sums of
its code embeddings.

Shape suffixes: N items without padding, D and Z dims, L levels, K codes, P places of histories,
V users with a test target.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feature_repo.artifacts import read_manifest, write_json
from feature_repo.errors import ArtifactError, InputError
from feature_repo.mme_sid_reader import MADE_BY, read_mme_sid
from feature_repo.workspace import Workspace
from models.batch import find_rows
from models.collapse import Spectrum, spectrum
from models.forgetting import By, Taus, among, forgetting
from models.mme_sid import OWN
from models.mme_sid_items import MmeSidConfig, MmeSidItems
from models.next_items import last_rows
from ray_jobs.code_embeddings import read_code_embeddings
from ray_jobs.generation_vectors import family_ids
from ray_jobs.next_item_set import NextItemOptions, next_item_set, read_next_items
from ray_jobs.progress import step
from ray_jobs.report.diagnostics_page import write_collapse_page, write_forgetting_page

NEARNESS: tuple[By, ...] = ("distance", "cosine")


@dataclass(frozen=True, kw_only=True)
class DiagnosticsOptions:
    """Which artifact: a model or a generation."""

    model_id: str | None = None
    generation: str | None = None
    length: int = 50
    """Newest listens of a history, for a generation's forgetting; a model has its own."""

    def __post_init__(self) -> None:
        if (self.model_id is None) == (self.generation is None):
            raise InputError(
                "give a model id or a generation, and not both; "
                f"got model_id={self.model_id}, generation={self.generation}"
            )

    @property
    def name(self) -> str:
        """The artifact's id."""
        return str(self.model_id or self.generation)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two spaces of the same tracks: is the order of the first kept in the second?"""

    track_ids_N: np.ndarray
    """Rising; those that have an original embedding."""
    original_ND: Tensor
    new_NZ: Tensor


@dataclass(frozen=True, kw_only=True)
class Spaces:
    tables: dict[str, Tensor]
    """Whose spectra are taken: (N, D) by name."""
    pairs: dict[str, Pair]


def collapse(
    workspace: Workspace, options: DiagnosticsOptions
) -> tuple[dict[str, Any], dict[str, Spectrum]]:
    """The answer (`id`, `path`, `json` and `tables`: ranks by name), and the spectra."""
    with step("collapse", of=options.name):
        tables = _spaces(workspace, options).tables
        spectra = {name: spectrum(table) for name, table in tables.items()}
    found = {name: one.plain() for name, one in spectra.items()}
    page = workspace.reports / f"collapse-{options.name}.html"
    numbers = page.with_suffix(".json")
    values = {name: one.singular_values_D.tolist() for name, one in spectra.items()}
    write_json(numbers, {"id": options.name, "tables": found, "singular_values": values})
    write_collapse_page(page, options.name, spectra)
    return {"id": options.name, "path": str(page), "json": str(numbers), "tables": found}, spectra


def forgotten(
    workspace: Workspace, options: DiagnosticsOptions
) -> tuple[dict[str, Any], dict[str, dict[str, Taus]]]:
    """The answer (`id`, `path`, `json` and `taus`: by pair and nearness), and every user's."""
    with step("forgetting", of=options.name):
        taus = _taus(workspace, options)
    found = {
        name: {by: one.plain() for by, one in of_pair.items()} for name, of_pair in taus.items()
    }
    page = workspace.reports / f"forgetting-{options.name}.html"
    numbers = page.with_suffix(".json")
    write_json(numbers, {"id": options.name, "taus": found})
    write_forgetting_page(page, options.name, taus)
    return {"id": options.name, "path": str(page), "json": str(numbers), "taus": found}, taus


def _spaces(workspace: Workspace, options: DiagnosticsOptions) -> Spaces:
    if options.model_id is not None:
        return _of_model(workspace, options.model_id)
    return _of_generation(workspace, str(options.generation))


@torch.no_grad()
def _of_model(workspace: Workspace, model_id: str) -> Spaces:
    """Without its backbone: the item side alone makes all tables."""
    read = read_mme_sid(workspace, model_id)
    own = {
        name.removeprefix(OWN): tensor
        for name, tensor in read.tensors().items()
        if name.startswith(OWN)
    }
    config = MmeSidConfig(**read.config["mme_sid"])
    rows, width = read.item_matrix_ID.shape
    shape = (config.levels, config.codes, config.code_width)
    named = zip(config.families, config.dims, strict=True)
    items = MmeSidItems(
        config,
        width,
        raw={family: torch.ones(rows, dim) for family, dim in named},
        codes_IFL=own["codes_IFL"],
        code_embeddings={family: torch.ones(shape) for family in config.families},
        counts_I=torch.ones(rows, dtype=torch.int64),
    ).eval()
    try:
        items.load_state_dict(own)
    except RuntimeError as error:
        raise ArtifactError(
            f"the tensors of model {model_id} do not fit its config ({error}); "
            f"run `crescendo {MADE_BY}`"
        ) from error
    every_N = torch.arange(1, rows)
    tables: dict[str, Tensor] = {}
    pairs: dict[str, Pair] = {}
    for place, (family, dim) in enumerate(zip(config.families, config.dims, strict=True)):
        if config.levels:
            tables[f"{family} semantic IDs"] = items.code_vectors(place, every_N)
        if not dim:
            continue
        raw_ND = getattr(items, f"raw_{place}")[1:]
        tables[f"{family} raw"] = raw_ND
        tables[f"{family} projected"] = items.projections[str(place)](raw_ND)
        known_N = (raw_ND != 0).any(1)
        for kind in ("projected", *(("semantic IDs",) if config.levels else ())):
            pairs[f"{family} {kind}"] = Pair(
                track_ids_N=read.track_ids_I[1:][known_N.numpy()],
                original_ND=raw_ND[known_N],
                new_NZ=tables[f"{family} {kind}"][known_N],
            )
    tables["read by the LLM"] = items.inputs(every_N)
    tables["scored with"] = torch.from_numpy(read.item_matrix_ID[1:]).float()
    return Spaces(tables=tables, pairs=pairs)


def _of_generation(workspace: Workspace, generation_id: str) -> Spaces:
    generation = read_manifest(
        workspace.generations / generation_id, kind="generation", made_by="quantize"
    )
    books = read_code_embeddings(workspace, generation_id)
    tables: dict[str, Tensor] = {}
    pairs: dict[str, Pair] = {}
    for ids in family_ids(workspace, generation):
        book_LKZ = books[ids.name]
        # A level that only tells colliding tracks apart has no embeddings.
        codes_NL = ids.codes_NL[:, : len(book_LKZ)]
        summed_NZ = book_LKZ[torch.arange(len(book_LKZ)), codes_NL].sum(1)
        tables[f"{ids.name} vectors"] = ids.x_ND
        tables[f"{ids.name} code embeddings"] = summed_NZ
        pairs[f"{ids.name} code embeddings"] = Pair(
            track_ids_N=ids.track_id_N, original_ND=ids.x_ND, new_NZ=summed_NZ
        )
    return Spaces(tables=tables, pairs=pairs)


def _taus(workspace: Workspace, options: DiagnosticsOptions) -> dict[str, dict[str, Taus]]:
    pairs = _spaces(workspace, options).pairs
    if not pairs:
        raise InputError(
            f"{options.name} has no raw embeddings, hence no order that could be forgotten"
        )
    if options.model_id is not None:
        read = read_mme_sid(workspace, options.model_id)
        set_id, length = read.manifest.parents["next_item_set"], read.length
    else:
        length = options.length
        set_id = next_item_set(workspace, NextItemOptions(length=length)).id
    folder = workspace.training_sets / set_id
    read_manifest(folder, kind="next_item_set", made_by="sasrec")
    data = read_next_items(folder)
    held = data.held_out("test")
    rows_P, lengths_V = last_rows(held.rows_P, held.lengths_V, np.arange(len(held.users_V)), length)
    found: dict[str, dict[str, Taus]] = {}
    for name, pair in pairs.items():
        # Rows of the pair's tables, by those of the set.
        row_I, known_I = find_rows(pair.track_ids_N, data.track_ids_I)
        known_I[0] = False  # the padding
        kept_P, kept_V, targets_V = among(known_I, rows_P, lengths_V, held.targets_V)
        found[name] = {
            by: forgetting(
                pair.original_ND, pair.new_NZ, row_I[kept_P], kept_V, row_I[targets_V], by=by
            )
            for by in NEARNESS
        }
    return found
