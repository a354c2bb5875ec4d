"""Compares served feature columns with recomputed ones: pure functions over Arrow columns.

R reads, each with one value a feature. A value is null where the store had no row, which is told
from an empty list: both sides have to agree on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.list_distance import inserts_and_deletes

EQUAL, MISMATCHED, MISSING, EXTRA = range(4)
"""Outcomes of one value: the same; both there and different; only offline; only served."""


def outcomes(served: pa.Array, offline: pa.Array) -> np.ndarray:
    """One outcome a read, uint8 of R. The two arrays have R values of one type.

    Numbers are equal when they are the same number, two NaN too.
    """
    if served.type != offline.type or len(served) != len(offline):
        raise ValueError(
            f"served has {len(served)} values of {served.type}, offline {len(offline)} of "
            f"{offline.type}; expected as many of the same type"
        )
    has_served = served.is_valid().to_numpy(zero_copy_only=False)
    has_offline = offline.is_valid().to_numpy(zero_copy_only=False)
    found = np.full(len(served), EQUAL, dtype=np.uint8)
    found[has_offline & ~has_served] = MISSING
    found[has_served & ~has_offline] = EXTRA
    both = np.flatnonzero(has_served & has_offline)
    same = _same(served.take(pa.array(both)), offline.take(pa.array(both)))
    found[both[~same]] = MISMATCHED
    return found


def _same(a: pa.Array, b: pa.Array) -> np.ndarray:
    """Which values of two arrays without nulls are equal: bool."""
    if not pa.types.is_list(a.type):
        return _equal_items(a, b)
    lengths = pc.list_value_length(a).to_numpy()
    same = lengths == pc.list_value_length(b).to_numpy()
    rows = np.flatnonzero(same)
    items = _equal_items(a.take(pa.array(rows)).flatten(), b.take(pa.array(rows)).flatten())
    # A list is equal when none of its items differs; differing items are attributed to lists.
    owners = np.repeat(rows, lengths[rows])
    same[owners[~items]] = False
    return same


def _equal_items(a: pa.Array, b: pa.Array) -> np.ndarray:
    """Which items are equal; two nulls are, and so are two NaN."""
    equal = pc.fill_null(pc.equal(a, b), False)
    equal = pc.or_(equal, pc.and_(pc.is_null(a), pc.is_null(b)))
    if pa.types.is_floating(a.type):
        nan = pc.and_(pc.fill_null(pc.is_nan(a), False), pc.fill_null(pc.is_nan(b), False))
        equal = pc.or_(equal, nan)
    return equal.to_numpy(zero_copy_only=False)


@dataclass(kw_only=True)
class FeatureCounts:
    """What the audit says about one feature, summed over chunks of reads."""

    compared: int = 0
    """Reads: the sum of the five below."""
    equal: int = 0
    mismatched: int = 0
    missing: int = 0
    """Offline has a value, none was served."""
    extra: int = 0
    """A value was served, offline has none."""
    in_flight: int = 0
    """Different only because an event had been taken and was not online yet."""
    lists: "ListCounts | None" = None
    """Of list features."""

    def add(
        self, served: pa.Array, offline: pa.Array, found: np.ndarray, explained: np.ndarray
    ) -> None:
        """Adds R reads with their outcomes; `explained` marks (bool, R) the reads in flight."""
        counted = found[~explained | (found == EQUAL)]
        self.compared += len(found)
        self.equal += int((counted == EQUAL).sum())
        self.mismatched += int((counted == MISMATCHED).sum())
        self.missing += int((counted == MISSING).sum())
        self.extra += int((counted == EXTRA).sum())
        self.in_flight += len(found) - len(counted)
        if pa.types.is_list(served.type):
            self.lists = self.lists or ListCounts()
            self.lists.add(served, offline, (found != EQUAL) & ~explained)

    def report(self) -> dict[str, Any]:
        """As JSON can hold it."""
        names = ("compared", "equal", "mismatched", "missing", "extra", "in_flight")
        counts: dict[str, Any] = {name: getattr(self, name) for name in names}
        return counts | ({} if self.lists is None else self.lists.report())


@dataclass(kw_only=True)
class ListCounts:
    """How far served lists are from recomputed ones, and how long both are."""

    inserts: int = 0
    """Items served that should not have been."""
    deletes: int = 0
    """Items lacking in what was served."""
    served_lengths: dict[int, int] = field(default_factory=dict)
    """Length -> lists."""
    offline_lengths: dict[int, int] = field(default_factory=dict)

    def add(self, served: pa.Array, offline: pa.Array, different: np.ndarray) -> None:
        """Adds R lists; the distance is that of the ones marked `different` (bool, R)."""
        _count_lengths(self.served_lengths, served)
        _count_lengths(self.offline_lengths, offline)
        rows = pa.array(np.flatnonzero(different))
        pairs = zip(served.take(rows).to_pylist(), offline.take(rows).to_pylist(), strict=True)
        for was, should_be in pairs:
            inserts, deletes = inserts_and_deletes(was or [], should_be or [])
            self.inserts += inserts
            self.deletes += deletes

    def report(self) -> dict[str, Any]:
        return {
            "inserts": self.inserts,
            "deletes": self.deletes,
            "served_lengths": _spread(self.served_lengths),
            "offline_lengths": _spread(self.offline_lengths),
        }


def _count_lengths(counts: dict[int, int], lists: pa.Array) -> None:
    lengths = pc.list_value_length(lists.drop_null()).to_numpy()
    for length, lists_of_it in zip(*np.unique(lengths, return_counts=True), strict=True):
        counts[int(length)] = counts.get(int(length), 0) + int(lists_of_it)


def _spread(counts: dict[int, int]) -> dict[str, float]:
    """Lists, and the shortest, mean, median and longest of them."""
    if not counts:
        return {"lists": 0}
    lengths = np.array(sorted(counts))
    lists = np.array([counts[length] for length in lengths])
    middle = int(np.searchsorted(lists.cumsum(), lists.sum() / 2))
    return {
        "lists": int(lists.sum()),
        "min": int(lengths[0]),
        "mean": round(float((lengths * lists).sum() / lists.sum()), 3),
        "median": int(lengths[middle]),
        "max": int(lengths[-1]),
    }


def first_examples(
    key: str,
    columns: Sequence[str],
    served: pa.Table,
    offline: pa.Table,
    unequal: np.ndarray,
    limit: int,
) -> list[dict[str, Any]]:
    """The first `limit` reads that are marked (bool, R), one entry a read, with what differs."""
    rows = pa.array(np.flatnonzero(unequal)[:limit])
    found = []
    for was, should_be in zip(
        served.take(rows).to_pylist(), offline.take(rows).to_pylist(), strict=True
    ):
        differing = [name for name in columns if not _alike(was[name], should_be[name])]
        found.append(
            {
                key: was[key],
                "read_at": was["read_at"].isoformat(),
                "row_event_timestamp": was["event_timestamp"]
                and was["event_timestamp"].isoformat(),
                "served": {name: was[name] for name in differing},
                "offline": {name: should_be[name] for name in differing},
            }
        )
    return found


def _alike(a: Any, b: Any) -> bool:
    return a == b or (a != a and b != b)
