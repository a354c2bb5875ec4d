"""What a study of MME-SID's claims runs on: next-item data and frozen raw embeddings, in one file.

    world = MmeWorld.load(Path("hetrec-spotify.npz"))
    world.raw["text"][world.next_items.rows_P]

No Ray and no feature store is needed to read it: the file travels to wherever there is a GPU.

Shapes: I rows of items with the padding (row 0), D dims of a family.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from models.next_items import NextItems

RAW = "raw_"
"""What the names of the raw tables begin with in the file."""


@dataclass(frozen=True, kw_only=True)
class MmeWorld:
    """`next_items`, and a family's raw embeddings of their rows; zeros where an item has none.

    ValueError for a table of other items, or one that is not finite.
    """

    name: str
    next_items: NextItems
    raw: dict[str, np.ndarray] = field(default_factory=dict)
    """Family -> (I, D) float32."""

    def __post_init__(self) -> None:
        items = self.next_items.items + 1
        for family, table_ID in self.raw.items():
            if table_ID.ndim != 2 or len(table_ID) != items or table_ID.shape[1] == 0:
                raise ValueError(f"raw[{family!r}] must be ({items}, dims), got {table_ID.shape}")
            if not np.isfinite(table_ID).all():
                raise ValueError(f"raw[{family!r}] holds a value that is not finite")

    def save(self, path: Path) -> None:
        """Writes `NextItems`' arrays and the tables, in half precision: a rounding of 0.05%."""
        arrays = {one.name: getattr(self.next_items, one.name) for one in fields(NextItems)}
        tables = {RAW + family: table.astype(np.float16) for family, table in self.raw.items()}
        np.savez_compressed(path, allow_pickle=False, **arrays, **tables)

    @classmethod
    def load(cls, path: Path) -> "MmeWorld":
        """The inverse of `save`; named as the file is. ValueError for a file that is none."""
        next_items = NextItems.load(path)
        with np.load(path, allow_pickle=False) as file:
            raw = {
                name.removeprefix(RAW): file[name].astype(np.float32)
                for name in file.files
                if name.startswith(RAW)
            }
        return cls(name=path.stem, next_items=next_items, raw=raw)
