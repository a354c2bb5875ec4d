"""The tree of semantic IDs: the tracks under a prefix of codes, and a track's neighbours in it.

    tree = CodeTree(items, ("text", "audio", "joint"))
    tree.tracks("joint", (17, 3))
    tree.children("joint", (17,))
    tree.neighbours("text", track_id=7, count=10)

One order of the tracks a family is all that is kept, four bytes a track: tracks of a prefix lie
together in it, and are found by binary search.

Shape suffixes: I tracks of the item table, F families, L levels, N tracks under a prefix.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

import numpy as np

from models.batch import MISSING_CODE, ItemTable, find_rows


class CodeTree:
    """The IDs of one generation, each family's tracks in the order of their codes."""

    def __init__(self, items: ItemTable, families: Sequence[str]) -> None:
        self.items = items
        self._families = {family: place for place, family in enumerate(families)}
        self._orders: list[np.ndarray] = []
        for place in range(len(families)):
            codes_IL = items.codes_IFL[:, place]
            order_I = np.lexsort(codes_IL.T[::-1])
            # A track without the family's modality has no place in its tree.
            has_id = codes_IL[order_I, 0] != MISSING_CODE
            self._orders.append(order_I[has_id].astype(np.int32))

    @property
    def families(self) -> list[str]:
        return list(self._families)

    @property
    def levels(self) -> int:
        return self.items.codes_IFL.shape[2]

    def tracks(self, family: str, prefix: Sequence[int]) -> np.ndarray:
        """Track ids (N,) whose ID begins with the prefix, in the order of their codes."""
        low, high = self._range(family, prefix)
        return self.items.track_ids_I[self._order(family)[low:high]]

    def children(self, family: str, prefix: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """The codes that follow a prefix shorter than an ID, each with its track ids."""
        order_I = self._order(family)
        start, high = self._range(family, prefix)
        while start < high:
            # A binary search a code: at the root, to look at every track's code costs more.
            code = int(self.items.codes_IFL[order_I[start], self._families[family], len(prefix)])
            _, end = self._narrowed(family, len(prefix), code, start, high)
            yield code, self.items.track_ids_I[order_I[start:end]]
            start = end

    def neighbours(self, family: str, track_id: int, count: int) -> list[tuple[int, int]]:
        """(track id, codes shared from the front), the most first; none for a track without ID."""
        codes_L = self.codes(family, track_id)
        found: dict[int, int] = {}
        for shared in range(len(codes_L), 0, -1):
            low, high = self._range(family, codes_L[:shared])
            # As many as could be missing: those found before, and the track itself.
            rows = self._order(family)[low : min(high, low + count + len(found) + 1)]
            for other in self.items.track_ids_I[rows].tolist():
                if other != track_id and len(found) < count:
                    found.setdefault(other, shared)
        return list(found.items())

    def codes(self, family: str, track_id: int) -> tuple[int, ...]:
        """The track's ID; empty if the generation has none for it."""
        row, known = find_rows(self.items.track_ids_I, np.array(track_id))
        codes_L = self.items.codes_IFL[row, self._families[family]]
        return tuple(codes_L.tolist()) if known and codes_L[0] != MISSING_CODE else ()

    def _order(self, family: str) -> np.ndarray:
        return self._orders[self._families[family]]

    def _range(self, family: str, prefix: Sequence[int]) -> tuple[int, int]:
        """Where the tracks of a prefix begin and end in the family's order."""
        low, high = 0, len(self._order(family))
        for level, code in enumerate(prefix):
            low, high = self._narrowed(family, level, code, low, high)
        return low, high

    def _narrowed(self, family: str, level: int, code: int, low: int, high: int) -> tuple[int, int]:
        """Where, between places whose codes before this level are equal, this level's is `code`."""
        order_I, codes_IL = self._order(family), self.items.codes_IFL[:, self._families[family]]

        def code_at(place: int) -> int:
            return codes_IL[order_I[place], level]

        places = range(len(order_I))
        return (
            bisect_left(places, code, low, high, key=code_at),
            bisect_right(places, code, low, high, key=code_at),
        )
