"""From feature columns to a model batch: the one path that training and serving share.

Shapes: B rows (user, candidate), T history positions (oldest first, padding at the end),
F families of semantic IDs, L levels, I tracks of the item table, N numbers (`models.numbers`).
"""

from collections.abc import Callable
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
class ItemLookup:
    """Track ids to embedding rows and codes, by tensors that lie where the ranker runs.

    A training step looks tens of thousands of ids up: on a CUDA device that costs nothing beside
    the step, and only the ids have to travel there (codes would be ten times as much).
    """

    track_ids_I: Tensor
    """Sorted int64."""
    id_rows_I: Tensor
    """int64, and one entry more at the end: what an unknown track has."""
    codes_IFL: Tensor
    """int64, and one entry more at the end."""

    @classmethod
    def of(cls, items: ItemTable, vocabulary: Vocabulary, device: torch.device) -> "ItemLookup":
        """Of the tracks in either table."""
        track_ids_I = np.union1d(items.track_ids_I, vocabulary.track_ids_I)
        codes_IFL = items.codes(track_ids_I)
        unknown_1FL = np.full_like(codes_IFL[:1], MISSING_CODE)
        id_rows_I = np.append(vocabulary.id_rows(track_ids_I), ZERO_ROW)
        arrays = track_ids_I, id_rows_I, np.concatenate([codes_IFL, unknown_1FL])
        track_ids, id_rows, codes = (torch.from_numpy(array).to(device) for array in arrays)
        return cls(track_ids_I=track_ids, id_rows_I=id_rows, codes_IFL=codes)

    def __call__(self, track_ids: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Embedding rows (...) and codes (..., F, L); entries not `present` count as unknown."""
        unknown = len(self.track_ids_I)
        entries = torch.searchsorted(self.track_ids_I, track_ids).clamp(max=unknown - 1)
        found = self.track_ids_I[entries] == track_ids
        if present is not None:
            found &= present
        entries = torch.where(found, entries, unknown)
        # On a CPU index_select takes a fifth of the time of indexing.
        codes = self.codes_IFL.index_select(0, entries.flatten())
        return self.id_rows_I[entries], codes.view(*entries.shape, *codes.shape[1:])


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a ranker sees of B (user, candidate) rows."""

    target_ids_B: Tensor
    target_codes_BFL: Tensor
    history_ids_BT: Tensor
    history_codes_BTFL: Tensor
    history_mask_BT: Tensor
    """1.0 where the history position holds a listen, 0.0 where it is padding."""
    numbers_BN: Tensor | None = None
    """User, track and context numbers of `RankerConfig.numbers`; None where there are none."""


@dataclass(frozen=True, kw_only=True)
class TrackRows:
    """B (user, candidate) rows as track ids, before anything is looked up."""

    target_track_ids_B: Tensor
    history_track_ids_BT: Tensor
    history_mask_BT: Tensor
    """True where the history position holds a listen."""
    numbers_BN: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> "TrackRows":
        """The same columns, each changed."""
        changed = {name: change(value) for name, value in self.columns().items()}
        return TrackRows(**changed)

    def columns(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if value is not None}


def track_rows(
    target_track_ids_B: Tensor,
    history_track_ids: Tensor,
    history_offsets: Tensor,
    *,
    history_length: int,
    numbers_BN: Tensor | None = None,
) -> TrackRows:
    """Pads the histories, where the tensors lie.

    Row b's history is `history_track_ids[history_offsets[b]:history_offsets[b + 1]]`, oldest
    first (the layout of an Arrow list column); its newest `history_length` entries are kept.
    """
    ends_B = history_offsets[1:]
    lengths_B = (ends_B - history_offsets[:-1]).clamp(max=history_length)
    positions_T = torch.arange(history_length, device=ends_B.device)
    mask_BT = positions_T < lengths_B.unsqueeze(1)
    source_BT = torch.where(mask_BT, (ends_B - lengths_B).unsqueeze(1) + positions_T, 0)
    if len(history_track_ids) == 0:
        history_track_ids = ends_B.new_zeros(1, dtype=torch.int64)  # every position is masked
    return TrackRows(
        target_track_ids_B=target_track_ids_B,
        history_track_ids_BT=history_track_ids[source_BT],
        history_mask_BT=mask_BT,
        numbers_BN=numbers_BN,
    )


def make_batch(rows: TrackRows, lookup: ItemLookup) -> Batch:
    """Looks up the IDs of candidates and of their users' histories, where the lookup lies."""
    rows = rows.each(lambda value: value.to(lookup.track_ids_I.device, non_blocking=True))
    mask_BT = rows.history_mask_BT
    target_ids_B, target_codes_BFL = lookup(rows.target_track_ids_B)
    history_ids_BT, history_codes_BTFL = lookup(rows.history_track_ids_BT, mask_BT)
    return Batch(
        target_ids_B=target_ids_B,
        target_codes_BFL=target_codes_BFL,
        history_ids_BT=history_ids_BT,
        history_codes_BTFL=history_codes_BTFL,
        history_mask_BT=mask_BT.float(),
        numbers_BN=rows.numbers_BN,
    )
