"""Candidates for a user: near vectors, shared ID prefixes, popular, new, and a retriever model's.

    retriever = Retriever(items, joint, facts, vectors)    # or: release_retriever.py
    found = retriever.candidates(user.track_ids_L, RetrievalOptions())
    found = retriever.candidates(user.track_ids_L, RetrievalOptions(**WITH_MME_SID), expected_N)
    places = retriever.diversify(ranked_track_ids_N, 20, max_per_artist=2)

A retriever never changes, so any thread may use it.

Shape suffixes: I tracks of the item table, F families, L levels or listens, H listens that the
item table knows, V indexed vectors, C candidates, N rows of one source or of a ranked list, T rows
to leave out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from models.batch import MISSING_CODE, ItemTable, find_rows
from serving.retrieval.diversity import kept
from serving.retrieval.options import SOURCES, RetrievalOptions
from serving.retrieval.prefix_index import PrefixIndex, is_among
from serving.retrieval.track_facts import TrackFacts
from serving.retrieval.vector_index import VectorIndex

BITS = (1 << np.arange(len(SOURCES))).astype(np.uint8)
HISTORY = 20
"""Listens that candidates are looked for with, the newest ones."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """What the sources propose, each track once."""

    track_ids_C: np.ndarray
    """The best of every source first, the sources in turn by their shares: of fewer candidates,
    the first ones are a fair choice."""
    sources_C: np.ndarray
    """uint8: the sum of 1 << place in SOURCES over the sources that propose the track."""
    hurried: bool = False
    """No time was left to ask the release's retriever model."""

    def sources(self, place: int) -> list[str]:
        """The names of the sources that propose one candidate."""
        bits = int(self.sources_C[place])
        return [name for bit, name in enumerate(SOURCES) if bits >> bit & 1]


class Retriever:
    """The tracks of one release's generation, indexed."""

    def __init__(
        self, items: ItemTable, joint: int, facts: TrackFacts, vectors: VectorIndex | None
    ) -> None:
        """`joint`: place of the joint family, or of the only one, among those of `items`.

        `vectors`: of tracks of `items`; None where the generation was not made from vectors.
        """
        self.items, self.vectors = items, vectors
        self._facts = facts
        families = [joint, *(f for f in range(items.codes_IFL.shape[1]) if f != joint)]
        codes_FIL = items.codes_IFL.transpose(1, 0, 2)[families]
        self._first_code_I = codes_FIL[0, :, 0].copy()
        codes_FIL[:, ~facts.listed_I] = MISSING_CODE  # a track that has left is no candidate
        self._prefixes = PrefixIndex(codes_FIL, facts.popularity_I)
        self._row_V = np.empty(0, dtype=np.int64)
        self._place_I = np.full(len(items.track_ids_I), -1)
        self._listed_share = 1.0
        if vectors is not None and vectors.size:
            self._row_V, _ = find_rows(items.track_ids_I, vectors.track_ids)
            self._place_I[self._row_V] = np.arange(vectors.size)
            self._listed_share = float(facts.listed_I[self._row_V].mean())
        self.sizes = {
            "vectors": 0 if vectors is None else round(vectors.size * self._listed_share),
            "prefix": int((codes_FIL[:, :, 0] != MISSING_CODE).any(0).sum()),
            "popular": len(facts.popular_N),
            "new": len(facts.newest_N),
        }
        """Tracks that each source can propose: 0 tells one that has nothing to work with."""

    def candidates(
        self,
        history_L: np.ndarray,
        options: RetrievalOptions,
        expected_N: np.ndarray | None = None,
    ) -> Candidates:
        """At most `options.total` tracks for a user with these listens, newest last.

        Listens of tracks that the item table does not hold count for nothing. `expected_N`: track
        ids that a retriever model proposes, best first; those that left the catalogue or are not
        in the item table are left out.
        """
        rows_H = self._known_rows(history_L)
        seen_T = rows_H[:0] if options.include_seen else np.sort(rows_H)
        asked_H = rows_H[-HISTORY:]
        found = {
            "vectors": self._near(asked_H, options.vectors, seen_T),
            "prefix": self._prefixes.nearest(asked_H, options.prefix, seen_T),
            "popular": _first(self._facts.popular_N, options.popular, seen_T),
            "new": _first(self._facts.newest_N, options.new, seen_T),
            "mme_sid": self._listed(expected_N, options.mme_sid, seen_T),
        }
        rows_C, sources_C = _merged(found, options)
        for name, order_N in (("popular", self._facts.popular_N), ("new", self._facts.newest_N)):
            lacking = options.total - len(rows_C)
            if lacking and getattr(options, name):
                taken_T = np.sort(np.concatenate([rows_C, seen_T]))
                more_N = _first(order_N, lacking, taken_T)
                rows_C = np.concatenate([rows_C, more_N])
                bits_N = np.full(len(more_N), BITS[SOURCES.index(name)])
                sources_C = np.concatenate([sources_C, bits_N])
        return Candidates(track_ids_C=self.items.track_ids_I[rows_C], sources_C=sources_C)

    def diversify(
        self,
        ranked_N: np.ndarray,
        count: int,
        *,
        max_per_artist: int | None = None,
        max_per_prefix: int | None = None,
    ) -> np.ndarray:
        """Places (at most `count`, rising) of the ranked track ids that are to be shown.

        Of one artist, and of one first code of the joint ID, at most so many tracks; without a
        limit, the first `count`. KeyError for a track that the item table does not hold.
        """
        limits = []
        if len(ranked_N) and (max_per_artist is not None or max_per_prefix is not None):
            rows_N, known_N = find_rows(self.items.track_ids_I, ranked_N)
            if not known_N.all():
                raise KeyError(f"no such track in the item table: {ranked_N[~known_N][0]}")
            if max_per_artist is not None:
                limits.append((self._facts.artist_I[rows_N], max_per_artist))
            if max_per_prefix is not None:
                limits.append((self._first_code_I[rows_N], max_per_prefix))
        return kept(len(ranked_N), count, limits)

    def _known_rows(self, track_ids_L: np.ndarray) -> np.ndarray:
        if not len(self.items.track_ids_I):
            return np.empty(0, dtype=np.int64)
        rows_L, known_L = find_rows(self.items.track_ids_I, track_ids_L)
        return rows_L[known_L]

    def _listed(self, track_ids_N: np.ndarray | None, count: int, seen_T: np.ndarray) -> np.ndarray:
        """Rows (N,) of the first `count` of these tracks that may be proposed, in their order."""
        if track_ids_N is None or not count:
            return np.empty(0, dtype=np.int64)
        rows_N = self._known_rows(track_ids_N)
        return _first(rows_N[self._facts.listed_I[rows_N]], count, seen_T)

    def _near(self, rows_H: np.ndarray, count: int, seen_T: np.ndarray) -> np.ndarray:
        """Rows (N,), those nearest to the mean of the listens' vectors first.

        One mean and one search. Four, of spans of time or of listens that are alike, found the
        next listen no more often: recall@200 0.59 and 0.57 against 0.61 on the demo, 0.30 and 0.30
        against 0.28 on hetrec-spotify, 0.10 and 0.05 against 0.06 on tiktok-mm, with standard
        errors of about 0.025; and each further search costs as much again.
        """
        if self.vectors is None or not count or not len(rows_H):
            return np.empty(0, dtype=np.int64)
        place_H = self._place_I[rows_H]
        place_N = place_H[place_H >= 0]
        if not len(place_N):
            return np.empty(0, dtype=np.int64)
        wanted = math.ceil((count + len(seen_T)) / max(self._listed_share, 0.01))
        near_N, _ = self.vectors.nearest(self.vectors.vectors(place_N).mean(0), wanted)
        rows_N = self._row_V[near_N]
        return _first(rows_N[self._facts.listed_I[rows_N]], count, seen_T)


