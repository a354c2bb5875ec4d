"""MM-RQ-VAE: an RQ-VAE for each modality, trained together (paper section 3).

    z^m = E^m(x^m),  q^m = sum_l e^m_l,id_l,  x_hat^m = D^m(q^m)
    loss = sum_m [ 3 R(x^m, x_hat^m) + gamma sum_l ( ||sg(r_l) - e_l||^2 + mu ||r_l - sg(e_l)||^2 )
                   + delta ||q^m - sg(z^m)||^2 ]
         + 0.01 sum_{m != anchor} A(q^anchor, q^m)

R is MMD or the mean square error (`reconstruction`), A is InfoNCE, which the paper has, or MMD,
which its authors' code has (`alignment`): `models.mm_rq_vae_losses`. D's and A's gradients pass the
quantizer straight through to E. The last level's codes of a batch are shared evenly by
`models.sinkhorn` unless that is off (`sinkhorn`); the others are the nearest.

delta (`distillation_weight`, 0 unless asked for) is a term of one summary of the paper and of no
code of its authors, "consistency of semantic-ID embeddings with quantized embeddings". Read here
as: the sum of an item's code embeddings, from which the recommender starts, is drawn to what was
quantized. Its value is that of the last level's term, but its gradient moves the codes of all
levels, which otherwise know of no later one.

The paper does not say what A compares; here it is q with the gradient to E alone, because q is what
the recommender sees. An item that lacks a modality takes no part in that modality's terms, one that
lacks either of two in their A.

Shape suffixes: B rows of a batch, M of them that have a modality, D dims of a modality, Z latent
dims, L levels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.mm_rq_vae_losses import info_nce, mmd
from models.rq_vae_net import RqVaeNet, check_options
from models.sinkhorn import sinkhorn_codes

COLLABORATIVE = "collaborative"
"""The modality that the others are aligned with if it is there and no other was named."""
RECONSTRUCTIONS = ("mmd", "mse")
ALIGNMENTS = ("infonce", "mmd", "none")

Key = tuple[str, str]
"""A term of the loss: `reconstruction`, `quantization`, `distillation` or `alignment` (with the
anchor), and its modality."""


@dataclass(frozen=True, kw_only=True)
class MmRqVaeOptions:
    """How nets and books are fitted. A bad value raises ValueError naming the field."""

    levels: int = 4
    codes: int = 256
    hidden: tuple[int, ...] = (512, 256)
    """Widths of each encoder's hidden layers; the decoder has them in reverse. The paper has three
    of 4,096: for a catalogue of 10,000 items that is 34 million weights a perceptron."""
    latent_dims: int = 64
    epochs: int = 100
    batch_size: int = 1024
    """Rows of one step, of all workers together."""
    learning_rate: float = 2e-4
    weight_decay: float = 1e-4
    quantization_weight: float = 1.0
    """gamma. The formula's norms are sums over latent dims and levels; 1 / (levels latent_dims)
    makes them the means that the authors' code has."""
    mu: float = 0.25
    """Weight of the term that pulls an encoder to its codes."""
    reconstruction: str = "mmd"
    """One of RECONSTRUCTIONS."""
    reconstruction_weight: float = 3.0
    alignment: str = "infonce"
    """One of ALIGNMENTS."""
    alignment_weight: float = 0.01
    anchor: str | None = None
    """Modality with which the others are aligned; None: COLLABORATIVE, or else the first."""
    distillation_weight: float = 0.0
    balanced_start: bool = True
    """Whether the clusters that the books start from are balanced."""
    sinkhorn: bool = True
    """Whether a batch shares the codes of the last level evenly."""
    revival: bool = True
    """Whether codes that no row chose come back to life."""
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"levels": 1, "codes": 1, "latent_dims": 1, "epochs": 1, "batch_size": 1, "seed": 0}
        parts = ("reconstruction", "quantization", "alignment", "distillation")
        weights = [f"{part}_weight" for part in parts]
        check_options(self, least, ("learning_rate", "weight_decay", "mu", *weights))
        for name in ("balanced_start", "sinkhorn", "revival"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name, known in (("reconstruction", RECONSTRUCTIONS), ("alignment", ALIGNMENTS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")

    def anchor_of(self, modalities: Sequence[str]) -> str:
        """The anchor among these modalities; ValueError where the one named is not there."""
        if self.anchor is None:
            return COLLABORATIVE if COLLABORATIVE in modalities else modalities[0]
        if self.anchor not in modalities:
            raise ValueError(f"anchor must be one of {tuple(modalities)}, got {self.anchor!r}")
        return self.anchor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B items: by modality the rows (M, D) of those that have it, and which do (B,) bool."""

    x: Mapping[str, Tensor]
    present: Mapping[str, Tensor]


class MmRqVaeNet(torch.nn.Module):
    """One `RqVaeNet` a modality; `dims` by modality, in the order that all else keeps."""

    def __init__(
        self, dims: Mapping[str, int], options: MmRqVaeOptions, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.options = options
        self.anchor = options.anchor_of(tuple(dims))
        self.modalities = tuple(dims)
        self.stacks = torch.nn.ModuleList(
            RqVaeNet(width, options, generator) for width in dims.values()
        )
        self.weights = {
            "reconstruction": options.reconstruction_weight,
            "quantization": options.quantization_weight,
            "distillation": options.distillation_weight,
            "alignment": 0.0 if options.alignment == "none" else options.alignment_weight,
        }

    def stack(self, modality: str) -> RqVaeNet:
        stack = self.stacks[self.modalities.index(modality)]
        assert isinstance(stack, RqVaeNet)
        return stack

    def rows(self, present: Mapping[str, Tensor]) -> dict[Key, int]:
        """Of each term that counts, the rows that it is a mean over."""
        found = {}
        for name in self.modalities:
            for term in ("reconstruction", "quantization", "distillation"):
                found[term, name] = int(present[name].sum())
            if name != self.anchor:
                found["alignment", name] = int((present[self.anchor] & present[name]).sum())
        return {key: rows for key, rows in found.items() if self.weights[key[0]] and rows}

    def losses(self, batch: Batch) -> tuple[dict[Key, Tensor], dict[str, Tensor]]:
        """The terms of `rows`, not yet weighted, and the codes (M, L) by modality."""
        found: dict[Key, Tensor] = {}
        codes: dict[str, Tensor] = {}
        quantized: dict[str, Tensor] = {}
        wanted = self.rows(batch.present)
        for name, x_MD in batch.x.items():
            if not len(x_MD):
                continue
            stack = self.stack(name)
            z_MZ = stack.encode(x_MD)
            last = sinkhorn_codes if self.options.sinkhorn else None
            parts = stack.quantize(z_MZ, self.options.mu, last=last)
            x_hat_MD = stack.decode(parts.straight_BZ)
            if self.options.reconstruction == "mmd":
                found["reconstruction", name] = mmd(x_MD, x_hat_MD)
            else:
                found["reconstruction", name] = (x_MD - x_hat_MD).square().mean()
            found["quantization", name] = parts.loss_B.mean()
            if ("distillation", name) in wanted:
                # ||q - sg(z)||^2
                pull_M = (parts.sum_BZ - z_MZ.detach()).square().sum(1)
                found["distillation", name] = pull_M.mean()
            codes[name], quantized[name] = parts.codes_BL, parts.straight_BZ
        align = info_nce if self.options.alignment == "infonce" else mmd
        here = batch.present[self.anchor]
        for term, name in wanted:
            if term == "alignment":
                there = batch.present[name]
                found[term, name] = align(
                    quantized[self.anchor][there[here]], quantized[name][here[there]]
                )
        return {key: value for key, value in found.items() if key in wanted}, codes
