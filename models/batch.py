"""From feature columns to a model batch: the one path that training and serving share.

Shapes: B rows (user, candidate), T history positions (oldest first, padding at the end),
F families of semantic IDs, L levels, I tracks of the item table.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ZERO_ROW = 0
"""ID-embedding row of an empty history position, and of every track without a training
impression: never trained and always zero, so that such a track's score is left to its content."""
FIRST_TRACK_ROW = 1
MISSING_CODE = -1
"""Code of a padding position, and of a track that lacks the family's modality."""


@dataclass(frozen=True, kw_only=True)
class ItemTable:
    """Semantic IDs of the whole catalogue under one generation, as dense arrays."""

    track_ids_I: np.ndarray
    """Sorted int64."""
    codes_IFL: np.ndarray
    """int64; MISSING_CODE where a track lacks the family's modality."""

    def __post_init__(self) -> None:
        if np.any(np.diff(self.track_ids_I) <= 0):
            raise ValueError("ItemTable.track_ids_I must be sorted and without duplicates")
        if self.codes_IFL.shape[0] != len(self.track_ids_I):
            raise ValueError(
                f"ItemTable has {len(self.track_ids_I)} track ids "
                f"but {self.codes_IFL.shape[0]} rows of codes"
            )

    def codes(self, track_ids: np.ndarray) -> np.ndarray:
        """Codes (..., F, L) of any track ids; MISSING_CODE throughout for unknown ones."""
        rows, known = find_rows(self.track_ids_I, track_ids)
        return np.where(known[..., None, None], self.codes_IFL[rows], MISSING_CODE)

    def knows(self, track_ids: np.ndarray) -> np.ndarray:
        """Which of the track ids this generation holds, as bools."""
        return find_rows(self.track_ids_I, track_ids)[1]


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The tracks that own a row of the ID-embedding table: those with a training impression."""

    track_ids_I: np.ndarray
    """Sorted int64."""
    train_counts_I: np.ndarray
    """int64: training impressions of each; cold tracks are told by it."""

    @property
    def rows(self) -> int:
        """Rows of the embedding table, the zero row included."""
        return FIRST_TRACK_ROW + len(self.track_ids_I)

    def id_rows(self, track_ids: np.ndarray) -> np.ndarray:
        """Embedding rows of track ids; ZERO_ROW for tracks without a training impression."""
        rows, known = find_rows(self.track_ids_I, track_ids)
        return np.where(known, rows + FIRST_TRACK_ROW, ZERO_ROW)

    def train_counts(self, track_ids: np.ndarray) -> np.ndarray:
        """Training impressions of track ids, 0 for those outside the vocabulary."""
        rows, known = find_rows(self.track_ids_I, track_ids)
        return np.where(known, self.train_counts_I[rows], 0)


def find_rows(sorted_ids_I: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row of each id in a sorted array (0 where absent), and whether it is there."""
    if len(sorted_ids_I) == 0:
        raise ValueError("no track ids to look up in: the table is empty")
    rows = np.searchsorted(sorted_ids_I, ids)
    rows = np.where(rows < len(sorted_ids_I), rows, 0)
    return rows, sorted_ids_I[rows] == ids


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a ranker sees of B (user, candidate) rows."""

    target_ids_B: Tensor
    target_codes_BFL: Tensor
    history_ids_BT: Tensor
    history_codes_BTFL: Tensor
    history_mask_BT: Tensor
    """1.0 where the history position holds a listen, 0.0 where it is padding."""


def make_batch(
    target_track_ids_B: np.ndarray,
    history_track_ids: np.ndarray,
    history_offsets: np.ndarray,
    *,
    items: ItemTable,
    vocabulary: Vocabulary,
    history_length: int,
) -> Batch:
    """Looks up the IDs of candidates and of their users' histories, and pads the histories.

    Row b's history is `history_track_ids[history_offsets[b]:history_offsets[b + 1]]`, oldest
    first (the layout of an Arrow list column); its newest `history_length` entries are kept.
    """
    starts_B, ends_B = history_offsets[:-1], history_offsets[1:]
    lengths_B = np.minimum(ends_B - starts_B, history_length)
    positions_T = np.arange(history_length)
    mask_BT = positions_T[None, :] < lengths_B[:, None]
    source_BT = np.where(mask_BT, (ends_B - lengths_B)[:, None] + positions_T[None, :], 0)
    if len(history_track_ids) == 0:
        history_track_ids = np.zeros(1, dtype=np.int64)  # every position is masked
    history_BT = history_track_ids[source_BT]
    ids_BT = np.where(mask_BT, vocabulary.id_rows(history_BT), ZERO_ROW)
    codes_BTFL = np.where(mask_BT[..., None, None], items.codes(history_BT), MISSING_CODE)
    return Batch(
        target_ids_B=torch.from_numpy(vocabulary.id_rows(target_track_ids_B)),
        target_codes_BFL=torch.from_numpy(items.codes(target_track_ids_B)),
        history_ids_BT=torch.from_numpy(ids_BT),
        history_codes_BTFL=torch.from_numpy(codes_BTFL),
        history_mask_BT=torch.from_numpy(mask_BT.astype(np.float32)),
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch with its tensors on `device`."""
    return Batch(**{name: value.to(device) for name, value in vars(batch).items()})