def _first(order_N: np.ndarray, count: int, taken_T: np.ndarray) -> np.ndarray:
    """The first `count` rows of an order that are not among `taken_T` (rising)."""
    rows_N = order_N[: count + len(taken_T)]
    return rows_N[~is_among(rows_N, taken_T)][:count]


def _merged(
    found: Mapping[str, np.ndarray], options: RetrievalOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (C,) of all sources, and the sources of each; the r-th row of a source that may propose
    n comes at r / n, so that every source has its share of any first part."""
    turn_N, bit_N = _turns(
        tuple(len(found[name]) for name in SOURCES),
        tuple(getattr(options, name) for name in SOURCES),
    )
    rows_N = np.concatenate([found[name] for name in SOURCES])[turn_N]
    # Sorted by row, the places of a track stand together, its first turn in front. np.unique
    # would do, by a hash table: for so few rows it takes ten times as long as sorting.
    by_row_N = np.argsort(rows_N, kind="stable")
    sorted_N = rows_N[by_row_N]
    new_N = np.ones(len(rows_N), dtype=bool)
    new_N[1:] = sorted_N[1:] != sorted_N[:-1]
    starts_C = np.flatnonzero(new_N)
    first_C = by_row_N[starts_C]
    bits_N = np.zeros(len(rows_N), dtype=np.uint8)
    if len(rows_N):
        bits_N[first_C] = np.bitwise_or.reduceat(bit_N[by_row_N], starts_C)
    first_N = bits_N > 0
    return rows_N[first_N], bits_N[first_N]


@lru_cache(maxsize=256)
def _turns(lengths: tuple[int, ...], quotas: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The order in which the sources' rows come, and the bit of the source of each.

    Nearly every request has the same lengths, those of the quotas.
    """
    turn_N = np.concatenate(
        [np.arange(n) / max(1, q) for n, q in zip(lengths, quotas, strict=True)]
    )
    order_N = np.argsort(turn_N, kind="stable")
    return order_N, np.repeat(BITS, lengths)[order_N]
