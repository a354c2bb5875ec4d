"""Codes of a refit that mean what the old codes meant, so that a ranker can be warm-started.

    crescendo quantize --align-to GENERATION

A refit numbers its codes anew: even books that hardly moved would give every track another ID.
Here it starts from the old books, with the old preprocessing, and then each level's codes are
renamed: the Hungarian method finds the renaming under which most tracks of both generations keep
their code of that level. Renaming orders a book's rows anew, prefix halves with them, and changes
no vector, no distance and no x_hat.

Shape suffixes: N rows of the refit, S tracks in both generations, K codes, L levels of the books.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from feature_repo.artifacts import Manifest, newest, read_manifest
from feature_repo.errors import InputError
from feature_repo.workspace import Workspace
from models.preprocess import Preprocess
from models.quantizers import Quantizer, load_quantizer
from ray_jobs.codebook_store import read_codebook
from ray_jobs.embed import KIND
from ray_jobs.generation_table import IDS_FILE
from ray_jobs.new_tracks import prepared_width
from ray_jobs.published_ids import published_ids

METHODS = ("psrq", "rq_kmeans", "vq", "pq")
"""A level's codes can be renamed where they index the rows of a book: not in an RQ-VAE, whose
decoder and later levels a training from other weights makes anew."""
SAME = ("method", "modalities", "levels", "codes", "preprocess")
"""Options of `quantize` that both generations must share."""


@dataclass(frozen=True, kw_only=True)
class OldFamily:
    """One family of the generation that a refit is aligned to."""

    generation_id: str
    family: str
    book: Quantizer
    preprocess: dict[str, Preprocess]
    encoder_ids: dict[str, str]
    track_ids: np.ndarray
    """Rising, of the tracks that have an ID in this family."""
    codes_NL: Tensor
    """Their published codes, without what resolving collisions may have added behind."""


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """A book whose codes were renamed, the rows' codes likewise, and what the IDs went through.

    `churn`: `tracks` in both generations, and for `raw` (the refit's own numbering) and `aligned`
    the share of them whose first 1, 2, ..., L codes are not the published ones.
    """

    book: Quantizer
    codes_NL: Tensor
    names: list[Tensor]
    """The new name (K,) of each of the refit's codes, per level."""
    churn: dict[str, Any]


def read_old(
    workspace: Workspace, generation_id: str, asked: Mapping[str, Any]
) -> dict[str, OldFamily]:
    """The families of the generation to align to.

    `asked` are the refit's options; InputError where one of `SAME` differs or the method's codes
    cannot be matched, and where the vectors are not those that the old books take.
    """
    if asked["method"] not in METHODS:
        raise InputError(
            f"--align-to works for {', '.join(METHODS)}, got method {asked['method']!r}: "
            f"run `crescendo quantize --method {asked['method']}` without it"
        )
    folder = workspace.generations / generation_id
    manifest = read_manifest(folder, kind="generation", made_by="quantize")
    for name in SAME:
        old, new = _plain(manifest.options.get(name)), _plain(asked[name])
        if old != new:
            raise InputError(
                f"generation {generation_id} has {name} {old}, the refit {new}: their codes cannot "
                f"be matched; run `crescendo quantize --align-to {generation_id} "
                f"--{name} {old}`, or without --align-to"
            )
    families = {
        family: _read_family(workspace, manifest, family, codebook_id)
        for family, codebook_id in manifest.parents["codebooks"].items()
    }
    for old_family in families.values():
        _check_weight(old_family, asked)
        _check_vectors(workspace, old_family)
    return families


def _check_weight(old: OldFamily, asked: Mapping[str, Any]) -> None:
    """Books with a prefix half cannot start from books without one, nor the other way round."""
    weight, old_weight = asked["prefix_weight"], old.book.settings().get("prefix_weight", 0)
    if asked["method"] != "psrq" or weight == "auto" or old.book.levels == 1:
        return
    if (weight > 0) != (old_weight > 0):
        raise InputError(
            f"the {old.family} book of {old.generation_id} has prefix weight {old_weight:g}, the "
            f"refit {weight:g}: give --prefix-weight auto, which keeps it, or no --align-to"
        )


def _check_vectors(workspace: Workspace, old: OldFamily) -> None:
    fix = "run `crescendo quantize` without --align-to: IDs of another space cannot be kept"
    dims = 0
    for modality, encoder_id in old.encoder_ids.items():
        made_by = f"embed --modality {modality} --encoder ENCODER"
        found = newest(workspace.embeddings(modality, ""), kind=KIND, made_by=made_by)
        if found.id != encoder_id:
            raise InputError(
                f"family {old.family} of {old.generation_id} was made from {modality} vectors of "
                f"{encoder_id}, but `embed` was last run for {found.id}; {fix}, or run "
                f"`crescendo {made_by}` for {encoder_id} again"
            )
        dims += prepared_width(old.preprocess[modality], found)
    if dims != old.book.dims:
        raise InputError(
            f"the {old.family} book of {old.generation_id} takes {old.book.dims} dims, the refit's "
            f"vectors have {dims}; {fix}"
        )


def _plain(value: Any) -> Any:
    """As the command line takes it; a manifest has lists where options have tuples."""
    return ",".join(value) if isinstance(value, list | tuple) else value


def _read_family(
    workspace: Workspace, manifest: Manifest, family: str, codebook_id: str
) -> OldFamily:
    book, preprocess, of_book = read_codebook(workspace, codebook_id)
    path = workspace.generations / manifest.id / IDS_FILE
    track_ids, codes_NL = published_ids(path, family)
    return OldFamily(
        generation_id=manifest.id,
        family=family,
        book=book,
        preprocess=preprocess,
        encoder_ids=of_book.parents["embeddings"],
        track_ids=track_ids,
        codes_NL=codes_NL[:, : book.levels],
    )


def align(old: OldFamily, track_ids: np.ndarray, book: Quantizer, codes_NL: Tensor) -> Aligned:
    """Renames the codes of a refit of the family; `track_ids` rising, `codes_NL` theirs.

    InputError when the generations have no track in common.
    """
    there = np.isin(track_ids, old.track_ids)
    if not there.any():
        raise InputError(
            f"family {old.family} of {old.generation_id} has none of the refit's "
            f"{len(track_ids):,} tracks; run `crescendo quantize` without --align-to"
        )
    before_SL = old.codes_NL[np.searchsorted(old.track_ids, track_ids[there])]
    raw_SL = codes_NL[torch.from_numpy(there), : book.levels].cpu()
    names = [
        renaming(before_SL[:, level], raw_SL[:, level], size)
        for level, size in enumerate(book.sizes)
    ]
    names = _lowest_copies_first(book, names)
    book, codes_NL = renamed_book(book, names), rename(codes_NL, names)
    churn = {
        "tracks": len(before_SL),
        "raw": changed(before_SL, raw_SL),
        "aligned": changed(before_SL, rename(raw_SL, names)),
    }
    return Aligned(book=book, codes_NL=codes_NL, names=names, churn=churn)


def renaming(before_S: Tensor, after_S: Tensor, codes: int) -> Tensor:
    """The new name (K,) of each code, under which most of the tracks keep their code.

    A code that this leaves open keeps its own name where it can.
    """
    counts_KK = torch.bincount(before_S * codes + after_S, minlength=codes**2).view(codes, codes)
    # One track outweighs the names of all K codes together.
    weight_KK = counts_KK.numpy() * (codes + 1) + np.eye(codes, dtype=np.int64)
    old_K, new_K = linear_sum_assignment(weight_KK, maximize=True)
    name_K = np.empty(codes, dtype=np.int64)
    name_K[new_K] = old_K
    return torch.from_numpy(name_K)


def rename(codes_NL: Tensor, names: Sequence[Tensor]) -> Tensor:
    """The codes under their new names; levels that have none stay as they are."""
    codes_NL = codes_NL.clone()
    for level, name_K in enumerate(names):
        codes_NL[:, level] = name_K.to(codes_NL.device)[codes_NL[:, level]]
    return codes_NL


def renamed_book(book: Quantizer, names: Sequence[Tensor]) -> Quantizer:
    """The book whose row `names[l][k]` of level l is the given one's row k."""
    tensors = book.tensors()
    for name, tensor in tensors.items():
        kind, _, level = name.rpartition("_")
        if kind in ("residual", "prefix", "subspace"):
            order_K = names[int(level)].argsort().to(tensor.device)
            tensors[name] = tensor[order_K]
    return load_quantizer(tensors, book.settings())


def _lowest_copies_first(book: Quantizer, names: list[Tensor]) -> list[Tensor]:
    """`names` under which equal rows of a book keep their order.

    Of equal rows only the first is ever found, so that one must stay the first: the others, which
    a fit of fewer distinct vectors than codes leaves, are nobody's code.
    """
    halves: list[list[Tensor]] = [[] for _ in names]
    for name, tensor in book.tensors().items():
        kind, _, level = name.rpartition("_")
        if kind in ("residual", "prefix", "subspace"):
            halves[int(level)].append(tensor.cpu())
    ordered = []
    for name_K, rows in zip(names, halves, strict=True):
        group_K = torch.unique(torch.cat(rows, 1), dim=0, return_inverse=True)[1]
        # Sorted by (group, row) on one side and by (group, name) on the other.
        by_row = group_K.argsort(stable=True)
        by_name = torch.from_numpy(np.lexsort((name_K.numpy(), group_K.numpy())))
        kept_K = torch.empty_like(name_K)
        kept_K[by_row] = name_K[by_name]
        ordered.append(kept_K)
    return ordered


def changed(before_SL: Tensor, after_SL: Tensor) -> list[float]:
    """Shares of the rows whose first 1, 2, ..., L codes are not the same."""
    differ_SL = (before_SL != after_SL).long().cumsum(1) > 0
    return differ_SL.double().mean(0).tolist()
