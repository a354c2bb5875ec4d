"""The variants of MME-SID that its claims compare, each one change away from the full model.

    for variant in variants_of(("collaborative", "text", "audio")): ...

The full model reads every family's raw embeddings and semantic IDs; the IDs' embeddings begin as
the quantizer's, which was trained with MMD reconstruction and contrastive alignment (paper
section 3). Three baselines stand beside: SASRec, SASRec as its own paper trains it, and the
most-popular list.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

FULL = "full"
SASREC = "SASRec"
PAPER_SASREC = "SASRec, its paper's loss"
POPULAR = "most popular"
COLLABORATIVE = "collaborative"
GIVEN = "collaborative_given"
"""A world's own collaborative embeddings: shown beside, for they may have seen the test items."""
NO_IDS = "no semantic IDs"
RANDOM_IDS = "random SID embeddings"
MSE = "MSE reconstruction"
MEAN_MMD = "level losses as means"
MEAN_MSE = "level losses as means, MSE"
MEAN = 1 / (4 * 64)
"""Weight with which sums over 4 levels of 64 dims are means: what the authors' code has."""
NO_RECONSTRUCTION = "reconstruction off"
NO_COMMITMENT = "commitment off"
NO_ALIGNMENT = "alignment off"
MMD_ALIGNMENT = "alignment by MMD"
NO_SINKHORN = "Sinkhorn off"
NO_REVIVAL = "revival off"
PLAIN_START = "balanced start off"
DISTILLED = "distillation in the quantizer"
CONSISTENT = "consistency in the model"
NO_FUSION = "frequency fusion off"
WEIGHT = 1.0
"""Of the distillation term in the one place or the other, where it is on."""

Ids = Literal["none", "random", "initialised"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How one model of the study differs."""

    name: str
    families: tuple[str, ...]
    ids: Ids = "initialised"
    """Whether semantic IDs are read, and how their embeddings begin."""
    quantizer: dict[str, Any] = field(default_factory=dict)
    """What its `MmRqVaeOptions` have otherwise than the study's."""
    consistency: float = 0.0
    temperature: float = 1e-3
    """Of the fusion's softmax; at infinity every score head counts as much as another."""

    @property
    def fit_key(self) -> str:
        """The same for all variants whose quantizers are alike."""
        return repr((self.families, sorted(self.quantizer.items())))


def only(family: str) -> str:
    """The name of the variant that reads one family's raw embeddings."""
    return f"{family} only"


def variants_of(families: tuple[str, ...], *, given: bool = False) -> tuple[Variant, ...]:
    """The full model first, then by how much a claim needs them.

    What needs two families (alignment, a model of all raw embeddings) is left out where there is
    one. `given`: also the world's own collaborative embeddings in place of ours.
    """
    several = len(families) > 1
    found = [Variant(name=FULL, families=families)]
    found += [Variant(name=only(one), families=(one,), ids="none") for one in families]
    if several:
        found.append(Variant(name=NO_IDS, families=families, ids="none"))
    found += [
        Variant(name=RANDOM_IDS, families=families, ids="random"),
        Variant(name=CONSISTENT, families=families, consistency=WEIGHT),
        Variant(name=NO_FUSION, families=families, temperature=math.inf),
    ]
    mean = {"quantization_weight": MEAN}
    changes: dict[str, dict[str, Any]] = {
        MSE: {"reconstruction": "mse"},
        MEAN_MMD: mean,
        MEAN_MSE: {"reconstruction": "mse", **mean},
    }
    if several:
        changes[NO_ALIGNMENT] = {"alignment": "none"}
        changes[MMD_ALIGNMENT] = {"alignment": "mmd"}
    changes[NO_RECONSTRUCTION] = {"reconstruction_weight": 0.0}
    changes[DISTILLED] = {"distillation_weight": WEIGHT}
    changes[NO_COMMITMENT] = {"mu": 0.0}
    changes[NO_SINKHORN] = {"sinkhorn": False}
    changes[NO_REVIVAL] = {"revival": False}
    changes[PLAIN_START] = {"balanced_start": False}
    found += [
        Variant(name=name, families=families, quantizer=change) for name, change in changes.items()
    ]
    if given:
        swapped = tuple(GIVEN if one == COLLABORATIVE else one for one in families)
        found.append(Variant(name="given collaborative", families=swapped))
    return tuple(found)
