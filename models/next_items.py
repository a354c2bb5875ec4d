"""Next-item data of a leave-last-out split: numpy arrays that a trainer, a study or a test read.

Of a user's items in order, the last is the test target, the one before it the validation target,
and all earlier ones are for training (Kang and McAuley 2018, arXiv 1808.09781, section IV-A). A
user with fewer than three items has no targets: all of them are for training. The history of the
validation target is the training part, that of the test target the training part and the
validation target.

A target that its own history holds cannot be ranked where the history is masked: it is left out of
`held_out`, which counts it. It stays part of the later target's history.

Items are rows 1 to I; row 0 is padding, and as a target it means none. Sequences lie after each
other without padding ("packed"), with their lengths beside them.

    data = NextItems.from_sequences([[7, 9, 12, 7], [9, 12, 30]])
    for batch in data.train_batches(length=50, batch_size=128, seed=epoch): ...
    for part in data.held_out("test").batches(length=50, batch_size=512): ...

Shapes: I rows of items with the padding, U users, S users of one batch, V users that have a
target, P positions of packed sequences.
"""

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np

Array = np.ndarray
Part = Literal["valid", "test"]
PARTS: tuple[Part, ...] = ("valid", "test")
SHORTEST = 3
"""Items of the shortest sequence that has targets: one to train on, two to hold out."""


@dataclass(frozen=True, kw_only=True)
class TrainBatch:
    """Histories and, at every position, the item that came next."""

    rows_P: Array
    lengths_S: Array
    targets_P: Array

    def part(self, number: int, parts: int) -> "TrainBatch":
        """Sequences number, number + parts, ... of the batch."""
        if parts == 1:
            return self
        own_S = np.arange(len(self.lengths_S)) % parts == number
        own_P = np.repeat(own_S, self.lengths_S)
        return TrainBatch(
            rows_P=self.rows_P[own_P],
            lengths_S=self.lengths_S[own_S],
            targets_P=self.targets_P[own_P],
        )


@dataclass(frozen=True, kw_only=True)
class HeldOutBatch:
    """Users to be ranked: what a model reads, what is masked, what came next."""

    users_S: Array
    """Positions in `NextItems.user_ids_U`."""
    rows_P: Array
    """The last items of each history: at most `length`."""
    lengths_S: Array
    seen_Q: Array
    """The whole histories: what a ranking masks."""
    seen_lengths_S: Array
    targets_S: Array


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The users that have a target to be ranked, with their whole histories."""

    users_V: Array
    rows_P: Array
    lengths_V: Array
    targets_V: Array
    repeated: int
    """Users left out because their target is in its own history."""

    def batches(
        self, *, length: int, batch_size: int, share: tuple[int, int] = (0, 1)
    ) -> Iterator[HeldOutBatch]:
        """All users once, in order. `share` (r, w): users r, r + w, ...: one of w workers' part."""
        _check_sizes(length, batch_size)
        mine = np.arange(len(self.users_V))[share[0] :: share[1]]
        for start in range(0, len(mine), batch_size):
            chosen_S = mine[start : start + batch_size]
            seen_Q, seen_lengths_S = last_rows(self.rows_P, self.lengths_V, chosen_S)
            rows_P, lengths_S = last_rows(self.rows_P, self.lengths_V, chosen_S, length)
            yield HeldOutBatch(
                users_S=self.users_V[chosen_S],
                rows_P=rows_P,
                lengths_S=lengths_S,
                seen_Q=seen_Q,
                seen_lengths_S=seen_lengths_S,
                targets_S=self.targets_V[chosen_S],
            )


