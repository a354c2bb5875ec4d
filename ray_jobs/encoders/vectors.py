"""`vectors`: takes the `<modality>_vector` column that a data set brought along, as it is."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from feature_repo.artifacts import content_id
from feature_repo.errors import InputError
from feature_repo.schema import VECTOR_SUFFIX


@dataclass(frozen=True)
class VectorsEncoder:
    """The id stands for the column, not for what it holds: a new data set, a new workspace."""

    modality: str
    tracks_schema: pa.Schema

    def __post_init__(self) -> None:
        column = self.columns[0]
        if column not in self.tracks_schema.names:
            brought = [name for name in self.tracks_schema.names if name.endswith(VECTOR_SUFFIX)]
            raise InputError(
                f"encoder vectors: the tracks table has no column {column}; "
                f"it has {', '.join(brought) or 'no vector column'}"
            )
        found = self.tracks_schema.field(column).type
        if not (pa.types.is_fixed_size_list(found) and pa.types.is_float32(found.value_type)):
            raise InputError(
                f"encoder vectors: column {column} is {found}; expected fixed_size_list<float32>"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        return (f"{self.modality}{VECTOR_SUFFIX}",)

    @property
    def dim(self) -> int:
        return self.tracks_schema.field(self.columns[0]).type.list_size

    @property
    def settings(self) -> dict[str, object]:
        return {"column": self.columns[0], "dim": self.dim}

    @cached_property
    def encoder_id(self) -> str:
        return content_id("vectors", self.settings)

    def encode(self, tracks: pa.Table) -> list[np.ndarray | str]:
        column = tracks[self.columns[0]].combine_chunks()
        present = column.is_valid().to_numpy(zero_copy_only=False)
        outcomes: list[np.ndarray | str] = [f"null {self.columns[0]}"] * len(present)
        # flatten() leaves null lists out, so what it gives is the vectors of the present rows.
        vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.dim)
        for row, vector in zip(np.flatnonzero(present), vectors, strict=True):
            outcomes[row] = vector
        return outcomes
