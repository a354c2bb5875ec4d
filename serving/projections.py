"""Sums of projected embeddings: what each source of a track's embeddings adds to some columns.

    side = Side(bias_N, [(TRACK, 0, tracks, weight_ND), (2, 64, joint, weight_MD)], items)
    out_CN = side(items.entries(track_ids_C))

A projection of a code table is multiplied out once a release (3 x 128 codes by 456 columns are
700 KB); one of the ID table is a matrix product a request, as its table may have millions of rows.

Shape suffixes: C tracks, I entries (the last one is that of unknown tracks), L levels, D embedding
width, N columns of the sum, M columns of one source, R rows of a code table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from models.batch import MISSING_CODE, ItemLookup
from models.code_embedding import CodeEmbedding
from models.track_embedding import TrackEmbedding
from serving.attention_kernel import add_code_rows

TRACK = -1
"""The source of ID embeddings; the others are families of semantic IDs, by their position."""

Source = tuple[int, int, nn.Module, Tensor]
"""Source, its first column, its table, its weight (M, D)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Items:
    """A lookup's tracks as arrays, their codes as rows of the code tables."""

    track_ids_I: np.ndarray
    id_rows_I: Tensor
    code_rows_FIL: dict[int, np.ndarray]
    """int32, of each family that is asked for."""

    @classmethod
    def of(cls, lookup: ItemLookup, tables: Mapping[int, nn.Module]) -> "Items":
        """`tables`: of all sources."""
        rows = {}
        for family, table in tables.items():
            if not isinstance(table, CodeEmbedding):
                continue
            codes_IL = lookup.codes_IFL[:, family]
            rows_IL = torch.where(
                codes_IL == MISSING_CODE, table.padding_row, codes_IL + table.first_row_L
            )
            rows[family] = rows_IL.int().contiguous().numpy()
        return cls(
            track_ids_I=lookup.track_ids_I.numpy(),
            id_rows_I=lookup.id_rows_I,
            code_rows_FIL=rows,
        )

    def entries(self, track_ids_C: np.ndarray) -> np.ndarray:
        """int64 (C,): where each track's rows are; the last entry for unknown ones."""
        unknown = len(self.track_ids_I)
        entries_C = np.minimum(np.searchsorted(self.track_ids_I, track_ids_C), unknown - 1)
        return np.where(self.track_ids_I[entries_C] == track_ids_C, entries_C, unknown)


class Side:
    """bias + sum over sources of (embedding of the source) W^T, for tracks."""

    def __init__(self, bias_N: Tensor, sources: Sequence[Source], items: Items) -> None:
        self._bias_N, self._items = bias_N.numpy(), items
        self._of_tracks: list[tuple[int, Tensor, Tensor]] = []
        self._of_codes: list[tuple[int, np.ndarray, np.ndarray]] = []
        for source, first, table, weight_MD in sources:
            if isinstance(table, CodeEmbedding):
                table_RM = (table.table.weight @ weight_MD.t()).contiguous().numpy()
                self._of_codes.append((first, items.code_rows_FIL[source], table_RM))
            else:
                assert isinstance(table, TrackEmbedding)
                self._of_tracks.append((first, table.weight, weight_MD.t().contiguous()))

    def __call__(self, entries_C: np.ndarray) -> np.ndarray:
        """float32 (C, N)."""
        out_CN = np.empty((len(entries_C), len(self._bias_N)), dtype=np.float32)
        out_CN[:] = self._bias_N
        for first, table_RD, weight_DM in self._of_tracks:
            rows_C = self._items.id_rows_I[torch.from_numpy(entries_C)]
            columns_CM = torch.from_numpy(out_CN)[:, first : first + weight_DM.shape[1]]
            columns_CM.addmm_(table_RD[rows_C], weight_DM)
        for first, rows_IL, table_RM in self._of_codes:
            add_code_rows(entries_C, rows_IL, table_RM, first, out_CN)
        return out_CN
