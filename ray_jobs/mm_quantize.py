"""The fit of `crescendo quantize --method mm_rq_vae`: the books of all modalities together.

    crescendo quantize --method mm_rq_vae --modalities collaborative,text,audio --levels 4

A family is a modality; there is no joint one, as it is the alignment that joins them
(`models.mm_rq_vae`). Rows of the fit are the tracks that have one of the modalities at least.

Shape suffixes: N tracks of any modality, M tracks of one, D its dims, L levels.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from feature_repo.errors import InputError
from models.mm_rq_vae import MmRqVaeOptions
from models.mm_rq_vae_training import fit
from models.quantizers import Fitted, Quantizer

ENCODE_ROWS = 1 << 17
"""Rows sent to the device at once when they get the codes of a book."""

Family = tuple[np.ndarray, Tensor]
"""Track ids (M,), rising, and their vectors (M, D)."""


def fit_modalities(
    families: Mapping[str, Family], options: MmRqVaeOptions, device: torch.device
) -> dict[str, Fitted]:
    """Book, codes (M, L) and trace of each family; InputError where they cannot be fitted."""
    x, _ = side_by_side(families)
    try:
        found = fit(x, options, device=device)
    except ValueError as error:
        raise InputError(str(error)) from error
    return {
        name: Fitted(book=book, codes_NL=encode(book, families[name][1], device), trace=trace)
        for name, (book, trace) in found.items()
    }


def side_by_side(families: Mapping[str, Family]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Vectors (N, D) by modality, zeros where a track lacks it; and the rows (M,) of its tracks."""
    everyone = np.unique(np.concatenate([track_ids for track_ids, _ in families.values()]))
    rows = {
        name: torch.from_numpy(np.searchsorted(everyone, track_ids))
        for name, (track_ids, _) in families.items()
    }
    x = {}
    for name, (_, x_MD) in families.items():
        x[name] = torch.zeros(len(everyone), x_MD.shape[1])
        x[name][rows[name]] = x_MD
    return x, rows


def encode(book: Quantizer, x_ND: Tensor, device: torch.device) -> Tensor:
    """Codes (N, L), on the host, of any number of rows."""
    parts = [book.encode(x_MD.to(device)).cpu() for x_MD in x_ND.split(ENCODE_ROWS)]
    return torch.cat(parts)
