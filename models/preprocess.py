"""Preprocessing of one modality's vectors before quantization, and their concatenation.

Without it the modality with the larger norm decides every joint code (paper section 1).
A row of zeros means "this item lacks the modality": it is left out of the statistics and stays 0.

Shape suffixes: N rows, M rows of one chunk, D dims of the input, P dims of the output.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.rows import EPS, check_rows, chunks

MODES = {
    "standard": ("mean", "scale"),
    "l2": ("mean",),
    "whiten": ("mean", "projection"),
    "none": (),
}
"""The modes, and the tensors that each stores. `standard`: z-score of each dimension, then unit
norm. `l2`: centre, unit norm. `whiten`: PCA whitening to P dims, then unit norm. `none`: the
vectors as they are."""


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """A fitted step. `mean_D`, `scale_D` (1 / deviation, 0 for a constant dimension) and
    `projection_DP` are float32, or None where the mode has no use for them."""

    mode: str
    mean_D: Tensor | None = None
    scale_D: Tensor | None = None
    projection_DP: Tensor | None = None

    @classmethod
    def fit(cls, x_ND: Tensor, mode: str = "standard", *, dims: int = 64) -> "Preprocess":
        """Statistics of the rows that are not zero.

        `dims`, of `whiten` only: output dims, at most the input's. ValueError for an unknown mode,
        dims < 1, and rows that are not finite.
        """
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        if dims < 1:
            raise ValueError(f"dims must be at least 1, got {dims}")
        x_ND = check_rows(x_ND)
        if mode == "none":
            return cls(mode=mode)
        x_ND = x_ND[_present(x_ND)]
        count = max(1, len(x_ND))
        mean_D = torch.zeros(x_ND.shape[1], dtype=torch.float64)
        for part in chunks(x_ND):
            mean_D += x_ND[part].double().sum(0)
        mean_D /= count
        if mode == "l2":
            return cls(mode=mode, mean_D=mean_D.float())
        if mode == "whiten":
            projection_DP = _whitening(x_ND, mean_D, min(dims, x_ND.shape[1]))
            return cls(mode=mode, mean_D=mean_D.float(), projection_DP=projection_DP)
        variance_D, largest_D = torch.zeros_like(mean_D), torch.zeros_like(mean_D)
        for part in chunks(x_ND):
            variance_D += (x_ND[part].double() - mean_D).square().sum(0) / count
            largest_D = torch.maximum(largest_D, x_ND[part].abs().amax(0).double())
        deviation_D = variance_D.sqrt()
        # A spread below the resolution of float32 is rounding: such a dimension is constant.
        scale_D = torch.where(deviation_D > EPS * largest_D, 1 / deviation_D, 0.0)
        return cls(mode=mode, mean_D=mean_D.float(), scale_D=scale_D.float())

    def apply(self, x_ND: Tensor) -> Tensor:
        """(N, P) float32, row by row. Zero rows, and rows equal to the mean, come out as zeros.

        ValueError for rows of another width or not finite.
        """
        x_ND = check_rows(x_ND)
        if self.mean_D is None:
            return x_ND
        if x_ND.shape[1] != len(self.mean_D):
            raise ValueError(f"fitted on {len(self.mean_D)} dims, got {x_ND.shape[1]}")
        return torch.cat([self._chunk(x_ND[part]) for part in chunks(x_ND)])

    def _chunk(self, x_MD: Tensor) -> Tensor:
        assert self.mean_D is not None
        y_MP = x_MD.double() - self.mean_D.double()
        if self.scale_D is not None:
            y_MP *= self.scale_D.double()
        if self.projection_DP is not None:
            y_MP = y_MP @ self.projection_DP.double()
        norm_M1 = y_MP.norm(dim=1, keepdim=True)
        keep_M1 = (norm_M1 > 0) & _present(x_MD)[:, None]
        return torch.where(keep_M1, y_MP / norm_M1, 0.0).float()

    def tensors(self) -> dict[str, Tensor]:
        """`mean`, `scale`, `projection`, those that the mode has: stored beside a codebook."""
        named = {"mean": self.mean_D, "scale": self.scale_D, "projection": self.projection_DP}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @classmethod
    def from_tensors(cls, mode: str, tensors: Mapping[str, Tensor]) -> "Preprocess":
        """The inverse of `tensors`; ValueError where they are not those of the mode."""
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        if set(tensors) != set(MODES[mode]):
            raise ValueError(f"{mode} stores {list(MODES[mode])}, got {sorted(tensors)}")
        dims = len(tensors["mean"]) if "mean" in tensors else 0
        for name, tensor in tensors.items():
            if len(tensor) != dims or tensor.ndim != 1 + (name == "projection"):
                raise ValueError(f"{name} has shape {tuple(tensor.shape)} where mean has {dims}")
            if not tensor.isfinite().all():
                raise ValueError(f"{name} holds values that are not finite")
        return cls(
            mode=mode,
            mean_D=tensors.get("mean"),
            scale_D=tensors.get("scale"),
            projection_DP=tensors.get("projection"),
        )


def joint(vectors: Mapping[str, Tensor]) -> Tensor:
    """The modalities side by side, in the order given: (N, sum of their dims).

    Each is (N, D_m) with the same items in the same rows, zeros where an item lacks the modality.
    ValueError for no modality or unequal row counts.
    """
    counts = {name: len(vector_ND) for name, vector_ND in vectors.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"a joint vector needs modalities with equal row counts, got {counts}")
    return torch.cat(list(vectors.values()), dim=1)


def _present(x_ND: Tensor) -> Tensor:
    return (x_ND != 0).any(1)


def _whitening(x_ND: Tensor, mean_D: Tensor, dims: int) -> Tensor:
    """Projection (D, P) onto the first principal axes, each divided by its deviation.

    Axes without variance are zero. LAPACK leaves signs open: the largest entry is made positive.
    """
    covariance_DD = torch.zeros(len(mean_D), len(mean_D), dtype=torch.float64)
    for part in chunks(x_ND):
        centred_MD = x_ND[part].double() - mean_D
        covariance_DD += centred_MD.T @ centred_MD / max(1, len(x_ND))
    variance_D, axes_DD = torch.linalg.eigh(covariance_DD)
    variance_P, axes_DP = variance_D.flip(0)[:dims], axes_DD.flip(1)[:, :dims]
    axes_DP = axes_DP * axes_DP.gather(0, axes_DP.abs().argmax(0, keepdim=True)).sign()
    rounding = (EPS * mean_D.abs().max()).square()
    keep_P = variance_P > torch.maximum(EPS * variance_P[0], rounding)
    return torch.where(keep_P, axes_DP / variance_P.clamp_min(0).sqrt(), 0.0).float()
