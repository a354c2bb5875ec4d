"""What a ranker's shape depends on: recorded in the model folder, checked against a release."""

from dataclasses import dataclass

EMBEDDING_STD = 0.1
"""Start of every embedding table. torch's own start, 1, drowns what attention adds up over a
history: on the demo world it cost 0.05 of AUC."""


@dataclass(frozen=True, kw_only=True)
class RankerConfig:
    """Sizes of a ranker. What the paper leaves open has DIN's usual sizes as default."""

    model: str
    """`mcca` or `din`."""
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
    tower_hidden: tuple[int, ...] = (200, 80)

    def __post_init__(self) -> None:
        object.__setattr__(self, "families", tuple(self.families))  # JSON brings lists
        object.__setattr__(self, "tower_hidden", tuple(self.tower_hidden))
        for name in ("id_rows", "levels", "codes", "history_length", "embedding_width"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"RankerConfig.{name} must be at least 1, got {getattr(self, name)}"
                )
        if not self.families:
            raise ValueError("RankerConfig.families must name at least one ID family, got none")
