"""Texts of any length in batches of about one number of tokens, packed without padding.

A batch that costs the same every time keeps the device busy and its memory bounded. As nothing is
padded (`models.packed_attention`), texts stay in their order: sorting would gain nothing.
"""

from collections.abc import Iterator, Sequence


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[range]:
    """Runs of neighbouring texts with at most `budget` tokens; one that is longer is alone.

    Raises ValueError for a budget or a length below 1.
    """
    if budget < 1:
        raise ValueError(f"budget: expected at least 1 token, got {budget}")
    start = tokens = 0
    for i, length in enumerate(lengths):
        if length < 1:
            raise ValueError(f"lengths: expected at least 1 token a text, got {length} at {i}")
        if i > start and tokens + length > budget:
            yield range(start, i)
            start, tokens = i, 0
        tokens += length
    if start < len(lengths):
        yield range(start, len(lengths))
