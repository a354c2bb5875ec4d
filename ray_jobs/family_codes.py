"""One family's fitted book -> the codes of the whole catalogue, aligned and resolved as asked.

Shape suffixes: N rows, S rows that the fit saw, L levels, D dims.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import collisions
from models.quantizers import Fitted, Quantizer
from ray_jobs.align import OldFamily, align, rename
from ray_jobs.drift import fitting_profile
from ray_jobs.mm_quantize import encode
from ray_jobs.quantize_options import QuantizeOptions


@dataclass(frozen=True, kw_only=True)
class FamilyCodes:
    """What is published of one family, and what its manifests say of it."""

    book: Quantizer
    codes_NL: Tensor
    info: dict[str, Any]
    """Of the fit."""
    churn: dict[str, Any] | None
    """Share of IDs that changed, where the book was aligned with an older one."""
    resolved: dict[str, int]
    """Tracks that shared an ID, by what became of them; empty without `collisions`."""


def family_codes(
    fitted: Fitted,
    track_ids: np.ndarray,
    x_ND: Tensor,
    x_SD: Tensor,
    options: QuantizeOptions,
    *,
    old: OldFamily | None,
    device: torch.device,
) -> FamilyCodes:
    """The IDs (N, L) of the tracks; of balanced books, those of the fit stay balanced."""
    codes_NL, churn = fitted.codes_NL, None
    if len(x_SD) < len(x_ND):
        codes_NL = encode(fitted.book, x_ND, device)
    if old is not None:
        aligned = align(old, track_ids, fitted.book, codes_NL)
        codes_NL, churn = aligned.codes_NL, aligned.churn
        renamed_SL = rename(fitted.codes_NL, aligned.names)
        fitted = replace(fitted, book=aligned.book, codes_NL=renamed_SL)
    info = {"fit": asdict(fitted.trace), **_balance_info(fitted, x_SD, options)}
    info["fitting"] = fitting_profile(fitted.book, x_SD, fitted.codes_NL)
    resolved = {}
    if options.collisions is not None:
        found = collisions.resolve(
            codes_NL,
            options.collisions,
            codes=options.codes,
            distances=lambda rows: fitted.book.last_distances(x_ND[rows], codes_NL[rows]),
        )
        codes_NL = found.codes_NL
        resolved = {
            "colliding": found.colliding,
            "moved": found.moved,
            "unresolved": found.unresolved,
        }
    return FamilyCodes(
        book=fitted.book,
        codes_NL=codes_NL,
        info=info,
        churn=churn,
        resolved=resolved,
    )


def _balance_info(fitted: Fitted, x_SD: Tensor, options: QuantizeOptions) -> dict[str, Any]:
    """What balancing did: rows with the most used code per level, share of rows not at the nearest.

    The published codes are the balanced ones; tracks that come later get the nearest ones.
    """
    if options.balance is None:
        return {}
    codes_SL = fitted.codes_NL
    moved_S = (fitted.book.encode(x_SD) != codes_SL).any(1)
    largest = [int(torch.bincount(code_S).max()) for code_S in codes_SL.unbind(1)]
    return {
        "balance": {
            "balance": options.balance,
            "largest": largest,
            "moved_share": float(moved_S.double().mean()),
        }
    }
