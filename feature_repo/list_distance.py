"""How far a list that was served is from the list it should have been: inserts and deletes.

Counted apart, because they have different causes: a served item that should not be there points
to a repeated or a leaked event, one that is lacking to a lost or a late one. An item at the wrong
place is one of each.
"""

from collections.abc import Hashable, Sequence


def inserts_and_deletes(
    served: Sequence[Hashable], expected: Sequence[Hashable]
) -> tuple[int, int]:
    """Fewest items to take out of `served`, and to put into it, that give `expected`.

    Both follow from the length l of their longest common subsequence: |served| - l and
    |expected| - l. Time O(|served| * |expected| / 64), for lists of 1000 about 0.2 ms.
    """
    common = _common_subsequence_length(served, expected)
    return len(served) - common, len(expected) - common


def _common_subsequence_length(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence, a column of its table at a time.

    Bit i of a column is 0 where the table grows by one from row i to row i + 1, so that its zeros
    count the length. One addition moves the carry of all rows (Hyyro, 2004, "Bit-parallel
    LCS-length computation revisited"): V' = (V + (V & M)) | (V & ~M), M the places of an item.
    """
    places: dict[Hashable, int] = {}
    for position, item in enumerate(a):
        places[item] = places.get(item, 0) | 1 << position
    rows = (1 << len(a)) - 1
    column = rows
    for item in b:
        matches = column & places.get(item, 0)
        column = ((column + matches) | (column & ~matches)) & rows
    return len(a) - column.bit_count()
