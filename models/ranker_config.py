"""What a ranker's shape depends on: recorded in the model folder, checked against a release.

Imports no torch: the command line takes the names of the models from here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MODELS = (
    "mcca",
    "mcca_wo_msc",
    "mcca_wo_mjc",
    "din",
    "din_sid",
    "dnn",
    "deepfm",
    "sim",
    "transformer",
)
OWN_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "din_sid": {"family": "text"},
    "sim": {"top_k": 10, "search": "soft"},
    "transformer": {"heads": 4, "layers": 2},
}
"""Options that one model alone has, with their defaults. For every other model they are None."""
SEARCHES = ("soft", "hard")

EMBEDDING_STD = 0.1
"""Start of every embedding table. torch's own start, 1, drowns what attention adds up over a
history: on the demo world it cost 0.05 of AUC."""


@dataclass(frozen=True, kw_only=True)
class RankerConfig:
    """Sizes of a ranker. What the paper leaves open has DIN's usual sizes as default."""

    model: str
    """One of `MODELS`."""
    id_rows: int
    """Rows of the ID-embedding table, the zero row included."""
    families: tuple[str, ...]
    """ID families in the order of the item table; the joint family last."""
    levels: int
    """Codes in a semantic ID."""
    codes: int
    """Codes in a codebook."""
    history_length: int
    """Listens that the ranker looks back on."""
    embedding_width: int = 64
    """d' of the paper."""
    attention_hidden: int = 64
    """Of the net that weighs a history position (MCCA, DIN and SIM)."""
    tower_hidden: tuple[int, ...] = (200, 80)
    """Of the MLP that ends in the logit."""
    numbers: tuple[str, ...] = ()
    """User, track and context numbers of `Batch.numbers_BN`, in its order (`models.numbers`)."""
    family: str | None = None
    """`din_sid`: the ID family that the item's embedding holds beside its track id."""
    top_k: int | None = None
    """`sim`: history positions that attention sees; a shorter history is seen whole."""
    search: str | None = None
    """`sim`: how they are found, by embeddings (`soft`) or shared codes (`hard`)."""
    heads: int | None = None
    """`transformer`: attention heads; divides embedding_width."""
    layers: int | None = None
    """`transformer`: blocks of attention and feed-forward net."""

    def __post_init__(self) -> None:
        for name in ("families", "tower_hidden", "numbers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON brings lists
        if self.model not in MODELS:
            raise ValueError(f"RankerConfig.model must be one of {MODELS}, got {self.model!r}")
        own = own_options(self.model, {name: getattr(self, name) for name in _OWN_NAMES})
        for name, value in own.items():
            object.__setattr__(self, name, value)
        sizes = ("id_rows", "levels", "codes", "history_length", "embedding_width")
        for name in (*sizes, "attention_hidden"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"RankerConfig.{name} must be at least 1, got {getattr(self, name)}"
                )
        if not self.tower_hidden or min(self.tower_hidden) < 1:
            raise ValueError(
                f"RankerConfig.tower_hidden must be sizes of at least 1, got {self.tower_hidden}"
            )
        if not self.families:
            raise ValueError("RankerConfig.families must name at least one ID family, got none")
        if self.model == "mcca_wo_mjc" and len(self.families) < 2:
            raise ValueError(
                "RankerConfig.families must name a family beside the joint one for mcca_wo_mjc, "
                f"got {self.families}"
            )
        if self.family is not None and self.family not in self.families:
            raise ValueError(
                f"RankerConfig.family must be one of the generation's {self.families}, "
                f"got {self.family!r}"
            )
        if self.heads is not None and self.embedding_width % self.heads:
            raise ValueError(
                f"RankerConfig.heads must divide embedding_width {self.embedding_width}, "
                f"got {self.heads}"
            )


_OWN_NAMES = tuple(name for options in OWN_OPTIONS.values() for name in options)


def own_options(model: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of `OWN_OPTIONS` for one model: as given, else its default, None for others'.

    ValueError for an option of another model, and for a value out of range.
    """
    resolved: dict[str, Any] = {}
    for owner, options in OWN_OPTIONS.items():
        for name, default in options.items():
            value = given.get(name)
            if model != owner and value is not None:
                raise ValueError(f"{name} must be left to {owner}, got {value!r} for {model}")
            resolved[name] = default if model == owner and value is None else value
    for name in ("top_k", "heads", "layers"):
        if resolved[name] is not None and resolved[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {resolved[name]}")
    if resolved["search"] not in (None, *SEARCHES):
        raise ValueError(f"search must be one of {SEARCHES}, got {resolved['search']!r}")
    return resolved