@dataclass(frozen=True, kw_only=True)
class NextItems:
    track_ids_I: Array
    """int64; row 0 is the padding, 0."""
    counts_I: Array
    """int64: listens of each row in the training part."""
    rows_P: Array
    """int32: all users' training rows after each other, oldest first."""
    lengths_U: Array
    """int64: training rows of each user."""
    valid_U: Array
    """int32 row of the validation target; 0: none."""
    test_U: Array
    user_ids_U: Array

    def __post_init__(self) -> None:
        users, items = len(self.user_ids_U), len(self.track_ids_I)
        for name in ("lengths_U", "valid_U", "test_U"):
            if getattr(self, name).shape != (users,):
                raise ValueError(f"{name} must be ({users},), got {getattr(self, name).shape}")
        if not items or self.track_ids_I[0] != 0 or self.counts_I.shape != (items,):
            raise ValueError("track_ids_I must begin with 0, the padding, and counts_I match it")
        if self.lengths_U.sum() != len(self.rows_P) or (users and self.lengths_U.min() < 0):
            raise ValueError(f"lengths_U must sum to {len(self.rows_P)}, the rows of rows_P")
        for name, least in (("rows_P", 1), ("valid_U", 0), ("test_U", 0)):
            values = getattr(self, name)
            if len(values) and not least <= values.min() <= values.max() < items:
                raise ValueError(
                    f"{name} must hold {least} to {items - 1}, got {values.min()} to {values.max()}"
                )
        if ((self.valid_U == 0) != (self.test_U == 0)).any():
            raise ValueError("valid_U and test_U must have a target for the same users")

    @classmethod
    def from_sequences(
        cls,
        sequences: Sequence[Sequence[int]],
        *,
        user_ids: Sequence[int] | None = None,
        track_ids: Sequence[int] | None = None,
    ) -> "NextItems":
        """Splits each user's track ids, oldest first. Users are 0, 1, ... unless `user_ids`.

        `track_ids`: the whole catalogue, ranked too where nobody listened; the tracks of the
        sequences when not given. Rows are in the order of the ids. ValueError for a track that is
        not in `track_ids`.
        """
        lengths_U = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        all_P = np.fromiter(
            (track for sequence in sequences for track in sequence), np.int64, lengths_U.sum()
        )
        users_U = np.arange(len(sequences)) if user_ids is None else np.asarray(user_ids)
        return cls.from_packed(all_P, lengths_U, user_ids_U=users_U, track_ids=track_ids)

    @classmethod
    def from_packed(
        cls,
        track_ids_P: Array,
        lengths_U: Array,
        *,
        user_ids_U: Array,
        track_ids: Sequence[int] | Array | None = None,
    ) -> "NextItems":
        """`from_sequences` of sequences that lie after each other already."""
        known = np.unique(track_ids_P if track_ids is None else np.asarray(track_ids, np.int64))
        rows_P = np.searchsorted(known, track_ids_P) + 1
        foreign_P = ~np.isin(track_ids_P, known)
        if foreign_P.any():
            raise ValueError(f"track {track_ids_P[foreign_P][0]} is not one of track_ids")
        ends_U = np.cumsum(lengths_U)
        split_U = lengths_U >= SHORTEST
        test_U, valid_U = np.zeros((2, len(lengths_U)), np.int32)
        test_U[split_U] = rows_P[ends_U[split_U] - 1]
        valid_U[split_U] = rows_P[ends_U[split_U] - 2]
        training_P = np.ones(len(rows_P), dtype=bool)
        training_P[np.concatenate([ends_U[split_U] - 1, ends_U[split_U] - 2])] = False
        train_P = rows_P[training_P].astype(np.int32)
        return cls(
            track_ids_I=np.concatenate([[0], known]).astype(np.int64),
            counts_I=np.bincount(train_P, minlength=len(known) + 1),
            rows_P=train_P,
            lengths_U=np.asarray(lengths_U, np.int64) - 2 * split_U,
            valid_U=valid_U,
            test_U=test_U,
            user_ids_U=np.asarray(user_ids_U, np.int64),
        )

    @property
    def items(self) -> int:
        """Tracks: the rows without the padding."""
        return len(self.track_ids_I) - 1

    def train_batches(
        self, *, length: int, batch_size: int, seed: int, share: tuple[int, int] = (0, 1)
    ) -> Iterator[TrainBatch]:
        """One epoch: `batch_size` users a batch, shuffled with the seed; the last may be smaller.

        Of each user the last `length + 1` training rows: `length` inputs and their next items.
        Users with fewer than two training rows have nothing to learn from. `share` (r, w): every
        batch's users r, r + w, ...: one of w workers' part of the same epoch.
        """
        _check_sizes(length, batch_size)
        users_U = np.flatnonzero(self.lengths_U >= 2)
        users_U = np.random.default_rng(seed).permutation(users_U)
        for start in range(0, len(users_U), batch_size):
            chosen_S = users_U[start : start + batch_size][share[0] :: share[1]]
            rows_P, lengths_S = last_rows(self.rows_P, self.lengths_U, chosen_S, length + 1)
            ends_S = np.cumsum(lengths_S)
            yield TrainBatch(
                rows_P=np.delete(rows_P, ends_S - 1),
                lengths_S=lengths_S - 1,
                targets_P=np.delete(rows_P, ends_S - lengths_S),
            )

    def held_out(self, part: Part) -> HeldOut:
        """The users whose `part` target can be ranked. ValueError for another part."""
        if part not in PARTS:
            raise ValueError(f"part must be one of {PARTS}, got {part!r}")
        rows_P, lengths_U = self.rows_P, self.lengths_U
        if part == "test":  # its history ends with the validation target
            has_U = self.valid_U > 0
            rows_P = np.insert(rows_P, np.cumsum(lengths_U)[has_U], self.valid_U[has_U])
            lengths_U = lengths_U + has_U
        target_U = self.test_U if part == "test" else self.valid_U
        user_P = np.repeat(np.arange(len(lengths_U)), lengths_U)
        in_history_U = np.zeros(len(lengths_U), dtype=bool)
        in_history_U[user_P[rows_P == target_U[user_P]]] = True
        users_V = np.flatnonzero((target_U > 0) & ~in_history_U)
        history_P, lengths_V = last_rows(rows_P, lengths_U, users_V)
        return HeldOut(
            users_V=users_V,
            rows_P=history_P,
            lengths_V=lengths_V,
            targets_V=target_U[users_V],
            repeated=int(in_history_U.sum()),
        )

    def save(self, path: Path) -> None:
        """Writes an npz file: one array a field."""
        np.savez(path, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> "NextItems":
        """The inverse of `save`. ValueError for a file that is none of these."""
        names = [field.name for field in fields(cls)]
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(**{name: file[name] for name in names})
        except (KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is not next-item data ({error}); wanted {names}") from error


def last_rows(
    rows_P: Array, lengths_U: Array, users_S: Array, length: int | None = None
) -> tuple[Array, Array]:
    """The last `length` rows (all by default) of each chosen user, packed, and their lengths."""
    kept_S = lengths_U[users_S] if length is None else np.minimum(lengths_U[users_S], length)
    ends_S = np.cumsum(lengths_U)[users_S]
    # Position within a user: 0, 1, ...; the user's first kept row lies kept_S before its end.
    within_P = np.arange(kept_S.sum()) - np.repeat(np.cumsum(kept_S) - kept_S, kept_S)
    return rows_P[np.repeat(ends_S - kept_S, kept_S) + within_P], kept_S


def _check_sizes(length: int, batch_size: int) -> None:
    for name, value in (("length", length), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
